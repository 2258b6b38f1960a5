"""From the file and the environment to what was given, and where. Its types come later."""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Never

import yaml
from msgspec import inspect as mi

from agent.config.keys import (
    PREFIX,
    allowed,
    bare,
    environment_name,
    groups,
    keys,
    members,
    within,
)
from agent.config.showing import plain, shown
from agent.core.policy import MIB
from agent.errors import ConfigError

FILE_BYTES_MAX = MIB


class Given(NamedTuple):
    value: object
    where: str
    """The file and line, or the environment variable, then the key path."""


def from_file(path: Path) -> dict[str, Given]:
    """Return what the file gives, by key path. Raises ``ConfigError``."""
    file = plain(str(path))
    loader = yaml.SafeLoader(_bytes_of(path, file))
    try:
        root = loader.get_single_node()
    except RecursionError:
        raise ConfigError(file, "found values nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(*_problem(file, error)) from None
    return dict(_given_in("", root, loader, file))


def _given_in(
    group: str, node: yaml.Node | None, loader: yaml.SafeLoader, file: str
) -> Iterator[tuple[str, Given]]:
    for name, line, value in _pairs(node, file, group):
        key = within(group, name)
        where = f"{file}:{line}: {key}"
        if name not in members(group):
            _unknown(where, group, name)
        if key in groups():
            yield from _given_in(key, value, loader, file)
            continue
        try:
            built = loader.construct_object(value, deep=True)
        except Exception:  # noqa: BLE001  PyYAML lets out whatever its conversions raise
            detail = f"found no value of its YAML type; allowed: {allowed(keys()[key].info)}"
            raise ConfigError(where, detail) from None
        yield key, Given(built, where)


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
        detail = f"found a character that YAML does not allow: {shown(bad.group())}"
        raise ConfigError(f"{file}:{line}", detail)
    return raw


def _problem(file: str, error: Exception) -> tuple[str, str]:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        problem = plain(error.problem or "malformed")
        return f"{file}:{error.problem_mark.line + 1}", f"found no valid YAML: {problem}"
    return file, "found no valid YAML"


def _pairs(node: yaml.Node | None, file: str, group: str) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield (name, line, value) of a group's mapping. An empty one may be written as nothing."""
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        where = f"{file}:{node.start_mark.line + 1}" + (f": {group}" if group else "")
        allowed_here = f"a mapping of {', '.join(members(group))}"
        raise ConfigError(where, f"found {_kind(node)}; allowed: {allowed_here}")
    seen: dict[str, int] = {}
    for key, value in node.value:
        name = plain(key.value) if isinstance(key, yaml.ScalarNode) else _kind(key)
        line = key.start_mark.line + 1
        if name in seen:
            detail = f"found twice, the first on line {seen[name]}; allowed: once"
            raise ConfigError(f"{file}:{line}: {within(group, name)}", detail)
        seen[name] = line
        yield name, line, value


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.CollectionNode):
        return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    return "a single value"


def _unknown(where: str, group: str, name: str) -> Never:
    known = [*keys(), *groups()]
    near = [path for path in known if path.endswith(f".{name}")][:2]
    like = [path for path in known if path] if group else members("")
    near = near or difflib.get_close_matches(within(group, name), like, 1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(where, f"unknown key; {hint}allowed: {', '.join(members(group))}")


def from_environ(environ: Mapping[str, str]) -> dict[str, Given]:
    """Return what variables give, by key path; each is one YAML scalar. Raises ``ConfigError``."""
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
            raise ConfigError(plain(name), f"unknown variable; {hint}")
        key = names[name]
        given[key] = Given(_from_text(environ[name], keys()[key].info), f"{name}: {key}")
    return given


def _from_text(text: str, info: mi.Type) -> object:
    """Read a variable as a YAML scalar. Where text is wanted, ``0123`` and ``on`` are text."""
    info = bare(info)
    if isinstance(info, mi.VarTupleType) and not text.lstrip().startswith("["):
        return text
    try:
        value = yaml.safe_load(text)
    except Exception:  # noqa: BLE001  as above; such text then fails, or is a legal text
        return text
    if isinstance(info, mi.StrType | mi.CustomType | mi.LiteralType):
        return value if isinstance(value, str | None) else text
    return value
