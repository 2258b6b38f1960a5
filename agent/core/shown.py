"""What a dead letter shows of its line: decoded, unescaped, cut, redacted, in that order. Pure."""

import codecs
import re
from typing import Final

from agent.core.diagnosis import Rejection
from agent.core.redact import FAILED, Redactor

CUT_DROPPED: Final = 256
"""Characters given up before a cut, which could have halved what redaction looks for."""


def shown_text(
    line: bytes, rejection: Rejection, redactor: Redactor | None, bytes_max: int, *, torn: bool
) -> tuple[str, bool] | Rejection:
    """Return the text of a dead letter and whether it was cut, or why it has none.

    ``torn``: ``line`` is only the beginning of one.
    """
    if rejection is FAILED:
        return FAILED
    try:
        text, _ = codecs.utf_8_decode(line, "strict", not torn)
    except UnicodeDecodeError:
        return rejection
    text, cut = _cut(_ESCAPES.sub(_unescape, text), bytes_max, torn=torn)
    if redactor is None:
        return text, cut
    try:
        text = redactor.json_text(text)
    except Exception:  # noqa: BLE001  whatever fails, the payload must not leave
        return FAILED
    # a marker may be longer than what it hides
    text, longer = _cut(text, bytes_max, torn=False)
    return text, cut or longer


def _unescape(match: re.Match[str]) -> str:
    r"""Resolve an escape of JSON that hides a character, keep one that JSON needs.

    ``\u0040`` would hide an address from redaction; a quote, a backslash, a control character or
    a lone surrogate stays escaped, so what was JSON still is.
    """
    escape = match[0]
    if escape == r"\/":
        return "/"
    if escape[1] != "u":
        return escape
    units = bytes.fromhex(escape.replace(r"\u", ""))
    try:
        character = units.decode("utf-16-be")
    except UnicodeDecodeError:
        return escape
    return escape if character in '"\\' or character < " " else character


def _cut(text: str, bytes_max: int, *, torn: bool) -> tuple[str, bool]:
    """Return ``text`` whole, or what is safe to show of its beginning."""
    encoded = text.encode()
    if len(encoded) > bytes_max:
        text, torn = encoded[:bytes_max].decode(errors="ignore"), True
    return (text[:-CUT_DROPPED], True) if torn else (text, False)


_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.", re.DOTALL
)
