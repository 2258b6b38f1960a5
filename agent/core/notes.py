"""Notes that wait to be written into the audit log: bounded, and no event floods the others. Pure.

What is not kept is counted, and the count becomes a part of the log.
"""

from collections import Counter, deque
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from agent.core.breaker import Monotonic
from agent.core.quota import Bucket

WAITING_MAX = 10_000


class Rate(NamedTuple):
    per_s: float
    burst: int


USUAL = Rate(0.5, 100)
"""Of an event: a client that makes a million links cannot push out what was noted before."""
PER_FILE = Rate(2.0, 50_000)
"""A first start may find ``source.files_max`` files, and each is worth a record."""
RATES: Mapping[str, Rate] = MappingProxyType(
    dict.fromkeys(
        ("file.adopted", "file.gone", "file.deleted", "directory.deleted", "generation.begun"),
        PER_FILE,
    )
)


class Noted(NamedTuple):
    at_s: float  # since the epoch
    event: str
    fields: Mapping[str, object]


class Notes:
    """A queue. Not safe for threads: whoever shares it locks it.

    An event beyond its rate is suppressed: the next one of its name has the number as
    ``suppressed``. One that finds the queue full is lost: ``notes.lost`` has the numbers once there
    is room again.
    """

    def __init__(self, clock: Monotonic, waiting_max: int = WAITING_MAX) -> None:
        self._clock = clock
        self._waiting_max = waiting_max
        self._waiting: deque[Noted] = deque()
        self._buckets: dict[str, Bucket] = {}
        self._suppressed: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    def add(self, note: Noted) -> None:
        bucket = self._buckets.get(note.event)
        if bucket is None:
            rate = RATES.get(note.event, USUAL)
            bucket = self._buckets[note.event] = Bucket(rate.per_s, rate.burst, self._clock)
        if bucket.wait_s() > 0:
            self._suppressed[note.event] += 1
            return
        if len(self._waiting) >= self._waiting_max:
            self._lost[note.event] += 1
            return
        bucket.take(1)
        if suppressed := self._suppressed.pop(note.event, 0):
            note = note._replace(fields={**note.fields, "suppressed": suppressed})
        self._say_lost(note.at_s)
        self._waiting.append(note)

    def first(self, count: int, at_s: float) -> list[Noted]:
        """Return up to ``count`` of the oldest; they go on waiting until they are ``done``."""
        if len(self._waiting) < self._waiting_max:
            self._say_lost(at_s)
        return list(islice(self._waiting, count))

    def done(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            self._waiting.popleft()

    def end(self, at_s: float) -> None:
        """Say everything that was not kept: no more notes will come."""
        self._lost += self._suppressed
        self._suppressed.clear()
        self._say_lost(at_s)

    def _say_lost(self, at_s: float) -> None:
        if self._lost:
            fields = {"count": self._lost.total(), "events": dict(self._lost)}
            self._waiting.append(Noted(at_s, "notes.lost", fields))
            self._lost.clear()
