"""Since when the oldest line above a watermark is on disk, told from what scans saw. Pure.

A scan sees how long a file is and when it was last written to: all that it holds was there by then.
So the first byte above the watermark is at least as old as the last write that the first scan saw
which met it. A file keeps few such marks; where it would need more, neighbours are joined, and a
line may then seem older than it is, at most as old as the one it is joined with.
"""

from msgspec import Struct

from agent.core.discovery import FileKey, Seen

MARKS_MAX = 8
"""Of one file; only one that grows while it is behind for many scans needs them."""


class _Mark(Struct, frozen=True, gc=False):
    """All below ``size`` was on disk at ``at_s``."""

    size: int
    at_s: float


class Waits:
    """Remembers files that are behind, from one scan to the next."""

    def __init__(self) -> None:
        self._before: dict[FileKey, tuple[_Mark, ...]] = {}
        self._marks: dict[FileKey, tuple[_Mark, ...]] = {}

    def begin(self) -> None:
        """Note another scan. Files that were not behind in the one before are forgotten."""
        self._before, self._marks = self._marks, {}

    def since(self, seen: Seen, watermark: int) -> float:
        """Return since when the oldest line of a file waits that is behind: an epoch."""
        key = seen.key
        marks = self._marks[key] = _marked(self._before.pop(key, ()), seen, watermark)
        return marks[0].at_s


def _marked(marks: tuple[_Mark, ...], seen: Seen, watermark: int) -> tuple[_Mark, ...]:
    if marks and seen.size < marks[-1].size:  # truncated: what waited then is gone
        marks = ()
    marks = tuple(mark for mark in marks if mark.size > watermark)
    if not marks or seen.size > marks[-1].size:
        marks = (*marks, _Mark(seen.size, seen.mtime_ns / 1e9))
    if len(marks) > MARKS_MAX:
        *older, newest = marks
        pairs = zip(older[::2], older[1::2], strict=True)
        marks = (*(_Mark(more.size, less.at_s) for less, more in pairs), newest)
    return marks
