"""The open batches of one topic: where a record goes, and when what is open is sealed.

Builders outlive chunks, so twelve partitions do not mean twelve small batches a chunk. One thread
only, but for ``Builders.one`` and ``Builders.fits``.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from agent import wire
from agent.core.batch import Batch, Pace
from agent.core.ledger import Chunk
from agent.core.partition import crc32_partitions, murmur2_partitions
from agent.core.tracing import ChunkSpan
from agent.wire import Run

UNPARTITIONED = -1
"""The partition of a batch for the spool: records in read order, to be partitioned on replay."""
_ONLY = -1
"""Where the one open batch stands, if keys do not choose among several."""


class Topic(Protocol):
    """What batches must fit: as the sink described it."""

    @property
    def partitions(self) -> int: ...
    @property
    def message_bytes_max(self) -> int: ...


def _only(keys: Sequence[bytes], _partitions: int) -> list[int]:
    return [_ONLY] * len(keys)


_PARTITIONERS: dict[str, Callable[[Sequence[bytes], int], list[int]]] = {
    "crc32": crc32_partitions,
    "murmur2": murmur2_partitions,
    "sticky": _only,
    "none": _only,
}


def _places(
    partitions_of: Callable[[Sequence[bytes], int], list[int]],
    keys: Sequence[bytes | None],
    partitions: int,
) -> list[int]:
    """Return where each record goes: one without a key wherever the next one does."""
    if None in keys:
        return [_ONLY if key is None else partitions_of((key,), partitions)[0] for key in keys]
    return partitions_of(cast("Sequence[bytes]", keys), partitions)


class Builders:
    """Fill batches. A record goes to its key's partition, or where the next sticky batch goes, or
    to none yet (partitioner ``none``); a batch that is full, or has waited for its window, is
    sealed.

    ``destination`` is the name of their topic, for traces.
    """

    def __init__(
        self,
        topic: Callable[[], Topic | None],
        codec: wire.Codec,
        pace: Pace,
        *,
        bytes_max: int,
        partitioner: str,
        destination: str = "",
    ) -> None:
        self.sealed: list[Batch] = []
        self._topic = topic
        self._codec = codec
        self._pace = pace
        self._bytes_max = bytes_max
        self._partitions_of = _PARTITIONERS[partitioner]
        self._partitioned = partitioner != "none"
        self._open: dict[int, wire.Builder] = {}  # by partition, _ONLY for the only one
        self._sticky_turn = 0
        self._rests_until_s = -math.inf
        self._destination = destination
        self._span: ChunkSpan | None = None  # of the chunk that is being filled in
        self.partitions = 1

    def begin(self, span: ChunkSpan | None = None) -> None:
        """Take over what is known of the topic by now; once a chunk, which may be traced."""
        self._span = span
        topic = self._topic()
        if topic is not None:
            self.partitions = topic.partitions

    def add(self, chunk: Chunk, run: Run, now_s: float) -> None:
        """Take what was made of ``chunk``: each record goes behind those of its partition.

        Best called with all there is of a chunk: each partition that gets something costs as much
        as a dozen records.
        """
        places: defaultdict[int, list[bytes]] = defaultdict(list)
        at_each = _places(self._partitions_of, run.keys, self.partitions)
        for at, made in zip(at_each, run.bodies, strict=True):
            places[at].append(made)
        for at, bodies in places.items():
            self._fill(at, chunk, Run(run.at_ms, [], bodies), now_s)

    def _fill(self, at: int, chunk: Chunk, run: Run, now_s: float) -> None:
        taken, bodies = 0, run.bodies
        while taken < len(bodies):
            builder = self._open.get(at) or self._builder(at, now_s)
            room = self._pace.records_max - builder.count
            wanted = bodies[taken : taken + room]
            took = builder.take(run.at_ms, wanted)
            if took:
                builder.hold(chunk)
                if self._span is not None and builder.span is not None:
                    builder.span.link(self._span)
            taken += took
            if took < len(wanted) or builder.count >= self._pace.records_max:
                self._pace.sealed(builder.count, full=True)
                self._seal(at)

    def seal_due(self, now_s: float, *, quiet: bool) -> None:
        """Seal what has been open for its window; where ``quiet``, since nothing more is there to
        be read, everything, unless others left less than a window ago."""
        window_s = self._pace.window_s(len(self._open))
        rested = quiet and now_s >= self._rests_until_s
        for at, builder in [*self._open.items()]:
            if rested or now_s - builder.opened_at_s >= window_s:
                self._pace.sealed(builder.count, full=False)
                self._seal(at)
                self._pace.rest_s, self._rests_until_s = window_s, now_s + window_s

    def seal_all(self) -> None:
        """Seal everything as it is; that there was no room for more says nothing of the load."""
        for at in list(self._open):
            self._seal(at)

    def due_in_s(self, now_s: float) -> float | None:
        """Return how long until something may be due, None if nothing is open."""
        if not self._open:
            return None
        oldest_s = min(builder.opened_at_s for builder in self._open.values())
        ends_s = oldest_s + self._pace.window_s(len(self._open))
        return max(0.0, min(ends_s, self._rests_until_s) - now_s)

    def rest_in_s(self, now_s: float) -> float:
        """Return how long until what has no company may leave."""
        return max(0.0, self._rests_until_s - now_s)

    @property
    def open(self) -> int:
        """Return how many batches are open."""
        return len(self._open)

    def fits(self, batch: Batch) -> bool:
        """Return whether the topic takes a batch of this size, as far as is known."""
        topic = self._topic()
        return topic is None or wire.HEADER_BYTES + len(batch.payload) <= topic.message_bytes_max

    def take(self) -> list[Batch]:
        sealed, self.sealed = self.sealed, []
        return sealed

    def one(self, record: wire.Record, like: Batch) -> Batch:
        """Seal one record alone, in place of ``like``: it settles what that would have."""
        (at,) = _places(self._partitions_of, [record.key], self.partitions)
        sealed = wire.reseal(like, [record], self._codec)
        sealed.partition = max(at, 0)
        return sealed

    def _builder(self, at: int, now_s: float) -> wire.Builder:
        partition = at
        if at == _ONLY and self._partitioned:
            self._sticky_turn += 1
            partition = self._sticky_turn % self.partitions
        topic = self._topic()
        limit = topic.message_bytes_max - wire.HEADER_BYTES if topic else self._bytes_max
        span = None if self._span is None else self._span.opened(self._destination)
        builder = wire.Builder(partition, min(self._bytes_max, limit), now_s, span)
        self._open[at] = builder
        return builder

    def _seal(self, at: int) -> None:
        self.sealed.append(self._open.pop(at).seal(self._codec))


def repartition(
    batches: list[Batch], partitions: int, *, partitioner: str, codec: wire.Codec, bytes_max: int
) -> list[Batch]:
    """Seal the records of ``batches`` anew, in file order, for a topic of ``partitions``."""

    def chosen(key: bytes | None, before: int) -> int:
        (at,) = _places(_PARTITIONERS[partitioner], [key], partitions)
        return before % partitions if at == _ONLY else at

    return wire.repartition(batches, chosen, codec, bytes_max)


class Stream:
    """The batches of one topic: those bound for Kafka, and those bound for the spool's tail.

    Lines go to one of the two, as ``steer`` says; what is replayed from the spool goes to Kafka.
    """

    def __init__(self, kafka: Builders, tail: Builders) -> None:
        self.kafka = kafka
        self.tail = tail
        self.lines = kafka

    def steer(self, *, direct: bool) -> None:
        """Say where lines go from now on. What is open is sealed at a change: it is older."""
        lines = self.kafka if direct else self.tail
        if lines is not self.lines:
            self.seal_all()
            self.lines = lines

    @property
    def direct(self) -> bool:
        return self.lines is self.kafka

    def begin(self, span: ChunkSpan | None = None) -> None:
        self.kafka.begin(span)
        self.tail.begin(span)

    def seal_due(self, now_s: float, *, quiet: bool) -> None:
        self.kafka.seal_due(now_s, quiet=quiet)
        self.tail.seal_due(now_s, quiet=quiet)

    def seal_all(self) -> None:
        self.kafka.seal_all()
        self.tail.seal_all()

    def due_in_s(self, now_s: float) -> float | None:
        due = [b.due_in_s(now_s) for b in (self.kafka, self.tail)]
        return min((s for s in due if s is not None), default=None)

    def take(self) -> list[Batch]:
        """Return what was sealed, in the order in which it must leave."""
        return [*self.kafka.take(), *self.tail.take()]
