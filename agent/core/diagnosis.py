"""Why a line is refused, in our own words and the names of known fields. Pure.

A message of msgspec is read for what was expected and never passed on: it can quote the payload.
"""

import json
import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.core import events
from agent.core.reasons import Reason

UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises on a line; a ``UnicodeDecodeError`` is a ``ValueError``."""


class Rejection(Struct, frozen=True):
    """Why a line cannot be an event.

    ``detail`` is for people, and free of payload; ``event_type`` is a known or custom one or None.
    """

    reason: Reason
    detail: str
    event_type: str | None = None


_encode = msgspec.json.Encoder().encode
_TOO_DEEP: Final = Rejection("too_deep", f"nested deeper than {events.DEPTH_MAX}")
_KNOWN_NAMES: Final = frozenset[str]().union(
    {"type"},
    *(kind.__struct_fields__ for kind in events.EVENT_TYPES.values()),
    *(part.__struct_fields__ for parts in events.PARTS.values() for part in parts.values()),
)
_MISSING = re.compile(r"Object missing required field `([a-z_]+)`")
_PATH = re.compile(r" - at `\$((?:\.[a-z_]+|\[[0-9]+\]|\[\.\.\.\])*)`\Z")
_EXPECTED = re.compile(
    r"Expected `([a-z |]+)`(?:, got `[a-z]+`)?"
    r"((?: of length)? [<>]=? -?[0-9]+(?:\.[0-9]+)?)?(?: - at `|\Z)"
)


def refuse(line: bytes) -> Rejection:
    """Name the input limit that a line breaks which is no JSON object within all of them."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Rejection("invalid_utf8", f"at byte {error.start}")
    try:
        value = msgspec.json.decode(line)
    except RecursionError:
        return _TOO_DEEP
    except UNREADABLE:
        return _refuse_text(text)
    level, depth = [value], 1
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict | list):
                if depth > events.DEPTH_MAX:
                    return _TOO_DEEP
                inner.extend(item.values() if isinstance(item, dict) else item)
            elif isinstance(item, int) and not events.INTEGER_MIN <= item <= events.INTEGER_MAX:
                return Rejection("number", "an integer beyond 64 bits")
        level, depth = inner, depth + 1
    return Rejection("not_an_object", "JSON, but not an object")


def _refuse_text(text: str) -> Rejection:
    """Name what msgspec cannot read at all; Python's parser is laxer about numbers and surrogates.

    What it reads and we refused is therefore one of these two.
    """
    try:
        _encode(json.loads(text, parse_int=_zero, parse_float=_zero, parse_constant=_zero))
    except RecursionError:
        return _TOO_DEEP
    except UnicodeEncodeError:
        return Rejection("invalid_utf8", "a lone surrogate")
    except json.JSONDecodeError as error:
        return Rejection("invalid_json", f"at character {error.pos}")
    return Rejection("number", "not finite, or beyond 64 bits")


def _zero(_number: str) -> int:
    return 0


def explain(message: str) -> str:
    """Say in our words, with names of known fields only, what msgspec's ``message`` says."""
    if missing := _MISSING.match(message):
        return f"{missing[1]}: required"
    at = _PATH.search(message)
    path = at[1].removeprefix(".").replace("[...]", "[]") if at else ""
    assert _KNOWN_NAMES.issuperset(re.findall("[a-z_]+", path)), "paths name our own fields only"
    expected = _EXPECTED.match(message)
    wanted = f"expected {expected[1]}{expected[2] or ''}" if expected else "not an allowed value"
    return f"{path}: {wanted}"
