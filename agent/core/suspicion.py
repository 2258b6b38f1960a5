"""The cheap test before redaction: may these bytes hold personal data? Pure; linear time.

It may only err to one side: what it lets pass, no rule finds (tests hold it to that). First what is
left without letters, a fifth of most texts; doubts are looked at again.
"""

import re
from collections.abc import Iterator
from typing import Final

_DIGITS: Final = bytes.maketrans(b"0123456789", b"0" * 10)
_SEPARATORS: Final = b" ./()-"
_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"
_LONG: Final = b"0" * 7
"""No phone, card, IBAN or social security number has fewer digits, separators apart."""
_FLESH: Final = bytes(set(range(256)) - set(b"0123456789.:@%,\n"))
_AT, _PERCENT = b"@%"  # integers: ``b"@" in`` costs seven times as much, ``find`` half of that
_FOUR_NUMBERS = re.compile(rb"0\.0{1,3}\.0{1,3}\.0")
_NUMBER = re.compile(rb'":(?<=[A-Za-z0-9_]":)-?[0-9][0-9.eE+-]*(?=[,}])')
"""A number of JSON without blanks: behind the name of a field. Within a text its quote would have a
backslash before it, and at the beginning of one a bracket, a comma or a colon. It begins with what
is searched for in C; the look behind comes after, and so at few places."""
_ID = re.compile(
    rb'"(?:(?:[A-Za-z]|[A-Za-z]{3,16})[_-])?(?=[0-9a-fA-F]{8,14}")'
    rb'(?:[0-9]+[a-fA-F]|[a-fA-F]+[0-9]|(?<="[A-Za-z][_-])[0-9])[0-9a-fA-F]*(?<![0-9]{9})(?=")'
)
"""A short hexadecimal id in quotes, as ``"s-60475084f1"``: a tenth has seven digits in a row.

No rule finds anything in it. A phone, a card, a social security number are words of digits alone,
behind no ``u-``, or there is a word right before them, and none of those has only letters from a to
f; where card or number are named a letter may stand before, but there are more than eight digits at
the end. An IBAN has fifteen characters or more, and begins with two letters and two digits.
"""


def suspicious(raw: bytes) -> bool:
    """Return False only if no rule of ours finds anything in a folded text, or JSON of such."""
    return next(_suspects(raw, json=False), None) is not None


def suspects(lines: bytes) -> set[int]:
    """Return which lines of compact JSON, from 0 on, are suspicious in more than their numbers."""
    return set(_suspects(lines, json=True))


def _suspects(raw: bytes, *, json: bool) -> Iterator[int]:
    """Yield the numbers of suspicious lines, some of them more than once."""
    bones = raw.translate(_DIGITS, _FLESH)
    if _AT in bones:
        yield from _lines_with(b"@", bones)
    if _PERCENT in bones:
        yield from _lines_with(b"%40", raw)
    if bones.replace(b".", b"").find(_LONG) >= 0:
        lines = raw.split(b"\n")
        for at in _lines_with(_LONG, raw.translate(_DIGITS, _SEPARATORS)):
            line = _NUMBER.sub(b"", lines[at]) if json else lines[at]
            if (json and not _is_long(line)) or not _is_long(_ID.sub(b"x", line)):
                continue
            yield at
    if bones.find(b"0.0") >= 0 and _FOUR_NUMBERS.search(bones):
        yield from _lines_with(b"!", _FOUR_NUMBERS.sub(b"!", bones))
    if bones.translate(None, b"0").find(b"::") >= 0:
        yield from _lines_with(b"::", raw.translate(None, _HEX_DIGITS))


def _is_long(line: bytes) -> bool:
    return _LONG in line.translate(_DIGITS, _SEPARATORS)


def _lines_with(needle: bytes, text: bytes) -> Iterator[int]:
    line, at = 0, 0
    while (found := text.find(needle, at)) >= 0:
        line += text.count(b"\n", at, found)
        yield line
        at = text.find(b"\n", found)
        if at < 0:
            return
