"""The cheap test before redaction: may these bytes hold personal data? Pure; linear time.

It may only err to one side: what it lets pass, no rule finds (tests hold it to that). Of many lines
each character is looked at by a pass or two in C, and in Python only where as many digits as a
phone has stand together.
"""

import re
from collections.abc import Iterator
from typing import Final

_DIGITS: Final = bytes.maketrans(b"0123456789", b"0" * 10)
_SEPARATORS: Final = b" ./()-"  # six
_SEPARATORS_BUT_DOT: Final = _SEPARATORS.replace(b".", b"")
_RUNS: Final = bytes.maketrans(b"0123456789" + _SEPARATORS, b"0" * 16)
_RUN = re.compile(b"0+")
_HEXTETS = re.compile(rb":(?::|(?:[0-9A-Fa-f]{1,4}:){5})")
"""The colons of an IPv6 address: two together, or six at least. The colon that a pattern begins
with is searched for in C; ``b"::" in`` takes twice as long."""
_ID_CHARACTERS: Final = 24
"""The longest of what ``_ID`` finds, and more."""
_LONG: Final = b"0" * 7
"""No phone, card, IBAN or social security number has fewer digits, separators apart."""
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
_WHOLE_ID = re.compile(rb'"[A-Za-z][_-][0-9A-Fa-f]{7,12}"')
"""A whole string of JSON, behind one of ``_BEFORE_A_STRING``: no word before it can say what its
digits are, a letter and a dash keep it from being a phone, and a card has more of them."""
_BEFORE_A_STRING: Final = b":,[{"
_COLON: Final = ord(":")


def suspicious(raw: bytes) -> bool:
    """Return False only if no rule of ours finds anything in a folded text, or JSON of such."""
    return (
        (_LONG in raw.translate(_RUNS) and _has_long(raw))
        or _AT in raw
        or (_PERCENT in raw and b"%40" in raw)
        or _HEXTETS.search(raw) is not None
    )


def suspects(lines: bytes) -> set[int]:
    """Return which lines of compact JSON, from 0 on, are suspicious in more than their numbers."""
    found = [*_long_runs(lines), *(match.start() for match in _HEXTETS.finditer(lines))]
    if _AT in lines:
        found += _starts(b"@", lines)
    if _PERCENT in lines:
        found += _starts(b"%40", lines)
    return {lines.count(b"\n", 0, at) for at in found}


def _long_runs(lines: bytes) -> Iterator[int]:
    """Yield where digits, and what may stand between them, are as many as a rule needs.

    Numbers of JSON and ids are passed over. What a rule finds by its digits has seven of them, or
    it is an address: four numbers and three dots.
    """
    runs, end = lines.translate(_RUNS), 0
    while (at := runs.find(_LONG, end)) >= 0:
        if (known := _known(lines, at)) is not None and known.end() >= at + len(_LONG):
            end = known.end()
            continue
        run = _RUN.match(runs, at)
        assert run is not None, "it begins there"
        end = run.end()
        digits = lines[at:end].translate(_DIGITS, _SEPARATORS_BUT_DOT)
        if len(digits) - digits.count(b".") >= len(_LONG) or _FOUR_NUMBERS.search(digits):
            yield at


def _known(lines: bytes, at: int) -> re.Match[bytes] | None:
    """Return the id or the number of JSON that the digits at ``at`` are part of, if any."""
    quote = lines.rfind(b'"', max(0, at - _ID_CHARACTERS), at)
    if quote < 0:
        return None
    if quote == at - 2 and lines[at - 1] == _COLON:
        return _NUMBER.match(lines, quote)
    opens = quote > 0 and lines[quote - 1] in _BEFORE_A_STRING
    return (_WHOLE_ID.match(lines, quote) if opens else None) or _ID.match(lines, quote)


def _has_long(raw: bytes) -> bool:
    """Return whether ``raw`` has as many digits together as a rule needs, ids passed over."""
    digits = _ID.sub(b"x", raw).translate(_DIGITS, _SEPARATORS)
    return _LONG in digits or _FOUR_NUMBERS.search(raw.translate(_DIGITS)) is not None


def _starts(needle: bytes, text: bytes) -> Iterator[int]:
    at = -1
    while (at := text.find(needle, at + 1)) >= 0:
        yield at
