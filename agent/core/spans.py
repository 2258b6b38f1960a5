"""Places in a text, as what is found there. Pure."""

import re
from collections.abc import Iterable
from typing import Final

Span = tuple[int, int]
"""Start and end, in characters."""
_BLANK: Final = "\0"


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return ``spans`` in order, those that overlap as one, empty ones left out."""
    whole: list[Span] = []
    for start, end in sorted(spans):
        if start == end:
            continue
        if whole and start < whole[-1][1]:
            whole[-1] = whole[-1][0], max(end, whole[-1][1])
        else:
            whole.append((start, end))
    return whole


def blanked(text: str, spans: list[Span]) -> str:
    """Hide ``spans`` from the rules that come after, every place where it was."""
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], _BLANK * (end - start)]
        at = end
    return "".join((*parts, text[at:])) if parts else text


def blank(match: re.Match[str]) -> str:
    """Return what hides ``match``."""
    return _BLANK * len(match[0])
