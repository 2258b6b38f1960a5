"""Forms that C cannot check: timestamps of RFC 3339 and UUIDs. Pure."""

import re
from datetime import UTC, datetime
from typing import Final

# A shape is what is left of a text when every digit has become 0: one pass in C and one look-up,
# where a regular expression costs twice as much.
HEX_DIGITS: Final = bytes.maketrans(b"0123456789abcdef", b"0" * 16)
UUID_SHAPE: Final = b"00000000-0000-0000-0000-000000000000"
DIGITS: Final = bytes.maketrans(b"0123456789", b"0" * 10)
TIMESTAMP_SHAPES: Final = frozenset(
    b"0000-00-00T00:00:00" + fraction + offset
    for fraction in (b"", *(b"." + b"0" * digits for digits in range(1, 10)))
    for offset in (b"Z", b"+00:00", b"-00:00")
)
"""Of timestamps that ``datetime.fromisoformat`` reads like RFC 3339, but for offsets as +00:99."""

_UUID_LENIENT = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}(?:\1[0-9a-f]{4}){2}\1[0-9a-f]{12}")

_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]"
    r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(\.[0-9]+)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)


def epoch_s(timestamp: str) -> float | None:
    """Return seconds since 1970 UTC of an RFC 3339 timestamp with offset, None if it is not one.

    RFC 3339, 5.6: lower-case t and z are allowed, and so is second 60. The year 0000 counts as
    the year 4, the first leap year that Python knows.
    """
    match = _TIMESTAMP.fullmatch(timestamp)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, off_hours, off_minutes = match.groups()
    try:
        date = datetime(int(year) or 4, int(month), int(day), int(hour), int(minute), tzinfo=UTC)
    except ValueError:
        return None
    offset_s = 0
    if sign:
        offset_s = int(off_hours) * 3600 + int(off_minutes) * 60
    whole = date.timestamp() + int(second) - (offset_s if sign == "+" else -offset_s)
    return whole + float(fraction) if fraction else whole


def canonical_uuid(text: str) -> str | None:
    """Return a UUID in canonical lower case, None if ``text`` is none.

    Accepted in either case, with all of its four hyphens or without any.
    """
    lower = text.lower()
    if not lower.isascii() or _UUID_LENIENT.fullmatch(lower) is None:
        return None
    bare = lower.replace("-", "")
    return f"{bare[:8]}-{bare[8:12]}-{bare[12:16]}-{bare[16:20]}-{bare[20:]}"


def is_canonical_uuid(text: str) -> bool:
    return text.encode().translate(HEX_DIGITS) == UUID_SHAPE


def is_hex(text: str) -> bool:
    return not text.strip("0123456789abcdefABCDEF")
