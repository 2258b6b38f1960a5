"""Where a record comes from, as its header ``source`` says it, and how much of a file is covered.

``Coverage`` is what a proof of delivery remembers: ranges, merged where they touch, and not a set
of lines. A file that arrived whole costs one range, whatever its length.
"""

from array import array
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import chain, pairwise
from typing import Final, NamedTuple

FORMAT: Final = "1"
"""Of the header; the first of its parts."""
LOOSE_MAX: Final = 4096
"""Ranges that wait to be merged, at least; then as many as there are merged ones."""

BEYOND: Final = (1 << 63, 1 << 63)
"""Behind the last offset that a file can have."""

Life = tuple[str, int]
"""A source id and its generation: what byte offsets are offsets of."""


class Place(NamedTuple):
    """Bytes ``[start, end)`` of one generation of a source."""

    source: str
    generation: int
    start: int
    end: int

    @property
    def life(self) -> Life:
        return self.source, self.generation


def parse_place(header: bytes) -> Place | None:
    """Read ``1;<source id>;<generation>;<start>;<end>``, None if it is anything else."""
    try:
        version, source, generation, start, end = header.decode("ascii").split(";")
        place = Place(source, int(generation), int(start), int(end))
    except ValueError:
        return None
    return place if version == FORMAT and 0 <= place.start < place.end < BEYOND[0] else None


def hulls(places: Iterable[Place]) -> tuple[Place, ...]:
    """Return one place for each life: from its first byte among ``places`` to its last."""
    found: dict[Life, tuple[int, int]] = {}
    for source, generation, start, end in places:
        first, last = found.get((source, generation), (start, end))
        found[source, generation] = min(first, start), max(last, end)
    return tuple(Place(*life, *ends) for life, ends in found.items())


class Coverage:
    """The union of the ranges that were added, 16 bytes for each gap, and how many came again.

    Ranges are lines: two of them are equal or have no byte in common.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts, self._ends = array("Q"), array("Q")  # merged and in order
        self._loose: list[tuple[int, int]] = []
        self._copies = 0
        self.added = 0
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Cover ``[start, end)``."""
        assert 0 <= start < end, (start, end)
        self.added += 1
        self._loose.append((start, end))
        if len(self._loose) >= max(LOOSE_MAX, len(self._starts)):
            self._settle()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield what is covered, in order, with a gap between any two."""
        self._settle()
        return zip(self._starts, self._ends, strict=True)

    @property
    def ranges(self) -> int:
        """Return how many there are after merging."""
        self._settle()
        return len(self._starts)

    @property
    def held(self) -> int:
        """Return how many are in memory, those that wait to be merged included."""
        return len(self._starts) + len(self._loose)

    @property
    def copies(self) -> int:
        """Return how many added ranges were covered before."""
        self._settle()
        return self._copies

    @property
    def end(self) -> int:
        self._settle()
        return self._ends[-1] if self._ends else 0

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what of ``[start, end)`` is not covered."""
        edges = chain([(start, start)], self, [(end, end)])
        for (_, before), (after, _) in pairwise(edges):
            lower, upper = max(before, start), min(after, end)
            if lower < upper:
                yield lower, upper

    def _settle(self) -> None:
        if not self._loose:
            return
        self._loose.sort()
        merged = zip(self._starts, self._ends, strict=True)
        starts, ends = array("Q"), array("Q")
        for start, end in merge(merged, self._loose):
            if not ends or start > ends[-1]:
                starts.append(start)
                ends.append(end)
            elif start == ends[-1]:
                ends[-1] = end
            else:
                self._copies += 1
                ends[-1] = max(ends[-1], end)
        self._starts, self._ends = starts, ends
        self._loose = []


class Along:
    """Asks a coverage about ranges in ascending order, at the cost of one pass for all of them."""

    def __init__(self, coverage: Iterable[tuple[int, int]]) -> None:
        self._ranges = iter(coverage)
        self._start, self._end = next(self._ranges, BEYOND)

    def covers(self, start: int, end: int) -> bool:
        """Return whether all of ``[start, end)`` is covered; no later question begins before."""
        while self._end <= start:
            self._start, self._end = next(self._ranges, BEYOND)
        return self._start <= start and end <= self._end
