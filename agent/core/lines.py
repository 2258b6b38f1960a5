"""Bytes in, whole lines out, with the byte range of each. Pure: the caller owns the file.

Nothing of an unfinished line is kept: a torn line is read again when the file has grown.
So a known file costs a few integers and ``TAIL_BYTES``, whatever its writer does.

Where NUL bytes stand at the beginning of a line, nobody wrote them: a file was truncated under a
writer that goes on at its old position, or a power cut left a size without content. Such a hole is
passed over once something stands behind it, and not before: a file that was allocated ahead is
filled from the front.
"""

from typing import Literal, NamedTuple

TAIL_BYTES = 512
"""How many bytes before a position are remembered, to notice that a file was truncated.

Mostly a whole line, and so its time and id: the ends of lines may all be alike.
"""

CHUNK_BYTES = 256 << 10
"""What one read asks for, unless a single line is longer."""

Skipped = Literal["oversize", "hole", "unterminated"]
"""Bytes that are no line: one over the limit, NULs, or what a file that is gone ended with."""

NUL = b"\0"
_NUL = 0


class Piece(NamedTuple):
    """The lines that one read completed: ``[start, end)`` without a gap."""

    start: int
    end: int
    skipped_to: int  # [start, skipped_to) is what ``skipped`` says; equals start if there is none
    lines: list[bytes]  # the bodies from skipped_to on, without their LF
    skipped: Skipped = "oversize"
    hollow: bool = False  # a line may hold NULs


class Cursor:
    """Where in one generation of a file the next read begins, and how long it is.

    Args:
        offset: Byte offset of the first line that was not handed out yet.
        tail: The at most ``TAIL_BYTES`` bytes before ``offset``.
        line_bytes_max: Longest body, without its LF. A longer line is passed over as it
            streams by and appears as ``Piece.skipped_to``; memory stays at one read.
    """

    __slots__ = ("_before", "_line_bytes_max", "_passed", "in_hole", "start", "tail", "want")

    def __init__(self, offset: int, tail: bytes, line_bytes_max: int) -> None:
        assert len(tail) == min(TAIL_BYTES, offset), "the tail must be what stands before offset"
        self.start = offset
        self.tail = tail
        self.want = CHUNK_BYTES
        self.in_hole = False  # all bytes passed are NUL, from start on
        self._line_bytes_max = line_bytes_max
        self._passed = 0  # bytes of an oversize line or of a hole, from start on, behind us
        self._before = tail  # what stands before start, while the tail is of another place

    @property
    def at(self) -> int:
        """Return the offset of the next read."""
        return self.start + self._passed

    @property
    def passing(self) -> bool:
        """Return whether the next read begins within an oversize line or a hole."""
        return self._passed > 0

    @property
    def midway_bytes(self) -> int:
        """Return how much of a line or of a hole that is longer than one read was read, and would
        have to be read again from its beginning; 0 where none is under way."""
        return self._passed + max(0, self.want - CHUNK_BYTES)

    def feed(self, read: bytes) -> Piece | None:
        """Take the tail and the bytes found at ``at``, as one read gave them.

        Returns the lines they complete, or None when they complete none.
        """
        skip = len(self.tail)
        assert read.startswith(self.tail), "a truncated file must not be fed"
        if self.in_hole:
            return self._through_hole(read, skip)
        cut = read.rfind(b"\n", skip) + 1
        if cut == 0:
            return self._grow(read, skip)
        first = skip
        if self._passed:
            first = read.index(b"\n", skip) + 1
        start, skipped_to = self.start, self.at + first - skip
        end = self.at + cut - skip
        lines = read[first : cut - 1].split(b"\n") if cut > first else []
        self._move(end, read[max(0, cut - TAIL_BYTES) : cut], passed=0)
        self.want = CHUNK_BYTES
        return Piece(start, end, skipped_to, lines, hollow=_NUL in read)

    def hop(self, offset: int) -> None:
        """Pass over a hole of the file system, which reads as NULs, up to ``offset``."""
        assert self.passing, "a line could begin in it"
        if offset - self.at >= TAIL_BYTES:
            self._passed = offset - self.start
            self.tail = NUL * TAIL_BYTES

    def rewind(self) -> None:
        """Go back to where a hole began: it is being filled."""
        assert self.in_hole
        self._move(self.start, self._before, passed=0)
        self.in_hole = False

    def finish(self, read: bytes) -> Piece | None:
        """Hand out what the file ends with, given its last read: there will be no newline."""
        rest = read[len(self.tail) :]
        end = self.at + len(rest)
        if end == self.start:
            return None
        hole = (self.in_hole or not self._passed) and not rest.strip(NUL)
        return self._skip(end, read, "hole" if hole else "unterminated")

    def _grow(self, read: bytes, skip: int) -> Piece | None:
        """Make room for a line longer than one read, or begin to pass it or a hole over."""
        got = len(read) - skip
        full = got >= min(self.want, self._line_bytes_max + 1)
        if full and not self._passed and read[skip] == 0:
            self._before, self.in_hole = self.tail, True
            return self._through_hole(read, skip)
        if self._passed or got > self._line_bytes_max:
            self._move(self.start, read, passed=self._passed + got)
            self.want = CHUNK_BYTES
        elif got >= self.want:
            self.want = min(2 * self.want, self._line_bytes_max + 1)
        return None

    def _through_hole(self, read: bytes, skip: int) -> Piece | None:
        beyond = read[skip:].lstrip(NUL)
        if beyond:
            end = self.at + len(read) - skip - len(beyond)
            return self._skip(end, read[: len(read) - len(beyond)], "hole")
        self._move(self.start, read, passed=self._passed + len(read) - skip)
        return None

    def _skip(self, end: int, read: bytes, what: Skipped) -> Piece:
        start = self.start
        self._move(end, read, passed=0)
        self.in_hole = False
        self.want = CHUNK_BYTES
        return Piece(start, end, end, [], what)

    def _move(self, start: int, read: bytes, *, passed: int) -> None:
        self.start, self._passed = start, passed
        self.tail = read[-TAIL_BYTES:]
