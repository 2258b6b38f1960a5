"""When a batch is full. Pure: the builders ask, time and acknowledgements come in as numbers.

Under a backlog lines come from what is far behind anyway, so batches are given the time to fill:
each costs the event loop as much as hundreds of its lines. When nothing more is there to be read a
line leaves at once, unless others left less than a window ago: then it waits for the rest of it,
and what comes meanwhile leaves with it. The window is ``age_min_s`` at least. It widens with what
Kafka can take: a batch that leaves while its predecessor is still on its way waits in a queue
anyway, so waiting for company costs nothing; and batches a second are bounded, since each one
costs this node more than a dozen lines, and the brokers as well. Those that hold hardly more than
a line or two are bounded more narrowly: there are few lines then, and each would pay for a batch.
"""

from agent.core.ledger import Chunk
from agent.core.places import Place, hulls
from agent.core.policy import BatchPolicy
from agent.core.tracing import BatchSpan, Outcome

BATCHES_PER_S_MAX = 750.0
BATCHES_MIN = 5
"""So many may leave with each ``age_min_s``: who asks for a short one pays for it."""
TINY_RECORDS = 10
"""A batch of fewer counts for more than one, up to ``1 + TINY_EXTRA`` where it has next to none."""
TINY_EXTRA = 0.4
BEHIND_S = 0.1
"""What a batch is open for while more waits to be read than one read takes."""
_SMOOTHING = 0.2
_FILL_SMOOTHING = 0.02  # a window has a dozen of them


class Batch:
    """Records bound for one partition, sealed: compressed, counted, sent and settled together.

    ``payload`` is the compressed records section of a Kafka record batch (magic 2), so a
    batch can be sent again by another producer without being built again.
    """

    __slots__ = (
        "chunks", "codec", "count", "first_ms", "max_ms", "opened_at_s", "partition", "payload",
        "raw_bytes", "span",
    )  # fmt: skip

    def __init__(
        self,
        *,
        partition: int,
        count: int,
        payload: bytes,
        codec: int,
        first_ms: int,
        max_ms: int,
        raw_bytes: int,
        opened_at_s: float,
        chunks: list[Chunk],
        span: BatchSpan | None = None,
    ) -> None:
        self.partition = partition
        self.count = count
        self.payload = payload
        self.codec = codec
        self.first_ms = first_ms
        self.max_ms = max_ms
        self.raw_bytes = raw_bytes  # before compression: what it weighs against in_flight
        self.opened_at_s = opened_at_s
        self.chunks = chunks  # each counts this batch in its ``open_batches``
        self.span = span  # None: it is not traced, or no longer

    def end_span(self, outcome: Outcome, error: str | None = None) -> None:
        """Say what became of it, once, where it is traced."""
        span, self.span = self.span, None
        if span is not None:
            span.settled(outcome, error)

    @property
    def places(self) -> tuple[Place, ...]:
        """Return where its lines come from: one range for each file, more than they may be."""
        if len(self.chunks) == 1:  # as at low load
            return self.chunks[0].places
        return hulls(place for chunk in self.chunks for place in chunk.places)


class Pace:
    """The window and the size of batches, between the policy's floor and ceiling."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._batches_per_s_max = max(BATCHES_PER_S_MAX, BATCHES_MIN / policy.age_min_s)
        self._ack_s = 0.0
        self._fill = 0.0  # records, of a batch whose window ended
        self.rest_s = policy.age_min_s
        """The window of what left last: nothing that is read before it ends would leave earlier."""
        self.behind = False
        """More waits to be read than one read takes: company is sure to come."""
        self.records_max = policy.records_max

    def acked(self, latency_s: float) -> None:
        """Note how long a batch took from being sent to its acknowledgement."""
        self._ack_s += _SMOOTHING * (latency_s - self._ack_s)

    def sealed(self, records: int, *, full: bool) -> None:
        """Note that a batch was sealed, because it was full or because its window ended."""
        if not full:
            self._fill += _FILL_SMOOTHING * (records - self._fill)
        if full and records >= self.records_max:
            self.records_max *= 2  # bytes_max ends this growth: such a batch is full earlier
        elif not full and 2 * records < self.records_max:
            self.records_max = max(self._policy.records_max, self.records_max // 2)

    def window_s(self, open_batches: int) -> float:
        """Return how long a batch may stay open while ``open_batches`` are."""
        weight = 1.0 + TINY_EXTRA * max(0.0, 1.0 - self._fill / TINY_RECORDS)
        share_s = open_batches * weight / self._batches_per_s_max
        wanted = max(self._ack_s / 2, share_s, BEHIND_S * self.behind)
        return min(max(wanted, self._policy.age_min_s), self._policy.age_max_s)
