"""Since when the oldest line above a watermark is on disk, told from what scans saw. Pure.

A scan sees how long a file is and when it was last written to: all that it holds was there by then.
So the first byte above the watermark is at least as old as the last write that the first scan saw
which met it. A file keeps few such marks; where it would need more, neighbours are joined, and a
line may then seem older than it is, at most as old as the one it is joined with.
"""

from collections.abc import Iterable
from typing import NamedTuple

from agent.core.discovery import FileKey, Seen

MARKS_MAX = 8
"""Of one file; only one that grows while it is behind for many scans needs them."""


class _Mark(NamedTuple):
    """All below ``size`` was on disk at ``at_s``."""

    size: int
    at_s: float


class Waits:
    """Remembers files that are behind, from one scan to the next."""

    def __init__(self) -> None:
        self._marks: dict[FileKey, list[_Mark]] = {}

    def scanned(self, behind: Iterable[tuple[Seen, int]]) -> list[float]:
        """Return, for each file and its watermark, since when its oldest line waits: an epoch.

        Files that are not among ``behind`` any more are forgotten.
        """
        before, self._marks = self._marks, {}
        since = []
        for seen, watermark in behind:
            marks = _marked(before.get(seen.key, []), seen, watermark)
            self._marks[seen.key] = marks
            since.append(marks[0].at_s)
        return since


def _marked(marks: list[_Mark], seen: Seen, watermark: int) -> list[_Mark]:
    if marks and seen.size < marks[-1].size:  # truncated: what waited then is gone
        marks = []
    marks = [mark for mark in marks if mark.size > watermark]
    if not marks or seen.size > marks[-1].size:
        marks.append(_Mark(seen.size, seen.mtime_ns / 1e9))
    if len(marks) > MARKS_MAX:
        newest = marks.pop()
        pairs = zip(marks[::2], marks[1::2], strict=True)
        marks = [*(_Mark(more.size, less.at_s) for less, more in pairs), newest]
    return marks
