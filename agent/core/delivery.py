"""What to do next with the batches of one topic. A state machine: events in, actions out.

One machine a sink; ``agent.sink`` carries the actions out and reports what came of them.

    DOWN        --due, breaker allows: Connect-->    CONNECTING
    CONNECTING  --connected: Send-->  LIVE           --connect_failed-->  DOWN, later
    LIVE        --failed or refused-->  RETIRING     --acked: Send-->  LIVE
    LIVE        --unanswered for STALE_S: Close-->  CLOSING
    RETIRING    --nothing pending, or overdue: Close-->  CLOSING  --closed-->  DOWN

Why a failure ends the whole producer: aiokafka gives a sequence number to a batch when it
leaves and never takes it back, so after one failed batch the broker refuses every later one
of that partition (aiokafka #1017). A new producer starts new sequences. What was pending when
the old one was closed is *unknown* and is sent again, per partition in order.

Why a partition's first batch goes alone: a broker that knows nothing of a producer accepts any
sequence number from it, so a second batch would be taken though the first was refused.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from agent.core.batch import Batch
from agent.core.breaker import Breaker, Jitter, Monotonic, backoff_s
from agent.core.policy import RetryPolicy

WINDOW = 2
"""Batches out per partition: one on the wire, one waiting to take its place."""


STALE_S = 120.0
"""Without an answer for so long a producer is given up: aiokafka never asks the configured
addresses again (#459), and the brokers may be back under others."""

ISOLATIONS_MAX = 16
"""Producers in a row that may end over a refused record without a wait: enough to find the one
among 2**16, and a bound on what a topic that refuses everything costs."""


class Connect(NamedTuple):
    """Make a producer, describe the topic; answer ``connected`` or ``connect_failed``."""


class Close(NamedTuple):
    """Close the producer hard; its futures no longer count. Answer ``closed``."""


class Send(NamedTuple):
    """Hand the batch to the producer; answer ``acked``, ``failed`` or ``refused``."""

    batch: Batch


class Refuse(NamedTuple):
    """Kafka will never have this batch, which is a single record."""

    batch: Batch
    reason: str


Action = Connect | Close | Send | Refuse


class Phase(Enum):
    DOWN = "down"
    CONNECTING = "connecting"
    LIVE = "live"
    RETIRING = "retiring"
    CLOSING = "closing"


class _Lane:
    """One partition's batches in the order they must arrive."""

    __slots__ = ("proven", "queue", "sent")

    def __init__(self) -> None:
        self.queue: deque[Batch] = deque()
        self.sent = 0  # how many from the left this producer was given
        self.proven = False  # this producer has an acknowledgement from this partition

    def remove(self, batch: Batch) -> None:
        at = self.queue.index(batch)
        assert at < self.sent, "a batch that was never sent cannot come back"
        del self.queue[at]
        self.sent -= 1


class Delivery:
    """Decide for one sink. All times are of ``clock``; nothing here waits or touches.

    Args:
        split: Cut a batch of several records in two, in order. Both halves keep all chunks.
        retire_s: How long pending batches may still be acknowledged once one has failed.
    """

    def __init__(
        self,
        retry: RetryPolicy,
        breaker: Breaker,
        *,
        split: Callable[[Batch], tuple[Batch, Batch]],
        retire_s: float,
        clock: Monotonic,
        jitter: Jitter,
    ) -> None:
        self._retry = retry
        self.breaker = breaker
        self._split = split
        self._retire_s = retire_s
        self._clock = clock
        self._jitter = jitter
        self._partitions: int | None = None  # of the topic, as last seen
        self._lanes: dict[int, _Lane] = {}
        self._pending: dict[Batch, float] = {}  # given to the living producer -> when
        self._refused: dict[Batch, str] = {}  # to be isolated once that producer is closed
        self._isolations = 0  # in a row, without an acknowledgement
        self._failures = 0  # lives of producers in a row without an acknowledgement
        self.phase = Phase.DOWN
        self.due_s: float | None = clock()  # when ``tick`` has something to decide
        self.reason: str | None = None  # why the last producer, or try at one, ended

    def admit(self, batch: Batch) -> list[Action]:
        """Take responsibility for ``batch``; it will be settled or refused exactly once."""
        if self._partitions is not None:  # it may have been sealed, or put by, for more
            batch.partition %= self._partitions
        lane = self._lanes.setdefault(batch.partition, _Lane())
        lane.queue.append(batch)
        return self._send(lane)

    def withdraw(self) -> list[Batch]:
        """Give back every batch, in order per partition, while no producer lives that has any."""
        assert not self._pending, "what is pending may be acknowledged yet"
        queued = [batch for lane in self._lanes.values() for batch in lane.queue]
        self._lanes.clear()
        return queued

    def connected(self, partitions: int) -> list[Action]:
        """Note a living producer and how many partitions the topic has now."""
        assert self.phase is Phase.CONNECTING, self.phase
        self._partitions = partitions
        self._fit(partitions)
        self.phase, self.due_s = Phase.LIVE, None
        return [action for lane in self._lanes.values() for action in self._send(lane)]

    def connect_failed(self, reason: str) -> list[Action]:
        assert self.phase is Phase.CONNECTING, self.phase
        self._fall(reason)
        return []

    def acked(self, batch: Batch) -> list[Action]:
        """Note that Kafka has ``batch``; whoever reports it settles it."""
        del self._pending[batch]
        lane = self._lanes[batch.partition]
        lane.remove(batch)
        lane.proven = True
        self._failures = self._isolations = 0
        self.reason = None if self.phase is Phase.LIVE else self.reason
        self.breaker.succeeded()
        return [*self._send(lane), *self._maybe_close()]

    def failed(self, batch: Batch, reason: str) -> list[Action]:
        """Note that Kafka could not take ``batch`` for a reason that is not the record's."""
        del self._pending[batch]
        return self._retire(reason)

    def refused(self, batch: Batch, reason: str) -> list[Action]:
        """Note that a record of ``batch`` is what Kafka refuses."""
        del self._pending[batch]
        self._refused[batch] = reason
        self.breaker.succeeded()  # Kafka has answered; isolating must not wait for a cooldown
        return self._retire(reason)

    def closed(self) -> list[Action]:
        """Note that the producer is gone: what was pending is unknown and goes again."""
        assert self.phase is Phase.CLOSING, self.phase
        self._pending.clear()
        for lane in self._lanes.values():
            lane.sent, lane.proven = 0, False
        actions = self._isolate()
        if actions is not None:
            self._isolations += 1
            patient = self._isolations > ISOLATIONS_MAX
            wait_s = backoff_s(self._retry, self._isolations, self._jitter) if patient else 0.0
            self.phase, self.due_s = Phase.DOWN, self._clock() + wait_s
            return actions
        self._fall(self.reason or "closed")
        return []

    def tick(self) -> list[Action]:
        """Do what has become due. Call it at ``due_s``, and now and then; it does no harm."""
        now = self._clock()
        if self.phase is Phase.LIVE and self.oldest_pending_s() > STALE_S:
            self.reason = "unanswered"
            return self._close()
        if self.due_s is None or now < self.due_s:
            return []
        if self.phase is Phase.RETIRING:
            return self._close()
        assert self.phase is Phase.DOWN, self.phase
        if not self.breaker.allow():
            self.due_s = now + self.breaker.wait_s()
            return []
        self.phase, self.due_s = Phase.CONNECTING, None
        return [Connect()]

    @property
    def queued(self) -> int:
        """Return how many batches are neither settled nor refused."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def oldest_pending_s(self) -> float:
        """Return how long the oldest unacknowledged batch is out; 0.0 if none is."""
        oldest = next(iter(self._pending.values()), None)
        return 0.0 if oldest is None else self._clock() - oldest

    def _fit(self, partitions: int) -> None:
        """Move what was bound for partitions that a topic made again no longer has."""
        for gone in sorted(p for p in self._lanes if p >= partitions):
            for batch in self._lanes.pop(gone).queue:
                batch.partition = gone % partitions
                self._lanes.setdefault(batch.partition, _Lane()).queue.append(batch)

    def _send(self, lane: _Lane) -> list[Action]:
        if self.phase is not Phase.LIVE:
            return []
        actions: list[Action] = []
        window = WINDOW if lane.proven else 1
        while lane.sent < min(window, len(lane.queue)):
            batch = lane.queue[lane.sent]
            lane.sent += 1
            self._pending[batch] = self._clock()
            actions.append(Send(batch))
        return actions

    def _retire(self, reason: str) -> list[Action]:
        if self.phase is Phase.LIVE:
            self.phase, self.due_s = Phase.RETIRING, self._clock() + self._retire_s
            self.reason = reason
        return self._maybe_close()

    def _maybe_close(self) -> list[Action]:
        return self._close() if self.phase is Phase.RETIRING and not self._pending else []

    def _close(self) -> list[Action]:
        self.phase, self.due_s = Phase.CLOSING, None
        return [Close()]

    def _fall(self, reason: str) -> None:
        self._failures += 1
        self.breaker.failed()
        wait_s = max(backoff_s(self._retry, self._failures, self._jitter), self.breaker.wait_s())
        self.phase, self.due_s, self.reason = Phase.DOWN, self._clock() + wait_s, reason

    def _isolate(self) -> list[Action] | None:
        """Halve what was refused, or let go of single records. None if nothing was."""
        if not self._refused:
            return None
        actions: list[Action] = []
        for batch, reason in self._refused.items():
            queue = self._lanes[batch.partition].queue
            at = queue.index(batch)
            del queue[at]
            if batch.count == 1:
                actions.append(Refuse(batch, reason))
                continue
            first, second = self._split(batch)
            for chunk in batch.chunks:
                chunk.open_batches += 1  # two batches hold its lines now
            queue.insert(at, second)
            queue.insert(at, first)
        self._refused.clear()
        return actions
