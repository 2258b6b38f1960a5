"""Bytes in, whole lines out, with the byte range of each. Pure: the caller owns the file.

Nothing of an unfinished line is kept: a torn line is read again when the file has grown.
So a known file costs a few integers and ``TAIL_BYTES``, whatever its writer does.
"""

from typing import NamedTuple

TAIL_BYTES = 64
"""How many bytes before a position are remembered, to notice that a file was truncated."""

CHUNK_BYTES = 256 << 10
"""What one read asks for, unless a single line is longer."""


class Piece(NamedTuple):
    """The lines that one read completed: ``[start, end)`` without a gap."""

    start: int
    end: int
    skipped_to: int  # [start, skipped_to) is one line over the limit; equals start if none is
    lines: list[bytes]  # the bodies from skipped_to on, without their LF


class Cursor:
    """Where in one generation of a file the next read begins, and how long it is.

    Args:
        offset: Byte offset of the first line that was not handed out yet.
        tail: The at most ``TAIL_BYTES`` bytes before ``offset``.
        line_bytes_max: Longest body, without its LF. A longer line is passed over as it
            streams by and appears as ``Piece.skipped_to``; memory stays at one read.
    """

    __slots__ = ("_line_bytes_max", "_passed", "start", "tail", "want")

    def __init__(self, offset: int, tail: bytes, line_bytes_max: int) -> None:
        assert len(tail) == min(TAIL_BYTES, offset), "the tail must be what stands before offset"
        self.start = offset
        self.tail = tail
        self.want = CHUNK_BYTES
        self._line_bytes_max = line_bytes_max
        self._passed = 0  # bytes of an oversize line, from start on, that are behind us

    @property
    def at(self) -> int:
        """Return the offset of the next read."""
        return self.start + self._passed

    def feed(self, read: bytes) -> Piece | None:
        """Take the tail and the bytes found at ``at``, as one read gave them.

        Returns the lines they complete, or None when they complete none.
        """
        skip = len(self.tail)
        assert read.startswith(self.tail), "a truncated file must not be fed"
        cut = read.rfind(b"\n", skip) + 1
        if cut == 0:
            self._grow(read, skip)
            return None
        first = skip
        if self._passed:
            first = read.index(b"\n", skip) + 1
        start, skipped_to = self.start, self.at + first - skip
        end = self.at + cut - skip
        lines = read[first : cut - 1].split(b"\n") if cut > first else []
        self._move(end, read[:cut], passed=0)
        self.want = CHUNK_BYTES
        return Piece(start, end, skipped_to, lines)

    def _grow(self, read: bytes, skip: int) -> None:
        """Make room for a line longer than one read, or begin to pass it over."""
        got = len(read) - skip
        if self._passed or got > self._line_bytes_max:
            self._move(self.start, read, passed=self._passed + got)
            self.want = CHUNK_BYTES
        elif got >= self.want:
            self.want = min(2 * self.want, self._line_bytes_max + 1)

    def _move(self, start: int, read: bytes, *, passed: int) -> None:
        self.start, self._passed = start, passed
        self.tail = read[-TAIL_BYTES:]
