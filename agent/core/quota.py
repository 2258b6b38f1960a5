"""How much may be under way at once, and how much a second. Pure: the caller asks, then acts."""

from typing import NamedTuple

from agent.core.breaker import Monotonic
from agent.core.ledger import Chunk
from agent.core.policy import ClientQuotaPolicy, InFlightPolicy

BUCKETS_KEPT = 1024
"""Full buckets that may be remembered; they are as good as none."""


TOGETHER_BURST_S = 0.1
"""How many seconds' worth all clients together may have at once; one read overshoots anyway."""


class Room(NamedTuple):
    """How much may be read. One chunk may overshoot; it is bounded itself."""

    events: int
    bytes: int

    @property
    def full(self) -> bool:
        return self.events <= 0 or self.bytes <= 0

    def without(self, chunk: Chunk) -> "Room":
        return Room(self.events - chunk.lines, self.bytes - chunk.bytes)


NO_ROOM = Room(0, 0)


class InFlight:
    """What was read and is not safe yet, against its bounds.

    It bounds memory (invariant 4) and, since nothing counts as done before its checkpoint is on
    disk, the copies after a crash (invariant 5).
    """

    def __init__(self, policy: InFlightPolicy) -> None:
        self._policy = policy
        self.events = 0
        self.bytes = 0

    def add(self, chunk: Chunk) -> None:
        self.events += chunk.lines
        self.bytes += chunk.bytes

    def remove(self, chunk: Chunk) -> None:
        self.events -= chunk.lines
        self.bytes -= chunk.bytes
        assert self.events >= 0, "more was stored than was read"
        assert self.bytes >= 0, "more was stored than was read"

    @property
    def room(self) -> Room:
        return Room(self._policy.events_max - self.events, self._policy.bytes_max - self.bytes)

    @property
    def full(self) -> bool:
        return self.room.full

    @property
    def use(self) -> float:
        """Return the share of its bounds that is taken, of the one that is reached first."""
        policy = self._policy
        return max(self.events / policy.events_max, self.bytes / policy.bytes_max)


class Bucket:
    """A token bucket that may go into debt: what is taken was small, or the next one waits longer.

    Args:
        per_s: Tokens that come in a second; None: there is no limit.
        burst: Tokens that pile up while nothing is taken.
    """

    def __init__(self, per_s: float | None, burst: float, clock: Monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def take(self, tokens: float) -> None:
        """Take ``tokens``, whether they are there or not."""
        if self._per_s is not None:
            self._refill(self._per_s)
            self._tokens -= tokens

    def wait_s(self) -> float:
        """Return how long until something may be taken; 0.0 if it may now."""
        if self._per_s is None:
            return 0.0
        self._refill(self._per_s)
        return 0.0 if self._tokens > 0 else -self._tokens / self._per_s + _GRAIN_S

    @property
    def whole(self) -> bool:
        """Return whether nothing is missing, as of the last call."""
        return self._tokens >= self._burst

    def _refill(self, per_s: float) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * per_s)
        self._at = now


class Allowances:
    """A bucket for each client."""

    def __init__(self, per_s: float | None, burst: float, clock: Monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._sweep_at = BUCKETS_KEPT

    def take(self, client: str, tokens: float) -> None:
        """Take ``tokens`` of what ``client`` may have, whether they are there or not."""
        bucket = self._buckets.get(client)
        if bucket is None:
            if self._per_s is None:
                return
            if len(self._buckets) >= self._sweep_at:
                self._sweep()
            bucket = self._buckets[client] = Bucket(self._per_s, self._burst, self._clock)
        bucket.take(tokens)

    def wait_s(self, client: str) -> float:
        """Return how long until ``client`` may go on; 0.0 if it may now."""
        bucket = self._buckets.get(client)
        wait_s = bucket.wait_s() if bucket is not None else 0.0
        if bucket is not None and bucket.whole:
            del self._buckets[client]  # as good as a new one
        return wait_s

    def _sweep(self) -> None:
        """Forget the full buckets of clients nobody asks for any more."""
        for client in list(self._buckets):
            self.wait_s(client)
        self._sweep_at = 2 * len(self._buckets) + BUCKETS_KEPT


class ClientLimits:
    """All that bounds what is read of one client in a second: ``events_per_s`` and ``bytes_per_s``
    of ``quota.client``, and ``flood``, the dead letters that it makes.

    Who is over a limit waits until the debt is paid. One read may overshoot; it is bounded itself.

    Args:
        dead_letters_per_s: With a burst of one second's worth. None: no limit.
        together_per_s: Lines of all clients in a second: over it, all wait. None: no limit.
    """

    def __init__(
        self,
        quota: ClientQuotaPolicy,
        dead_letters_per_s: float | None,
        clock: Monotonic,
        *,
        together_per_s: float | None = None,
    ) -> None:
        def allowances(per_s: float | None, burst_s: float) -> Allowances:
            return Allowances(per_s, (per_s or 0.0) * burst_s, clock)

        self._dead_letters = allowances(dead_letters_per_s, 1.0)
        self._events = allowances(quota.events_per_s, quota.burst_s)
        self._bytes = allowances(quota.bytes_per_s, quota.burst_s)
        self._together = Bucket(together_per_s, (together_per_s or 0.0) * TOGETHER_BURST_S, clock)
        self._all = {
            "flood": self._dead_letters,
            "events_per_s": self._events,
            "bytes_per_s": self._bytes,
        }

    def take(self, client: str, *, events: int, read_bytes: int, dead_letters: int) -> None:
        """Note what one read of ``client`` came to."""
        self._together.take(events)
        self._events.take(client, events)
        self._bytes.take(client, read_bytes)
        self._dead_letters.take(client, dead_letters)

    def wait_s(self, client: str) -> float:
        """Return how long until ``client`` may be read again; 0.0 if it may now."""
        own_s = max(allowances.wait_s(client) for allowances in self._all.values())
        return max(own_s, self._together.wait_s())

    def reason(self, client: str) -> str:
        """Return which limit keeps ``client`` waiting longest."""
        waits = {name: allowances.wait_s(client) for name, allowances in self._all.items()}
        waits["together_per_s"] = self._together.wait_s()
        return max(waits, key=lambda name: waits[name])


_GRAIN_S = 1e-6
"""Past the moment at which the debt is paid, or rounding would ask for a second wait of nothing."""
