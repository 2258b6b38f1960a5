"""Text as the rules of redaction look at it, and the way back to the text as it was. Pure.

Each character is folded alone: NFKC, decimal digits of any script to 0-9, dashes to ``-``, spaces
to a space; marks and what is not visible vanish. So an address in full-width letters, one that is
split by zero-width spaces and digits with keycaps read like the plain ones. Character by character
it is linear, which NFKC of a whole text is not: a long run of marks costs it quadratic time.
"""

import re
import unicodedata
from typing import Final

CACHED_MAX: Final = 1 << 16

_VISIBLE_NOT: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Ignorable by default (Unicode, DerivedCoreProperties), and neither marks nor format characters,
or folded to one."""
_FULL_STOPS: Final = frozenset("\u3002\uff61")
"""What IDNA takes for the dot of a domain name (RFC 3490, 3.1), and NFKC does not."""
_VANISHING: Final = "\u200b"
_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])')
_ESCAPED: Final = {r"\"": '"', r"\\": "\\", r"\/": "/", r"\n": "\n", r"\r": "\r", r"\t": "\t"}


_FOREIGN = re.compile(
    "[\x00-\x7f"  # ASCII, then Latin
    "\u00a1-\u00a7\u00a9\u00ab\u00ac\u00ae\u00b0\u00b1\u00b5-\u00b7\u00bb\u00bf"
    "\u00c0-\u0131\u0134-\u013e\u0141-\u0148\u014a-\u017e\u0180-\u01c3\u01cd-\u01f0\u01f4-\u02af"
    "\u0388-\u03ff\u0400-\u0482\u048a-\u052f\u05d0-\u05ea\u0620-\u064a"  # Greek to Arabic
    "\u3041-\u3096\u30a1-\u30fe\u3001\u4e00-\u9fff\uac00-\ud7a3"  # Japanese, Chinese, Korean
    "\u2018-\u201f\u2022\u20ac\u2600-\u27bf"  # quotes, a bullet, the euro, symbols
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001f9ff"  # emoji
    "]*"
)
"""Scripts that fold to themselves: what most texts beyond ASCII are made of."""


class _Folds(dict[int, str]):
    """What each code point is folded to, found when it is first met."""

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        if len(self) < CACHED_MAX:
            self[code] = folded
        return folded


def _fold(character: str) -> str:
    if character in _VISIBLE_NOT or character in _FULL_STOPS:
        return "." if character in _FULL_STOPS else ""
    return "".join(map(_plain, unicodedata.normalize("NFKC", character)))


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or character == "\u2212":
        return "-"
    if category.startswith("Z"):
        return " "
    vanishes = category in {"Mn", "Me", "Cf"} or character in _VISIBLE_NOT
    return "" if vanishes else character


_folds: Final = _Folds()


def folds(text: str) -> bool:
    """Return False only if folding puts no ASCII into ``text`` and takes nothing out of it."""
    return not text.isascii() and _FOREIGN.fullmatch(text) is None


def folded(text: str) -> str:
    """Return what the rules look at."""
    return text if text.isascii() else text.translate(_folds)


def unfolded(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where in ``text`` those parts of ``folded(text)`` came from, in the same order."""
    if text.isascii():
        return spans
    origin = [at for at, character in enumerate(text) for _ in _folds[ord(character)]]
    return [(origin[start], origin[end - 1] + 1) for start, end in spans]


def without_escapes(text: str) -> str:
    """Resolve the escapes of JSON in ``text``, as long as before: what is over vanishes in folding.

    A control character and a lone surrogate vanish whole.
    """
    return _ESCAPE.sub(_resolved, text) if "\\" in text else text


def _resolved(match: re.Match[str]) -> str:
    return _ESCAPED.get(match[0], "").ljust(len(match[0]), _VANISHING)
