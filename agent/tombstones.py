"""Sources that are gone, for as long as they are remembered, and the copies that go on as them.

Lives in the worker thread.
"""

from collections import defaultdict
from heapq import heappop, heappush
from itertools import count

from agent.core.continuation import Index
from agent.core.identity import Birth, Checkpoint
from agent.harvester import Followed

Life = tuple[str, int]


class Tombstones:
    """By when they were gone: files, and generations that were superseded.

    Args:
        files: All that is known, by birth; what is forgotten is taken out.
        index: Superseded generations are put into it, and taken out again.
    """

    def __init__(self, files: dict[Birth, Followed], index: Index) -> None:
        self._files = files
        self._index = index
        self._dead: list[tuple[float, int, Followed | Checkpoint]] = []
        self._number = count()
        self._copies: defaultdict[Life, set[Followed]] = defaultdict(set)

    def add(self, dead: Followed | Checkpoint) -> None:
        """Note a tombstone; what is none is left alone."""
        row = dead.checkpoint if isinstance(dead, Followed) else dead
        if row.gone_at is not None:
            heappush(self._dead, (row.gone_at, next(self._number), dead))
            if dead is row:
                self._index.put(row, row)

    def copied(self, copy: Followed) -> None:
        """Note a file that goes on as another source."""
        self._copies[_life(copy.checkpoint)].add(copy)

    def holder(self, row: Checkpoint) -> Followed | None:
        """Return the file that goes on as ``row``: a copy while there is one, else the original."""
        copies = self._copies.get(_life(row), ())
        held = (f for f in copies if _in_use(f) and _life(f.checkpoint) == _life(row))
        return next(held, None) or self._files.get(row.birth)

    def superseded(self) -> list[Checkpoint]:
        return [dead for _, _, dead in self._dead if isinstance(dead, Checkpoint)]

    def forget(self, before: float) -> list[Checkpoint]:
        """Let go of what was gone ``before``; return the rows that nobody needs any more.

        Not one whose copy is still followed: they share a row.
        """
        later, forgotten = [], []
        while self._dead and self._dead[0][0] < before:
            tombstone = heappop(self._dead)
            dead = tombstone[2]
            row = dead.checkpoint if isinstance(dead, Followed) else dead
            if isinstance(dead, Followed):
                back = row.gone_at is None or row.gone_at >= before
                if back or self._files.get(dead.birth) is not dead:
                    continue
                if _in_use(dead):
                    later.append(tombstone)
                    continue
                del self._files[dead.birth]
            self._index.put(dead)
            if not self._continued(row, by_another_than=dead):
                forgotten.append(row)
        for tombstone in later:
            heappush(self._dead, tombstone)
        return forgotten

    def _continued(self, row: Checkpoint, by_another_than: Followed | Checkpoint) -> bool:
        """Return whether a copy is still followed that goes on as ``row``."""
        copies = self._copies.get(_life(row), set())
        copies -= {f for f in copies if f is by_another_than or _life(f.checkpoint) != _life(row)}
        if not copies:
            self._copies.pop(_life(row), None)
        return any(map(_in_use, copies))


def _in_use(followed: Followed) -> bool:
    return followed.seen is not None or followed.harvester is not None


def _life(row: Checkpoint) -> Life:
    return row.source_id, row.generation
