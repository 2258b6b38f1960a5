"""The plan of a run, its virtual time, and the brokers with their queues."""

import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import ceil
from typing import NamedTuple

from agent.core.policy import BreakerPolicy, RetryPolicy

PARTITIONS = 6
REQUEST_TIMEOUT_S = 15.0
IN_FLIGHT = 100
"""Batches from the spool that a node has under way: ``in_flight.events_max`` at 100 lines each."""
CONNECT, REQUEST, APPEND = 4, 1, 1
"""What a broker's queue holds of each, in units: a connection is worth some requests."""
RTT_S = 0.002
THROTTLE_S = 1.0
"""A queue that is longer makes a broker ask for a pause."""
BALANCED_S = 5.0
"""After a broker's return in a rolling restart: until it leads its partitions again."""
CALM_S, BEFORE_S = 5.0, 10.0
GRAIN_S = 0.001


class Style(NamedTuple):
    """How a node behaves. ``flat_s``: between tries of its client; None: as the agent does it."""

    name: str
    retry: RetryPolicy
    breaker: BreakerPolicy
    flat_s: float | None
    metadata_spread: float


AGENT = Style("agent", RetryPolicy(), BreakerPolicy(), None, 0.2)
NAIVE = Style(
    "naive",
    RetryPolicy(attempts_max=100, backoff_s=0.1, backoff_max_s=0.1),
    BreakerPolicy(failures_max=1 << 30, cooldown_s=0.1, ack_age_max_s=1e9),
    0.1,
    0.0,
)


class Plan(NamedTuple):
    """What happens. Capacity is ``headroom`` times what the fleet needs when nothing happens."""

    nodes: int = 2000
    seed: int = 1
    away_s: float = 45.0
    after_s: float = 60.0
    start_jitter_s: float = 10.0
    brokers: int = 1
    rolling: bool = False
    batches_per_s: float = 1.0
    headroom: float = 2.0

    @property
    def down_s(self) -> float:
        """Return when the first broker goes."""
        return float(ceil(self.start_jitter_s) + CALM_S + BEFORE_S)

    @property
    def up_s(self) -> float:
        """Return when the last broker is back."""
        rounds = self.brokers if self.rolling else 1
        return self.down_s + rounds * self.away_s + (rounds - 1) * 2 * BALANCED_S

    @property
    def end_s(self) -> float:
        return self.up_s + self.after_s

    @property
    def capacity(self) -> float:
        """Return the units a second of all brokers."""
        return self.nodes * self.batches_per_s * (REQUEST + APPEND) * self.headroom


class World:
    """Time, brokers, and what is counted in each second."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.random = random.Random(plan.seed)  # noqa: S311 - repeatable on purpose
        self.brokers = [Broker(self, plan.capacity / plan.brokers) for _ in range(plan.brokers)]
        self.leaders = tuple(p % plan.brokers for p in range(PARTITIONS))
        self.counts = {name: [0] * ceil(plan.end_s) for name in METERS}
        self.outstanding = 0  # batches that were sealed and are not acknowledged
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._turn = count()

    def monotonic(self) -> float:
        return self.now

    def at(self, when_s: float, call: Callable[..., None], *args: object) -> None:
        heappush(self._heap, (when_s, next(self._turn), call, args))

    def after(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        self.at(self.now + delay_s, call, *args)

    def run(self) -> None:
        end_s = self.plan.end_s
        while self._heap and self._heap[0][0] < end_s:
            self.now, _, call, args = heappop(self._heap)
            call(*args)

    def count(self, name: str) -> None:
        self.counts[name][int(self.now)] += 1

    def shuffled(self) -> list[int]:
        if len(self.brokers) == 1:
            return [0]
        return self.random.sample(range(len(self.brokers)), len(self.brokers))


METERS = ("connections", "produce", "metadata", "refused", "queued", "outstanding", "window")
"""``refused``: connections while away, and requests that waited too long. ``queued``: the longest
queue of a broker in units. ``window``: the mean limit of a sample of nodes."""


class Broker:
    """A queue and one server with a capacity in units a second."""

    def __init__(self, world: World, capacity: float) -> None:
        self._world = world
        self._capacity = capacity
        self._free_at = 0.0
        self.up = True

    @property
    def backlog_s(self) -> float:
        return max(0.0, self._free_at - self._world.now)

    def take(self, units: float) -> float:
        """Queue ``units`` of work. Return in how many seconds its answer arrives."""
        self._free_at = max(self._free_at, self._world.now) + units / self._capacity
        wait_s = self._free_at - self._world.now
        queued, second = self._world.counts["queued"], int(self._world.now)
        queued[second] = max(queued[second], int(wait_s * self._capacity))
        return wait_s + RTT_S

    def stop(self) -> None:
        self.up, self._free_at = False, 0.0


Lost = Callable[[], None]
Answered = Callable[[bool], None]
