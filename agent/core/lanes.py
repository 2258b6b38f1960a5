"""Batches by partition, in the order in which they must arrive, and which of them are out. Pure."""

from collections import deque

from agent.core.batch import Batch

WINDOW = 2
"""Batches out per partition: one on the wire, one waiting to take its place."""


class _Lane:
    """One partition's batches."""

    __slots__ = ("attempts", "proven", "queue", "sent", "waits")

    def __init__(self) -> None:
        self.waits = False  # for its turn to send
        self.queue: deque[Batch] = deque()
        self.attempts = 0  # lives of producers in a row that ended without an acknowledgement
        self.sent = 0  # how many from the left this producer was given
        self.proven = False  # this producer has an acknowledgement from this partition

    def may_send(self) -> bool:
        # A broker that knows nothing of a producer takes any sequence number from it: a second
        # batch would be accepted though the first was refused. So the first one goes alone.
        return self.sent < min(WINDOW if self.proven else 1, len(self.queue))


class Lanes:
    """All partitions. They take turns: none waits while another one sends twice.

    Nothing here looks at all of them for one batch: topics have dozens, and each batch asks often.
    """

    def __init__(self) -> None:
        self.queued = 0
        """How many batches there are, out or not."""
        self._lanes: dict[int, _Lane] = {}
        self._turns: deque[_Lane] = deque()  # of those that may send
        self._out: dict[Batch, float] = {}  # given to the living producer -> when

    def add(self, batch: Batch) -> None:
        lane = self._lanes.get(batch.partition)
        if lane is None:
            lane = self._lanes[batch.partition] = _Lane()
        lane.queue.append(batch)
        self.queued += 1
        self._offer(lane)

    def take(self, now_s: float) -> Batch | None:
        """Return the batch to send next, and count it as out; None when no partition may send."""
        while self._turns:
            lane = self._turns.popleft()
            lane.waits = False
            if lane.may_send():
                batch = lane.queue[lane.sent]
                lane.sent += 1
                self._out[batch] = now_s
                self._offer(lane)
                return batch
        return None

    def acked(self, batch: Batch) -> float:
        """Let go of a batch that arrived. Return when it was sent."""
        sent_s = self._out.pop(batch)
        lane = self._lanes[batch.partition]
        at = lane.queue.index(batch)
        assert at < lane.sent, "a batch that was never sent cannot come back"
        del lane.queue[at]
        lane.sent -= 1
        lane.proven = True
        lane.attempts = 0
        self.queued -= 1
        self._offer(lane)
        return sent_s

    def failed(self, batch: Batch) -> None:
        """Note that ``batch`` is not out any more; it keeps its place for the next producer."""
        del self._out[batch]

    def refused(self, batch: Batch) -> None:
        """Note the same where a record is to blame: the broker has answered, and lives."""
        self.failed(batch)
        lane = self._lanes[batch.partition]
        lane.proven, lane.attempts = True, 0
        self._offer(lane)

    def producer_gone(self) -> None:
        """Count nothing as out any more: whatever is queued goes again."""
        self._out.clear()
        for lane in self._lanes.values():
            lane.attempts += lane.sent > 0 and not lane.proven
            lane.sent, lane.proven = 0, False
            self._offer(lane)

    def replace(self, batch: Batch, *others: Batch) -> None:
        """Put ``others`` where ``batch`` stands; nothing is out."""
        assert not self._out
        lane = self._lanes[batch.partition]
        at = lane.queue.index(batch)
        del lane.queue[at]
        for other in reversed(others):
            lane.queue.insert(at, other)
        self.queued += len(others) - 1
        self._offer(lane)

    def batches(self) -> list[Batch]:
        """Return every batch, in order per partition."""
        return [batch for lane in self._lanes.values() for batch in lane.queue]

    @property
    def given(self) -> int:
        """Return how many of them this producer was given, failed or not."""
        return sum(lane.sent for lane in self._lanes.values())

    @property
    def attempts(self) -> int:
        """Return how many producers' lives the most unlucky partition has seen in vain."""
        return max((lane.attempts for lane in self._lanes.values()), default=0)

    @property
    def out(self) -> int:
        return len(self._out)

    @property
    def oldest_out_s(self) -> float | None:
        """Return when the oldest batch was sent that is out; None if none is."""
        return next(iter(self._out.values()), None)

    def _offer(self, lane: _Lane) -> None:
        """Let it have its turn, behind those that wait, if it may send."""
        if not lane.waits and lane.may_send():
            lane.waits = True
            self._turns.append(lane)
