"""What to do next with the batches of one topic. A state machine: events in, actions out.

One machine a sink; ``agent.sink`` carries the actions out and reports what came of them.

    DOWN        --due, breaker allows: Connect-->    CONNECTING
    CONNECTING  --connected: Send-->  LIVE           --connect_failed-->  DOWN, later
    LIVE        --failed or refused-->  RETIRING     --acked: Send-->  LIVE
    LIVE        --a batch unanswered for STALE_S: Close-->  CLOSING
    LIVE        --renew, and nothing out: Close-->  CLOSING  --closed-->  DOWN, due at once
    RETIRING    --nothing out, or overdue: Close-->  CLOSING  --closed-->  DOWN

Why a failure ends the whole producer: aiokafka gives a sequence number to a batch when it
leaves and never takes it back, so after one failed batch the broker refuses every later one
of that partition (aiokafka #1017). A new producer starts new sequences. What was out when
the old one was closed is *unknown* and is sent again, per partition in order.

Why silence counts: with every broker away nothing ever fails (aiokafka #1101). It opens the
breaker, and what is out stays out: its producer may deliver it yet, and then nothing goes twice.
A broker that throttles answers, if late: that is neither silence nor failure.
"""

from enum import Enum
from typing import NamedTuple

from agent.core.batch import Batch
from agent.core.breaker import Breaker, Jitter, Monotonic, State, backoff_s
from agent.core.congestion import Window
from agent.core.lanes import Lanes
from agent.core.policy import RetryPolicy
from agent.core.quota import Bucket
from agent.core.reshaping import Repartition, Split, fitted, isolate

STALE_S = 120.0
"""How long one batch may stay unanswered at least before its producer is given up, and at most
twice that: aiokafka never asks the configured addresses again (#459), and the brokers may be back
under others. The same for all nodes it would be a herd, two minutes into an outage."""

GRAIN_S = 0.001
"""A tick is never due sooner: what is due already was due at the tick before."""

ISOLATIONS_BURST, ISOLATIONS_PER_S = 16, 0.5
"""Producers that may end over a refused record without a wait, enough to find the one among 2**16;
and how many a second after that: a bound on what a topic that refuses everything costs."""

RATE_BURST_S = 1.0
"""Of ``bytes_per_s_max``: what may leave at once after a pause."""

UNANSWERED = "unanswered"


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


class Delivery:
    """Decide for one sink. All times are of ``clock``; nothing here waits or touches.

    Args:
        split, repartition: See ``core.reshaping``.
        retire_s: How long batches that are out may still be acknowledged once one has failed.
        bytes_per_s_max: Of batches as they are sent, compressed; None: no limit.
        start_s: When to connect first, from now.
        absent_s: How long after that Kafka may be missing before that is an outage.
    """

    def __init__(
        self,
        retry: RetryPolicy,
        breaker: Breaker,
        *,
        split: Split,
        repartition: Repartition,
        retire_s: float,
        bytes_per_s_max: float | None,
        start_s: float,
        absent_s: float,
        clock: Monotonic,
        jitter: Jitter,
    ) -> None:
        self._retry = retry
        self.breaker = breaker
        self._split = split
        self._repartition = repartition
        self._retire_s = retire_s
        self._clock = clock
        self._jitter = jitter
        self._rate = Bucket(bytes_per_s_max, (bytes_per_s_max or 0) * RATE_BURST_S, clock)
        self._isolations = Bucket(ISOLATIONS_PER_S, ISOLATIONS_BURST, clock)
        self._window = Window()
        self._lanes = Lanes()
        self._partitions: int | None = None  # of the topic, as last seen
        self._refused: dict[Batch, str] = {}  # to be isolated once that producer is closed
        self._failures = 0  # lives of producers in a row without an acknowledgement
        self._acked_at = clock()
        self._stale_s = STALE_S
        self._next_s = clock() + start_s  # in DOWN and RETIRING: when it goes on
        self._absent_s = self._next_s + absent_s
        self.phase = Phase.DOWN
        self.renewing = False  # a producer that has not failed is being replaced
        self.reason: str | None = None  # why nothing is delivered, as last seen

    def admit(self, batch: Batch) -> list[Action]:
        """Take responsibility for ``batch``; it will be acked or refused exactly once."""
        if self._partitions is not None and batch.partition >= self._partitions:
            batch.partition %= self._partitions  # it was sealed before the topic was described
        self._lanes.add(batch)
        return self._send()

    def connected(self, partitions: int) -> list[Action]:
        """Note a living producer and how many partitions the topic has now."""
        assert self.phase is Phase.CONNECTING, self.phase
        self._lanes = fitted(self._lanes, partitions, self._repartition)
        self._partitions = partitions
        self.phase, self.renewing = Phase.LIVE, False
        self._stale_s = STALE_S * (1.0 + self._jitter())
        return self._send()

    def connect_failed(self, reason: str) -> list[Action]:
        assert self.phase is Phase.CONNECTING, self.phase
        self._fall(reason)
        return []

    def acked(self, batch: Batch, *, throttled: bool = False) -> list[Action]:
        """Note that Kafka has ``batch``; whoever reports it settles it."""
        out, now = self._lanes.out, self._clock()
        self._window.acked(self._lanes.acked(batch), now, out=out, throttled=throttled)
        self._acked_at = now
        self._failures = 0
        self.breaker.succeeded()
        if self.phase is Phase.LIVE:
            self.reason = None
        return [*self._send(), *self._maybe_close()]

    def failed(self, batch: Batch, reason: str) -> list[Action]:
        """Note that Kafka could not take ``batch`` for a reason that is not the record's."""
        self._lanes.failed(batch)
        return self._retire(reason)

    def refused(self, batch: Batch, reason: str) -> list[Action]:
        """Note that a record of ``batch`` is what Kafka refuses."""
        self._lanes.refused(batch)
        self._refused[batch] = reason
        self._failures = 0
        self.breaker.succeeded()  # Kafka has answered; isolating must not wait for a cooldown
        return self._retire(reason)

    def hasten(self) -> None:
        """Let the next try be due now, where one waits for its time."""
        if self.phase is Phase.DOWN:
            self.breaker.hasten()
            self._next_s = min(self._next_s, self._clock())

    def renew(self) -> list[Action]:
        """Replace the producer once nothing is out, so that nothing goes twice.

        Only while it is ``well``: whatever else is going on ends with another one anyway.
        """
        assert self.well, (self.phase, self.breaker.state)
        self.renewing = True
        return self._maybe_close()

    @property
    def well(self) -> bool:
        return self.phase is Phase.LIVE and self.breaker.state is State.CLOSED

    def closed(self) -> list[Action]:
        """Note that the producer is gone: what was out is unknown and goes again."""
        assert self.phase is Phase.CLOSING, self.phase
        self._lanes.producer_gone()
        if self.renewing:
            self.phase, self._next_s = Phase.DOWN, self._clock()
            return []
        if not self._refused:
            self._fall(self.reason or "closed")
            return []
        self._isolations.take(1)
        self.phase, self._next_s = Phase.DOWN, self._clock() + self._isolations.wait_s()
        refused, self._refused = self._refused, {}
        return [Refuse(*alone) for alone in isolate(self._lanes, refused, self._split)]

    def tick(self) -> list[Action]:
        """Do what has become due. Call it at ``due_s``, and now and then; it does no harm."""
        if self.phase is Phase.LIVE:
            return self._listen()
        if self.phase in (Phase.CONNECTING, Phase.CLOSING) or self._clock() < self._next_s:
            return []
        if self.phase is Phase.RETIRING:
            return self._close()
        if not self.breaker.allow():
            self._next_s = self._clock() + self.breaker.wait_s()
            return []
        self.phase = Phase.CONNECTING
        return [Connect()]

    @property
    def due_s(self) -> float | None:
        """Return when ``tick`` has something to decide; None while only an answer can change it."""
        if self.phase in (Phase.DOWN, Phase.RETIRING):
            return self._next_s
        if self.phase is not Phase.LIVE:
            return None
        waits = [self._rate.wait_s()] if self.held_back else []
        if self._lanes.out:
            waits.append(max(self._stale_s - self._oldest_s(), GRAIN_S))
            if self.breaker.state is not State.OPEN:
                waits.append(max(self.breaker.patience_s - self.silence_s(), GRAIN_S))
        return self._clock() + min(w for w in waits if w > 0) if any(waits) else None

    @property
    def outage(self) -> str | None:
        """Return why waiting for Kafka is vain by now, or None. Then events go to the spool."""
        if self.phase is not Phase.LIVE and not self.renewing:
            attempts = max(self._failures, self._lanes.attempts)
            absent = self._partitions is None and self._clock() >= self._absent_s
            if absent or attempts >= self._retry.attempts_max:
                return self.reason or "connecting"
        return self.reason if self.breaker.state is State.OPEN else None

    @property
    def queued(self) -> int:
        """Return how many batches are neither acked nor refused."""
        return self._lanes.queued

    @property
    def held_back(self) -> bool:
        """Return whether one of them is not out: it may be due before anything is answered."""
        return self._lanes.out < self._lanes.queued

    @property
    def given(self) -> int:
        """Return how many of those the producer was given: they go again once it is gone."""
        return self._lanes.given

    def batches(self) -> list[Batch]:
        """Return them, in order per partition."""
        return self._lanes.batches()

    def silence_s(self) -> float:
        """Return how long nothing was answered while something was out; 0.0 if nothing is."""
        oldest_s = self._lanes.oldest_out_s
        return 0.0 if oldest_s is None else self._clock() - max(oldest_s, self._acked_at)

    def _oldest_s(self) -> float:
        """Return for how long the oldest batch is out; answers for others tell nothing of it."""
        oldest_s = self._lanes.oldest_out_s
        return 0.0 if oldest_s is None else self._clock() - oldest_s

    def client_backoff_s(self) -> float:
        """Return how long the client should wait between tries of its own, as long as it is silent.

        A producer that waits for its brokers asks for them all the time: nodes that all do that
        twice a second are the herd that meets a broker on its return.
        """
        attempts = max(1, int(self.silence_s() / self._retry.backoff_s).bit_length())
        # Half of it is sure: one lucky draw would stay small for as long as nobody answers.
        return 0.5 + backoff_s(self._retry, attempts, lambda: (1.0 + self._jitter()) / 2)

    def _listen(self) -> list[Action]:
        if self._oldest_s() >= self._stale_s:
            self.reason, self.renewing = UNANSWERED, False
            return self._close()
        self.breaker.unanswered(self.silence_s())
        if self.breaker.state is State.OPEN:
            self.reason = UNANSWERED
        return self._send()

    def _send(self) -> list[Action]:
        actions: list[Action] = []
        while self._may_send() and (batch := self._lanes.take(self._clock())) is not None:
            self._rate.take(len(batch.payload))
            actions.append(Send(batch))
        return actions

    def _may_send(self) -> bool:
        if self.phase is not Phase.LIVE or self.renewing or self.breaker.state is State.OPEN:
            return False
        if self.breaker.state is State.HALF_OPEN and self._lanes.out:
            return False  # the probe
        return self._window.room(self._lanes.out) and self._rate.wait_s() == 0.0

    def _retire(self, reason: str) -> list[Action]:
        if self.phase is Phase.LIVE:
            self.phase, self._next_s = Phase.RETIRING, self._clock() + self._retire_s
            self.reason, self.renewing = reason, False
        return self._maybe_close()

    def _maybe_close(self) -> list[Action]:
        leaving = self.phase is Phase.RETIRING or (self.renewing and self.phase is Phase.LIVE)
        return self._close() if leaving and not self._lanes.out else []

    def _close(self) -> list[Action]:
        self.phase = Phase.CLOSING
        return [Close()]

    def _fall(self, reason: str) -> None:
        self._failures += 1
        self.renewing = False
        self.breaker.failed()
        wait_s = max(backoff_s(self._retry, self._failures, self._jitter), self.breaker.wait_s())
        self.phase, self._next_s, self.reason = Phase.DOWN, self._clock() + wait_s, reason
