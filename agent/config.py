"""The whole configuration: read once, frozen, and checked before anything starts.

A value comes from the YAML file or, stronger, from an environment variable; both end as
``Given(value, where)`` under the key path a person would write (``kafka.topic``). From there
on nobody asks where it came from, except an error, which says so on one line:

    where it stands: key path: what was found; what is allowed
"""

import difflib
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Never, get_type_hints

import msgspec
import yaml
from msgspec import NODEFAULT, Meta, field
from msgspec import inspect as mi

from agent.core.policy import (
    KIB,
    MIB,
    BatchPolicy,
    BreakerPolicy,
    InFlightPolicy,
    Name,
    Policy,
    PositiveSeconds,
    RetryPolicy,
    SchemaPolicy,
    Seconds,
)
from agent.errors import ConfigError

PATH_DEFAULT = Path("/etc/feedback-agent/config.yaml")
PREFIX = "FEEDBACK_AGENT_"
FILE_BYTES_MAX = MIB
SHOWN_MAX = 60
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
SECRET = re.compile(r"(password|passphrase|secret|token|credential)", re.IGNORECASE)

# Kafka's own rule: org.apache.kafka.common.internals.Topic.
TopicName = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.\.?$)[a-zA-Z0-9._-]{1,249}$",
        description="a topic name: 1 to 249 of a-z A-Z 0-9 . _ -, not . or ..",
    ),
]
Broker = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]{0,252}):"
        "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
        description="host:port, the port from 1 to 65535, an IPv6 address in brackets",
    ),
]
Glob = Annotated[str, Meta(pattern="^[^/]+$", description="a file name pattern without /")]
ClientName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,248}$",
        description="1 to 249 of a-z A-Z 0-9 . _ -, a letter or digit first",
    ),
]
ClientId = Annotated[
    str,
    Meta(pattern="^[a-zA-Z0-9._-]{1,249}$", description="1 to 249 of a-z A-Z 0-9 . _ -"),
]
KeyField = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z_][A-Za-z0-9_]{0,127}$",
        description="event_id, session_id, client, none, or the name of another field",
    ),
]


class Agent(Policy, frozen=True):
    node: Name | None = None
    state_dir: Path = Path("/var/lib/feedback-agent")
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 25.0
    start_jitter_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class Source(Policy, frozen=True):
    root: Path = Path("/var/lib/feedback")
    include: Annotated[tuple[Glob, ...], Meta(min_length=1)] = ("*.jsonl", "*.jsonl.*", "*.jsonl-*")
    exclude: tuple[Glob, ...] = ()
    client_depth: Annotated[int, Meta(ge=1, le=16)] = 1
    client: ClientName | None = None
    line_bytes_max: Annotated[int, Meta(ge=KIB, le=16 * MIB)] = 768 * KIB
    start_at: Literal["beginning", "end"] = "beginning"
    scan_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    forget_after_s: Seconds = 604_800.0
    files_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 50_000
    descriptors_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 512


class Kafka(Policy, frozen=True):
    bootstrap_servers: Annotated[tuple[Broker, ...], Meta(min_length=1)]
    topic: TopicName = "feedback-events"
    client_id: ClientId = "feedback-agent"
    key: KeyField = "event_id"
    partitioner: Literal["crc32", "murmur2", "sticky"] = "crc32"
    compression: Literal["gzip", "none"] = "gzip"
    compression_level: Annotated[int, Meta(ge=0, le=9)] | None = None
    timestamp: Literal["produce", "event"] = "produce"
    request_timeout_s: PositiveSeconds = 15.0
    start_s: PositiveSeconds = 30.0


class Dlq(Policy, frozen=True):
    topic: TopicName = "feedback-events-dlq"


class Http(Policy, frozen=True):
    host: Name = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 9108


class Log(Policy, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] | None = None


class Config(Policy, frozen=True, kw_only=True):
    agent: Agent = field(default_factory=Agent)
    source: Source = field(default_factory=Source)
    schema: SchemaPolicy = field(default_factory=SchemaPolicy)
    batch: BatchPolicy = field(default_factory=BatchPolicy)
    in_flight: InFlightPolicy = field(default_factory=InFlightPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    kafka: Kafka
    dlq: Dlq = field(default_factory=Dlq)
    http: Http = field(default_factory=Http)
    log: Log = field(default_factory=Log)

    @property
    def node(self) -> str:
        """``agent.node`` of a configuration that came through ``load``: never absent."""
        assert self.agent.node is not None, "not loaded"
        return self.agent.node


class Given(NamedTuple):
    value: object
    where: str
    """The file and line, or the environment variable, then the key path."""


NOTHING = Given(None, "")


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Return the checked configuration of the file and, stronger, the environment.

    ``path`` is None where the environment alone shall do. Raises ``ConfigError``, always one
    line, with the first mistake found.
    """
    given = {} if path is None else _from_file(path)
    given |= _from_environ(environ)
    if given.get("agent.node", NOTHING).value is None:
        node = environ.get("NODE_NAME")  # what the downward API is asked to set
        host = Given(socket.gethostname(), "host name: agent.node")
        given["agent.node"] = Given(node, "NODE_NAME: agent.node") if node else host
    config = _build(given, "environment" if path is None else _plain(str(path)))
    for key, detail in _conflicts(config, given):
        raise ConfigError(given[key].where if key in given else key, detail)
    return config


# ---- the shape, as tables


@cache
def sections() -> dict[str, type[Policy]]:
    return {f.name: _struct(f.type) for f in _fields(Config)}


class Key(NamedTuple):
    hint: object
    """The annotation, for msgspec."""
    info: mi.Type
    """The same, to look into."""
    default: object
    """``NODEFAULT`` for a key that must be given."""


@cache
def keys() -> dict[str, Key]:
    """Every key by its path, in the order of the sections."""
    found: dict[str, Key] = {}
    for section, struct in sections().items():
        hints = get_type_hints(struct, include_extras=True)
        for f in _fields(struct):
            found[f"{section}.{f.name}"] = Key(hints[f.name], f.type, f.default)
    return found


def environment_name(key: str) -> str:
    """Return the variable that sets ``key``: ``FEEDBACK_AGENT_KAFKA__TOPIC``."""
    return PREFIX + key.replace(".", "__").upper()


def _fields(struct: type[Policy]) -> tuple[mi.Field, ...]:
    info = mi.type_info(struct)
    assert isinstance(info, mi.StructType)
    return info.fields


def _struct(info: mi.Type) -> type[Policy]:
    assert isinstance(info, mi.StructType)
    assert issubclass(info.cls, Policy)
    return info.cls


def allowed(info: mi.Type) -> str:
    """Say in words what a value of this type may be."""
    match info:
        case mi.Metadata():
            words = str((info.extra_json_schema or {}).get("description") or allowed(info.type))
        case mi.UnionType():
            inner = [allowed(t) for t in info.types if not isinstance(t, mi.NoneType)]
            words = f"{' or '.join(inner)}, or null"
        case mi.LiteralType():
            words = f"one of {', '.join(str(value) for value in info.values)}"
        case mi.VarTupleType():
            least = f" of at least {info.min_length}" if info.min_length else ""
            words = f"a list{least}, each {allowed(info.item_type)}"
        case mi.IntType() | mi.FloatType():
            words = ("a number", "a whole number")[isinstance(info, mi.IntType)] + _bounds(info)
        case mi.StrType():
            words = f"text of {info.min_length} to {info.max_length} characters"
        case mi.CustomType(cls=cls) if cls is Path:
            words = "an absolute path"
        case _:
            raise AssertionError(f"no words for {info}")
    return words


def _bounds(info: mi.IntType | mi.FloatType) -> str:
    low = f" above {info.gt:.12g}" if info.gt is not None else ""
    low = f" from {info.ge:.12g}" if info.ge is not None else low
    high = f" to {info.le:.12g}" if info.le is not None else ""
    return low + high if low and high and info.gt is None else low + high.replace(" to ", " up to ")


# ---- from the file and the environment to what was given


def _from_file(path: Path) -> dict[str, Given]:
    file = _plain(str(path))
    loader = yaml.SafeLoader(_bytes_of(path, file))
    try:
        root = loader.get_single_node()
    except RecursionError:
        raise ConfigError(file, "found values nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(*_problem(file, error)) from None
    given: dict[str, Given] = {}
    for section, line, node in _pairs(root, file, ""):
        if section not in sections():
            _unknown(f"{file}:{line}: {section}", section)
        for key, key_line, value in _pairs(node, file, section):
            where = f"{file}:{key_line}: {key}"
            if key not in keys():
                _unknown(where, key)
            try:
                built = loader.construct_object(value, deep=True)
            except Exception:  # noqa: BLE001  PyYAML lets out whatever its conversions raise
                detail = f"found no value of its YAML type; allowed: {allowed(keys()[key].info)}"
                raise ConfigError(where, detail) from None
            given[key] = Given(built, where)
    return given


def _bytes_of(path: Path, file: str) -> bytes:
    try:
        with path.open("rb") as opened:
            raw = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise ConfigError(file, f"cannot be read: {reason}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(file, f"found more than {FILE_BYTES_MAX} bytes; allowed: at most that")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}", "found bytes that are not UTF-8") from None
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad:  # PyYAML would say so too, with an offset for a place
        line = text.count("\n", 0, bad.start()) + 1
        detail = f"found a character that YAML does not allow: {_shown(bad.group())}"
        raise ConfigError(f"{file}:{line}", detail)
    return raw


def _problem(file: str, error: Exception) -> tuple[str, str]:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        problem = _plain(error.problem or "malformed")
        return f"{file}:{error.problem_mark.line + 1}", f"found no valid YAML: {problem}"
    return file, "found no valid YAML"


def _pairs(node: yaml.Node | None, file: str, under: str) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield (key path, line, value) of a mapping. An empty one may be written as nothing."""
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        where = f"{file}:{node.start_mark.line + 1}" + (f": {under}" if under else "")
        names = _names_in(under) if under else sections()
        raise ConfigError(where, f"found {_kind(node)}; allowed: a mapping of {', '.join(names)}")
    seen: dict[str, int] = {}
    for key, value in node.value:
        name = _plain(key.value) if isinstance(key, yaml.ScalarNode) else _kind(key)
        name = f"{under}.{name}" if under else name
        line = key.start_mark.line + 1
        if name in seen:
            detail = f"found twice, the first on line {seen[name]}; allowed: once"
            raise ConfigError(f"{file}:{line}: {name}", detail)
        seen[name] = line
        yield name, line, value


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.CollectionNode):
        return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    return "a single value"


def _names_in(section: str) -> list[str]:
    return [key.partition(".")[2] for key in keys() if key.startswith(f"{section}.")]


def _unknown(where: str, key: str) -> Never:
    section, _, name = key.rpartition(".")
    near = [known for known in keys() if known.endswith(f".{name}")][:2]
    near = near or difflib.get_close_matches(key, keys() if section else sections(), 1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    here = ", ".join(_names_in(section) if section else sections())
    raise ConfigError(where, f"unknown key; {hint}allowed: {here}")


def _from_environ(environ: Mapping[str, str]) -> dict[str, Given]:
    names = {environment_name(key): key for key in keys()}
    given: dict[str, Given] = {}
    for name in sorted(environ):
        # Kubernetes sets FEEDBACK_AGENT_SERVICE_HOST and the like for a Service of our name.
        if not name.startswith(PREFIX) or "__" not in name.removeprefix(PREFIX):
            continue
        if name not in names:
            upper = name.removeprefix(PREFIX).upper()
            near = difflib.get_close_matches(upper, [n.removeprefix(PREFIX) for n in names], 1)
            hint = (
                f"did you mean {PREFIX}{near[0]}?" if near else f"allowed: {PREFIX}<SECTION>__<KEY>"
            )
            raise ConfigError(_plain(name), f"unknown variable; {hint}")
        key = names[name]
        given[key] = Given(_from_text(environ[name], keys()[key].info), f"{name}: {key}")
    return given


def _from_text(text: str, info: mi.Type) -> object:
    """Read a variable as a YAML scalar. Where text is wanted, ``0123`` and ``on`` are text."""
    info = _core(info)
    if isinstance(info, mi.VarTupleType) and not text.lstrip().startswith("["):
        return text
    try:
        value = yaml.safe_load(text)
    except Exception:  # noqa: BLE001  as above; such text then fails, or is a legal text
        return text
    if isinstance(info, mi.StrType | mi.CustomType | mi.LiteralType):
        return value if isinstance(value, str | None) else text
    return value


def _core(info: mi.Type) -> mi.Type:
    if isinstance(info, mi.Metadata):
        return _core(info.type)
    if isinstance(info, mi.UnionType):
        return _core(next(t for t in info.types if not isinstance(t, mi.NoneType)))
    return info


# ---- from what was given to the configuration


def _build(given: Mapping[str, Given], file: str) -> Config:
    built: dict[str, dict[str, object]] = {name: {} for name in sections()}
    for path, key in keys().items():
        section, name = path.split(".")
        if path in given:
            built[section][name] = _converted(given[path], path, key)
        elif key.default is NODEFAULT:
            detail = f"found nothing; allowed: {allowed(key.info)}; or {environment_name(path)}"
            raise ConfigError(f"{file}: {path}", detail)
    made: dict[str, Any] = {name: sections()[name](**values) for name, values in built.items()}
    return Config(**made)


def _converted(given: Given, path: str, key: Key) -> object:
    value = given.value
    if isinstance(value, str) and isinstance(key.info, mi.VarTupleType):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    index = ""
    try:
        if not _tame(value):
            raise msgspec.ValidationError  # noqa: TRY301  one exit for everything illegal
        return msgspec.convert(value, key.hint, dec_hook=_absolute)
    except msgspec.ValidationError as error:
        item = re.search(r"`\$\[(\d+)\]`", str(error))
        if item and isinstance(value, list):
            index, value = f"[{item[1]}]", value[int(item[1])]
    unquoted = isinstance(value, bool | int | float | date) and not isinstance(
        _core(key.info), mi.IntType | mi.FloatType
    )
    hint = "; put it in quotes" if unquoted else ""
    found = _shown(value, path)
    raise ConfigError(given.where + index, f"found {found}; allowed: {allowed(key.info)}{hint}")


def _tame(value: object) -> bool:
    """Whether it is free of control characters and infinite numbers, legal in no key."""
    match value:
        case str():
            return not CONTROLS.search(value)
        case float():
            return math.isfinite(value)
        case list():
            return all(_tame(item) for item in value if not isinstance(item, list))
        case _:
            return True


def _absolute(kind: type, value: object) -> Path:
    assert kind is Path
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError
    return Path(value)


class Order(NamedTuple):
    low: str
    high: str
    strict: bool
    reason: str


ORDERS = (
    Order("batch.age_min_s", "batch.age_max_s", False, "the wait adapts between the two"),
    Order("retry.backoff_s", "retry.backoff_max_s", False, "the wait grows from one to the other"),
    Order("batch.bytes_max", "in_flight.bytes_max", False, "a full batch must fit in flight"),
    Order("source.line_bytes_max", "in_flight.bytes_max", True, "one line must fit in flight"),
)


def _conflicts(config: Config, given: Mapping[str, Given]) -> Iterator[tuple[str, str]]:
    """Yield (key path, detail) for values that are legal alone and not together.

    The blame goes to a key that was given, where one of the two was left at its default.
    """

    def at(key: str) -> float:
        section, name = key.split(".")
        return float(getattr(getattr(config, section), name))

    for low, high, strict, reason in ORDERS:
        less, more = at(low), at(high)
        if less > more or (strict and less == more):
            if low in given:
                bound = f"{'less than' if strict else 'at most'} {high}, which is {more:.12g}"
                yield low, f"found {less:.12g}; allowed: {bound}: {reason}"
            else:
                bound = f"{'more than' if strict else 'at least'} {low}, which is {less:.12g}"
                yield high, f"found {more:.12g}; allowed: {bound}: {reason}"
    yield from _clashes(config, given)


def _clashes(config: Config, given: Mapping[str, Given]) -> Iterator[tuple[str, str]]:
    if config.kafka.topic == config.dlq.topic:
        mine, other = sorted(("dlq.topic", "kafka.topic"), key=lambda key: key not in given)
        reason = "a dead letter among the events would be read as one"
        yield mine, f"found {config.dlq.topic!r}; allowed: another one than {other}: {reason}"
    paths = {"agent.state_dir": config.agent.state_dir, "source.root": config.source.root}
    state, root = (Path(os.path.realpath(path)) for path in paths.values())
    if state.is_relative_to(root) or root.is_relative_to(state):
        mine, other = sorted(paths, key=lambda key: key not in given)
        bound = f"neither inside {other}, which is {str(paths[other])!r}, nor around it"
        reason = "who may write feedback must not reach checkpoints"
        yield mine, f"found {str(paths[mine])!r}; allowed: {bound}: {reason}"
    if config.kafka.compression == "none" and config.kafka.compression_level is not None:
        found = config.kafka.compression_level
        bound = "only with kafka.compression gzip, which is none"
        yield "kafka.compression_level", f"found {found}; allowed: {bound}"


# ---- what may be shown


def _plain(text: str) -> str:
    """Make it safe for one line on a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def is_secret(path: str) -> bool:
    """Whether the name of a key says that its value is a secret; a path to one is none."""
    return bool(SECRET.search(path)) and not path.endswith(("_file", "_dir", "_path"))


def _shown(value: object, path: str = "") -> str:
    match value:
        case None:
            return "nothing"
        case list() | dict():
            return "a list" if isinstance(value, list) else "a mapping"
        case bool():
            return str(value).lower()
        case int() if abs(value) > 1 << 63:
            return "a number beyond 64 bits"
    text = str(value)
    if is_secret(path) or "@" in text:  # user:password@host
        return "a value that is not shown"
    text = text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
    return repr(text) if isinstance(value, str | bytes) else _plain(text)


def masked(config: Config) -> dict[str, dict[str, object]]:
    """Return the full configuration as plain values, defaults filled in, secrets as ``***``."""
    plain: dict[str, dict[str, object]] = msgspec.to_builtins(config, enc_hook=str)
    return {
        section: {
            key: "***" if value and is_secret(f"{section}.{key}") else value
            for key, value in values.items()
        }
        for section, values in plain.items()
    }


def as_yaml(config: Config) -> str:
    """Print the full configuration so that ``load`` reads it back, secrets apart."""
    plain = msgspec.json.decode(msgspec.json.encode(masked(config)))  # tuples to lists
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


@cache
def meanings() -> Mapping[str, str]:
    """Return what each key means: the comment above it in the example, the one place for it."""
    text = resources.files("agent").joinpath("config.example.yaml").read_text("utf-8")
    found: dict[str, str] = {}
    section, comment = "", []
    for line in text.splitlines():
        if line.startswith("  # "):
            comment.append(line[4:].strip())
            continue
        name, colon, _ = line.partition(":")
        if colon and name.startswith("  "):
            found[f"{section}.{name.strip()}"] = " ".join(comment)
        elif colon and name.isidentifier():
            section = name
        comment = []
    return found


def json_schema() -> dict[str, object]:
    """Return a JSON Schema of the file, for editors. ``load`` alone does the cross-checks."""
    properties: dict[str, dict[str, object]] = {
        name: {"type": "object", "additionalProperties": False, "properties": {}}
        for name in sections()
    }
    for path, key in keys().items():
        section, name = path.split(".")
        one = msgspec.json.schema(key.hint, schema_hook=lambda _: {"type": "string"})
        if isinstance(key.info, mi.VarTupleType):
            one = {"anyOf": [one, {"type": "string"}]}
        one["description"] = f"{meanings()[path]} Allowed: {allowed(key.info)}."
        if key.default is not NODEFAULT:
            one["default"] = msgspec.to_builtins(key.default, enc_hook=str)
        inner: Any = properties[section]["properties"]
        inner[name] = one
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "feedback-agent configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }
