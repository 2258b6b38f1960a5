"""A run of the fleet from its start to its end, and what it showed."""

from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from tests.fleet.client import Node
from tests.fleet.world import BALANCED_S, PARTITIONS, Plan, Style, World


class Story(NamedTuple):
    """What one run showed, a number a second of each of ``METERS``."""

    plan: Plan
    style: Style
    counts: dict[str, list[int]]

    def between(self, meter: str, from_s: float, to_s: float) -> list[int]:
        return self.counts[meter][int(from_s) : int(to_s)]

    def arrivals(self, from_s: float, to_s: float) -> list[int]:
        """Return the connection attempts and metadata requests of each second together."""
        both = (self.between(m, from_s, to_s) for m in ("connections", "metadata"))
        return [*map(sum, zip(*both, strict=True))]

    @property
    def queue_s(self) -> float:
        """Return the longest wait in a broker's queue after the return."""
        queued = max(self.between("queued", self.plan.up_s, self.plan.end_s))
        return queued / (self.plan.capacity / self.plan.brokers)

    @property
    def drained_s(self) -> float | None:
        """Return how long after the last return a second's load or less was outstanding."""
        plan = self.plan
        for second in range(int(plan.up_s) + 1, int(plan.end_s)):
            if self.counts["outstanding"][second] <= plan.nodes * plan.batches_per_s:
                return second - plan.up_s
        return None


def tell(plan: Plan, style: Style) -> Story:
    """Run the fleet from its start to ``plan.end_s``."""
    world = World(plan)
    nodes = [Node(world, style) for _ in range(plan.nodes)]
    for broker in range(plan.brokers):
        if plan.rolling:
            at_s = plan.down_s + broker * (plan.away_s + 2 * BALANCED_S)
            world.at(at_s, _stop, world, nodes, [broker])
            world.at(at_s + plan.away_s, _return, world, [broker])
            world.at(at_s + plan.away_s + BALANCED_S, _lead, world, None)
    if not plan.rolling:
        world.at(plan.down_s, _stop, world, nodes, range(plan.brokers))
        world.at(plan.up_s, _return, world, range(plan.brokers))
    sample = nodes[:: max(1, len(nodes) // 100)]
    for second in range(ceil(plan.end_s)):
        world.at(second, _look, world, sample)
    world.run()
    return Story(plan, style, world.counts)


def _stop(world: World, nodes: list[Node], brokers: Iterable[int]) -> None:
    for broker in brokers:
        world.brokers[broker].stop()
        if world.plan.rolling:
            _lead(world, broker)
        for node in world.random.sample(nodes, len(nodes)):
            node.client.broken(broker)


def _return(world: World, brokers: Iterable[int]) -> None:
    for broker in brokers:
        world.brokers[broker].up = True


def _lead(world: World, without: int | None) -> None:
    """Spread the partitions over the brokers, but for ``without``."""
    living = [b for b in range(world.plan.brokers) if b != without]
    world.leaders = tuple(
        p % world.plan.brokers
        if p % world.plan.brokers != without
        else living[p // world.plan.brokers % len(living)]
        for p in range(PARTITIONS)
    )


def _look(world: World, sample: list[Node]) -> None:
    second = int(world.now)
    world.counts["outstanding"][second] = world.outstanding
    world.counts["window"][second] = int(
        sum(node.delivery._window.limit for node in sample) / len(sample)
    )
