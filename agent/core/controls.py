"""Control characters, which no string of an event keeps: they could drive a terminal. Pure."""

import re
from typing import Any, Final

BACKSLASH: Final = 0x5C
DEL: Final = 0x7F
"""Integers, because ``b"x" in line`` costs five times as much."""

_C1_RAW = re.compile(rb"\xc2[\x80-\x9f]")
_ESCAPED = re.compile(rb"\\(?:[bf]|u00(?:0[0-8bcefBCEF]|1[0-9a-fA-F]|7[fF]|[89][0-9a-fA-F]))")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def may_hold_controls(line: bytes) -> bool:
    """Return False only if no string of the line decodes to a control character."""
    return (
        DEL in line
        or (BACKSLASH in line and _ESCAPED.search(line) is not None)
        or (not line.isascii() and _C1_RAW.search(line) is not None)
    )


def cleaned(fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Take control characters out of all strings and keys; return how many there were."""
    removed = 0

    def clean(value: Any) -> Any:
        nonlocal removed
        if isinstance(value, str):
            value, count = _CONTROLS.subn("", value)
            removed += count
        elif isinstance(value, dict):
            return {clean(key): clean(inner) for key, inner in value.items()}
        elif isinstance(value, list):
            return [clean(inner) for inner in value]
        return value

    return clean(fields), removed
