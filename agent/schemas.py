"""Reads a team's own event types: a directory of JSON Schema files, ``<type>.json`` each.

A schema is compiled once, for an engine whose patterns take time by the length of a text whatever
the pattern; one that it cannot take (look-around, back-references) is refused, never run on another
engine. A schema refers to nothing outside of its file: nothing is fetched, from nowhere.

The engine is asked twice about a line that does not fit, and its own words are never passed on:
they quote the line.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import msgspec

from agent.core.schemas import CustomType, Schemas
from agent.errors import ConfigError
from agent.reloaded import Files, Reloaded

FILES_MAX: Final = 256
FILE_BYTES_MAX: Final = 256 << 10
PATTERN_BYTES_MAX: Final = 1 << 20
"""Of one pattern, compiled."""
DETAIL_CHARACTERS_MAX: Final = 256
DIRECTORY: Final = "schema.dir"
MISFIT: Final = "not what the schema allows"
_FILE = re.compile(r"([a-z][a-z0-9_]{0,63})\.json")


class Wanted(Protocol):
    """The section ``schema`` of the configuration."""

    @property
    def dir(self) -> Path | None: ...


def load(wanted: Wanted) -> Schemas | None:
    """Return the types of the directory, None where none is named. Raises ``ConfigError``."""
    if wanted.dir is None:
        return None
    try:
        engine = import_module("jsonschema_rs")
    except ImportError:
        needed = 'needs the package jsonschema-rs; install the extra "schemas"'
        raise ConfigError(DIRECTORY, needed) from None
    types: dict[str, CustomType] = {}
    digest = sha256()
    for name, path in _files(wanted.dir):
        where = f"{DIRECTORY}: {path.name}"
        written = _read(path, wanted.dir, where)
        types[name] = _compiled(engine, written, where)
        digest.update(f"{name} {len(written)} ".encode() + written)
    return Schemas(MappingProxyType(types), digest.hexdigest()[:16])


def in_force(wanted: Wanted) -> Reloaded[Schemas | None]:
    """Return what ``load`` does, to be reloaded. Raises ``ConfigError``."""
    return Reloaded(
        "schemas",
        Files(wanted.dir),
        lambda: load(wanted),
        value=load(wanted),
        version=lambda schemas: None if schemas is None else schemas.version,
    )


# ---- files


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield types and their files by name. A dot begins what Kubernetes keeps for itself there."""
    try:
        names = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise ConfigError(DIRECTORY, f"cannot be read: {error.strerror}") from None
    if not 0 < len(names) <= FILES_MAX:
        raise ConfigError(DIRECTORY, f"found {len(names)} files; allowed: 1 to {FILES_MAX}")
    for name in names:
        match = _FILE.fullmatch(name)
        if match is None:
            allowed = "<type>.json, the type 1 to 64 of a-z 0-9 _, a letter first"
            raise ConfigError(DIRECTORY, f"found {name!a}; allowed: {allowed}")
        yield match[1], directory / name


def _read(path: Path, directory: Path, where: str) -> bytes:
    # A volume of Kubernetes is made of links; they stay within it.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise ConfigError(where, "found a link that leads out of the directory")
    try:
        # Not blocking: a FIFO in its place must not hold the agent up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            written = file.read(FILE_BYTES_MAX + 1) if regular else b""
    except OSError as error:
        raise ConfigError(where, f"cannot be read: {error.strerror}") from None
    if not regular:
        raise ConfigError(where, "not a regular file")
    if len(written) > FILE_BYTES_MAX:
        raise ConfigError(where, f"found a longer one; allowed: at most {FILE_BYTES_MAX} bytes")
    return written


# ---- schemas


def _compiled(engine: Any, written: bytes, where: str) -> CustomType:
    try:
        schema = msgspec.json.decode(written)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ConfigError(where, "found no JSON; allowed: a JSON Schema") from None
    if not isinstance(schema, dict):
        raise ConfigError(where, "allowed: a JSON Schema that is an object")
    try:
        fits = _validator(engine, schema).is_valid
    except engine.ValidationError as error:
        raise _refused(error, where) from None
    except ValueError:  # of its conversion, before it looks at what stands there
        raise ConfigError(where, "nested too deep, or a number beyond 64 bits") from None
    try:
        explain = _validator(engine, _without_branches(schema)).validate
    except ValueError:  # a reference into a branch leads nowhere now: no words, then
        explain = fits
    names = frozenset(_names(schema))
    return CustomType(names, _Fit(fits, explain, names, engine.ValidationError).wrong)


def _validator(engine: Any, schema: object) -> Any:
    return engine.validator_for(
        schema,
        offline=True,
        pattern_options=engine.RegexOptions(size_limit=PATTERN_BYTES_MAX),
        validate_formats=True,
        ignore_unknown_formats=False,
        mask="",  # or a message would be as long as what it quotes
    )


def _refused(error: Any, where: str) -> ConfigError:
    """Say what the engine has against a schema, and where in it."""
    place = [str(part) for part in error.instance_path]
    if "pattern" in place[-1:] or "patternProperties" in place[-2:]:
        said = (
            f"allowed: a pattern without look-around and back-references, compiled at most "
            f"{PATTERN_BYTES_MAX} bytes"
        )
    elif error.kind.name == "$ref":
        said = (
            "allowed: references within the file, and a $schema of draft 4, 6, 7, 2019-09 or "
            f"2020-12; {str(error).partition(chr(10))[0]}"
        )
    elif place[-1:] == ["format"]:
        said = "allowed: a format of JSON Schema"
    else:
        said = f"breaks the rules of JSON Schema: {error.kind.name}"
    pointer = "".join(f"/{part}" for part in place)
    return ConfigError(where + _plain(f"#{pointer}" if pointer else ""), _plain(said))


def _plain(text: str) -> str:
    """Make it safe for one line on a terminal, and short."""
    return (text if text.isprintable() else ascii(text)[1:-1])[:DETAIL_CHARACTERS_MAX]


def _names(schema: object) -> Iterator[str]:
    """Yield the names of fields that stand in ``schema`` at any depth."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
        for inner in schema.values():
            yield from _names(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _names(inner)


def _without_branches(schema: Any) -> Any:
    """Return ``schema`` so that its first error costs no more than its check.

    The engine gathers all errors of all branches of ``anyOf`` and ``oneOf``: gigabytes for a list
    of small numbers. Behind ``not`` it gathers none. What was evaluated in there is then unknown.
    """
    if isinstance(schema, list):
        return [_without_branches(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: inner if key in {"const", "enum"} else _without_branches(inner)
        for key, inner in schema.items()
        if key not in {"unevaluatedItems", "unevaluatedProperties"}
    }
    hidden = [
        {"not": {"not": {key: kept.pop(key)}}}
        for key in ("anyOf", "oneOf")
        if isinstance(kept.get(key), list)
    ]
    return {**kept, "allOf": [*kept.get("allOf", []), *hidden]} if hidden else kept


# ---- lines


class _Fit:
    """Whether an object fits, and if not, the first reason: where, by names of the schema, and
    which keyword."""

    def __init__(
        self,
        fits: Callable[[object], bool],
        explain: Callable[[object], object],
        names: frozenset[str],
        misfit: type[Exception],
    ) -> None:
        self._fits = fits
        self._explain = explain
        self._names = names
        self._misfit: Any = misfit

    def wrong(self, fields: dict[str, Any]) -> str | None:
        """See ``CustomType``."""
        try:
            if self._fits(fields):
                return None
            self._explain(fields)
        except self._misfit as error:
            place = [self._shown(part) for part in error.instance_path]
            where = "".join(place).removeprefix(".") or "the line"
            return _plain(f"{where}: {_keyword(error)}")
        except BaseException:  # noqa: BLE001  a panic of the engine is no Exception; only the line is lost to it
            return MISFIT
        return MISFIT

    def _shown(self, part: str | int) -> str:
        if isinstance(part, int):
            return f"[{part}]"
        return f".{part}" if part in self._names else ".*"


def _keyword(error: Any) -> str:
    name: str = error.kind.name
    if name == "required":
        return f"{error.kind.property}: required"
    if name == "falseSchema":
        extra = error.schema_path[-1:] == ["additionalProperties"]
        return "additionalProperties" if extra else "not allowed"
    if name == "not":
        match error.kind.schema:
            case {"not": {"anyOf": _}}:
                return "anyOf"
            case {"not": {"oneOf": _}}:
                return "oneOf"
            case _:
                pass
    return name
