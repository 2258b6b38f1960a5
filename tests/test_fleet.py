"""A fleet meets brokers that return: how many come at once, and how long until all is caught up.

Where the bounds come from. A node whose client tries every ``d`` seconds meets the return within a
second with probability ``min(1, 1/d)``, and comes with one connection. ``client_backoff_s`` is
uniform over ``0.5 .. 0.5 + c`` s, with ``c`` the power of two at or below the silence; the last one
is drawn when the breaker opens at 30 s, so ``c`` is 16 at most. The mean over that is
``(0.5 + ln(0.5 + c)) / c``: a half of the fleet at 4, a third at 8, a fifth at 16. Four standard
deviations of a binomial are added: one second in thirty thousand is further off.

How long it takes: the last node is back after ``d``; by then ``away + d`` seconds of load have
piled up at most, and they drain at what the brokers can do beyond the load, ``headroom - 1``
seconds of it in each. That leaves out what was taken before, and requests of several batches.
"""

from functools import cache
from math import ceil, log, sqrt

import pytest

from agent.core.congestion import START
from tests.fleet.story import Story, tell
from tests.fleet.world import AGENT, NAIVE, Plan, Style

NODES = 300
AWAY_S = 45.0
LONGEST_S = 16.5
"""Between two tries of a client that has heard nothing for 30 s."""


@cache
def story(plan: Plan, style: Style = AGENT) -> Story:
    return tell(plan, style)


def share_bound(ceiling_s: float) -> float:
    """Return the share of the fleet that may come within one second, by theory."""
    share = (0.5 + log(0.5 + ceiling_s)) / ceiling_s
    return share + 4 * sqrt(share * (1 - share) / NODES)


def peak(told: Story, from_s: float, to_s: float) -> float:
    """Return the most connection attempts and metadata requests in a second, over the fleet."""
    return max(told.arrivals(from_s, to_s)) / told.plan.nodes


def test_one_seed_tells_one_story() -> None:
    plan = Plan(nodes=40, away_s=12.0, after_s=20.0)

    told = tell(plan, AGENT)

    assert told.counts == tell(plan, AGENT).counts
    assert told.counts != tell(plan._replace(seed=2), AGENT).counts


@pytest.mark.parametrize(
    ("away_s", "ceiling_s", "seed"),
    [
        (12.0, 4.0, 1),  # a try that is under way keeps the backoff of when it was made
        (AWAY_S, 16.0, 1),
        (AWAY_S, 16.0, 2),
        (119.0, 16.0, 1),  # about when producers are given up
        (121.0, 16.0, 1),
        (122.0, 16.0, 1),
    ],
)
def test_brokers_that_return_meet_a_part_of_the_fleet_a_second(
    away_s: float, ceiling_s: float, seed: int
) -> None:
    told = story(Plan(nodes=NODES, seed=seed, away_s=away_s))

    assert peak(told, told.plan.up_s, told.plan.end_s) <= share_bound(ceiling_s)


def test_naive_clients_are_the_herd() -> None:
    """All of them within the first second, or the bounds above would say nothing."""
    told = story(Plan(nodes=NODES, away_s=AWAY_S), NAIVE)

    assert peak(told, told.plan.up_s, told.plan.up_s + 1) >= 1.0


def test_who_waits_long_tries_less() -> None:
    """Each try is a connection to a broker, and one more for metadata."""
    told = story(Plan(nodes=NODES, away_s=AWAY_S))
    plan, naive = told.plan, story(Plan(nodes=NODES, away_s=AWAY_S), NAIVE)

    assert peak(told, plan.up_s - 10, plan.up_s) <= 2 * share_bound(16.0)
    assert peak(naive, plan.up_s - 10, plan.up_s) >= 10.0


@pytest.mark.parametrize("away_s", [12.0, AWAY_S])
def test_a_fleet_catches_up_as_fast_as_its_brokers_can(away_s: float) -> None:
    told = story(Plan(nodes=NODES, away_s=away_s))
    late_s = LONGEST_S + (away_s + LONGEST_S) / (told.plan.headroom - 1)

    assert told.drained_s is not None
    assert told.drained_s <= late_s


def test_a_backlog_gives_way_to_brokers_that_slow_down() -> None:
    """The window shrinks while they are behind, and the queue stays shorter than a naive one."""
    told = story(Plan(nodes=NODES, away_s=AWAY_S))
    naive = story(Plan(nodes=NODES, away_s=AWAY_S), NAIVE)

    assert min(told.between("window", told.plan.up_s, told.plan.end_s)) < START / 4
    assert told.queue_s < naive.queue_s / 2


def test_a_rolling_restart_holds_nobody_up() -> None:
    """Whoever loses a connection asks for metadata at once, as aiokafka does, and perhaps the
    broker that is gone first: at most two a node and second. No load waits for the return.
    """
    told = story(Plan(nodes=NODES, away_s=20.0, after_s=20.0, brokers=3, rolling=True))
    plan = told.plan

    assert peak(told, plan.down_s, plan.end_s) <= 2.0
    assert max(told.between("outstanding", plan.down_s, plan.end_s)) <= 3 * NODES


def test_a_fleet_that_starts_is_spread_over_the_jitter() -> None:
    """A start is two connections and two metadata requests."""
    plan = Plan(nodes=NODES, away_s=1.0, after_s=1.0, start_jitter_s=30.0)
    share = 1 / plan.start_jitter_s
    bound = 4 * (share + 4 * sqrt(share * (1 - share) / NODES))

    assert peak(story(plan), 0, ceil(plan.start_jitter_s) + 5) <= bound
    assert peak(story(plan, NAIVE), 0, 5) >= 2.0
