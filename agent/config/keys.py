"""The same shape as tables: keys by their path, their variables, and in words what they allow.

A section is a group of keys, and a group may hold groups: ``quota.client.events_per_s``. The whole
is the group whose path is empty.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_type_hints

from msgspec import inspect as mi

from agent.config.sections import Config
from agent.core.policy import Policy

PREFIX = "FEEDBACK_AGENT_"


class Key(NamedTuple):
    hint: object
    """The annotation, for msgspec."""
    info: mi.Type
    """The same, to look into."""
    default: object
    """``NODEFAULT`` for a key that must be given."""


@cache
def groups() -> dict[str, type[Policy]]:
    """Every group by its path, each before those within it."""
    return dict(_groups("", Config))


@cache
def keys() -> dict[str, Key]:
    """Every key by its path, in the order of the sections."""
    return dict(_keys("", Config))


def members(group: str) -> list[str]:
    """Return the names of what is directly in ``group``: keys, and groups."""
    return [f.name for f in _fields(groups()[group])]


def within(group: str, name: str) -> str:
    """Return the path of ``name`` in ``group``."""
    return f"{group}.{name}" if group else name


def environment_name(key: str) -> str:
    """Return the variable that sets ``key``: ``FEEDBACK_AGENT_KAFKA__TOPIC``."""
    return PREFIX + key.replace(".", "__").upper()


def _groups(path: str, struct: type[Policy]) -> Iterator[tuple[str, type[Policy]]]:
    yield path, struct
    for f in _fields(struct):
        if (inner := _struct(f.type)) is not None:
            yield from _groups(within(path, f.name), inner)


def _keys(path: str, struct: type[Policy]) -> Iterator[tuple[str, Key]]:
    hints = get_type_hints(struct, include_extras=True)
    for f in _fields(struct):
        inner, at = _struct(f.type), within(path, f.name)
        if inner is None:
            yield at, Key(hints[f.name], f.type, f.default)
        else:
            yield from _keys(at, inner)


def _fields(struct: type[Policy]) -> tuple[mi.Field, ...]:
    info = mi.type_info(struct)
    assert isinstance(info, mi.StructType)
    return info.fields


def _struct(info: mi.Type) -> type[Policy] | None:
    if not isinstance(info, mi.StructType):
        return None
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
        case mi.BoolType():
            words = "true or false"
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


def bare(info: mi.Type) -> mi.Type:
    """Return the type without its bounds and without ``or null``."""
    if isinstance(info, mi.Metadata):
        return bare(info.type)
    if isinstance(info, mi.UnionType):
        return bare(next(t for t in info.types if not isinstance(t, mi.NoneType)))
    return info
