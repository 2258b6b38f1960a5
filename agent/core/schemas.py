"""Types of a team's own: what ``core/decode`` must know of each. Pure.

How a line is held against a JSON Schema, and where one comes from, is known to ``agent/schemas``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Union

import msgspec
from msgspec import Struct

from agent.core import events


class CustomType(Struct, frozen=True):
    """One type.

    Attributes:
        names: Of fields that its schema names. Others count as unknown ones.
        wrong: Says what a schema finds wrong with the object of a line, without its payload; None
            for nothing. Total.
    """

    names: frozenset[str]
    wrong: Callable[[dict[str, Any]], str | None]


class Schemas(Struct, frozen=True):
    """All of them by their names; one of a built-in type's name takes its place.

    ``version`` changes with the files.
    """

    types: Mapping[str, CustomType]
    version: str


NO_SCHEMAS: Final = Schemas(MappingProxyType({}), "")


def plain_decoder(replaced: Mapping[str, CustomType]) -> Callable[[bytes], Any]:
    """Return what decodes plain lines of the built-in types but for those ``replaced``.

    It raises ``msgspec.ValidationError`` for all others.
    """
    kinds = tuple(kind for name, kind in events.EVENT_TYPES.items() if name not in replaced)
    if not kinds:
        return _nothing
    return msgspec.json.Decoder(Union[kinds]).decode  # noqa: UP007  known at run time


def _nothing(_line: bytes) -> None:
    raise msgspec.ValidationError
