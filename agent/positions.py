"""Where in a file an operator wants reading to begin: at its start, its end, or at a line."""

from agent.core.identity import Readable
from agent.errors import AgentError

START, END = "start", "end"
DIGITS = 19
"""As many has the largest file."""
BLOCK_BYTES = 64 * 1024
LOOK_BYTES_MAX = 64 * 1024 * 1024
"""Looked through for the end of a line: four times what the longest line may have."""


def parsed(text: str) -> str | int | None:
    """Read ``start``, ``end`` or a number of bytes; None for anything else."""
    if text in {START, END}:
        return text
    return int(text) if text.isascii() and text.isdecimal() and len(text) < DIGITS else None


def offset_of(wanted: str | int, file: Readable) -> int:
    """Return where ``wanted`` is in ``file``: always where a line begins, or may begin.

    Raises ``AgentError`` with what to do where no line begins there, ``OSError`` as reading does.
    """
    size = file.size()
    if wanted == START:
        return 0
    if wanted == END:
        return line_start(file, size)
    assert isinstance(wanted, int)
    if wanted > size:
        raise AgentError(f"offset {wanted} is beyond the end of the file, which has {size} bytes")
    begins = line_start(file, wanted)
    if begins != wanted:
        after = _next_start(file, wanted, size)
        other = f", the next one at {after}" if after is not None else ""
        raise AgentError(f"offset {wanted} is within a line: it begins at {begins}{other}")
    return wanted


def line_start(file: Readable, offset: int) -> int:
    """Return where the line begins that ``offset`` lies in; ``offset`` if one begins there."""
    at = offset
    while at > 0:
        start = max(0, at - BLOCK_BYTES)
        found = file.pread(at - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
        if offset - at > LOOK_BYTES_MAX:
            raise AgentError(f"no line ends within {LOOK_BYTES_MAX} bytes before {offset}")
    return 0


def _next_start(file: Readable, offset: int, size: int) -> int | None:
    end = min(size, offset + LOOK_BYTES_MAX)
    for at in range(offset, end, BLOCK_BYTES):
        found = file.pread(min(BLOCK_BYTES, end - at), at).find(b"\n")
        if found >= 0:
            return at + found + 1
    return None
