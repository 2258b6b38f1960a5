"""How batches grow and how long they stay open: from the policy's floor to its ceiling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.batch import BATCHES_PER_S_MAX, BEHIND_S, TINY_EXTRA, TINY_RECORDS, Pace
from agent.core.policy import BatchPolicy

POLICY = BatchPolicy(records_max=100, age_min_s=0.01, age_max_s=10.0)

SEALS = st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=50)
LATENCIES = st.lists(st.floats(0, 1000), max_size=50)


def grown(times: int) -> Pace:
    pace = Pace(POLICY)
    for _ in range(times):
        pace.sealed(pace.records_max, full=True)
    return pace


def test_a_quiet_line_waits_the_least_time() -> None:
    assert 0.01 == Pace(POLICY).window_s(0)


def test_the_window_widens_to_half_of_an_acknowledgement() -> None:
    """A batch that leaves while its predecessor is on its way only waits in a queue."""
    pace = Pace(POLICY)
    for _ in range(100):
        pace.acked(0.4)

    assert pytest.approx(0.2) == pace.window_s(1)


def test_the_window_narrows_again_when_acknowledgements_are_quick() -> None:
    pace = Pace(POLICY)
    for latency_s in (5.0,) * 50 + (0.0,) * 100:
        pace.acked(latency_s)

    assert 0.01 == pace.window_s(1)


def test_batches_have_the_time_to_fill_while_more_waits_to_be_read() -> None:
    """With twelve partitions and no time they had a hundred lines each, whatever waited."""
    pace = Pace(POLICY)
    pace.behind = True
    assert BEHIND_S == pace.window_s(12)

    pace.behind = False
    assert BEHIND_S > pace.window_s(12)


@pytest.mark.parametrize("open_batches", [12, 120, 1200])
def test_many_open_batches_share_what_may_leave_in_a_second(open_batches: int) -> None:
    window_s = Pace(POLICY).window_s(open_batches)

    assert open_batches / window_s <= BATCHES_PER_S_MAX + 1e-6


def per_s(records: int) -> float:
    """Return how many batches may leave in a second where so many records are in each."""
    pace = Pace(POLICY)
    for _ in range(500):
        pace.sealed(records, full=False)
    return 120 / pace.window_s(120)


def test_batches_of_hardly_more_than_a_line_are_bounded_more_narrowly() -> None:
    """Each costs the lines in it more than they cost themselves, and few wait for it."""
    rates = [per_s(records) for records in (1, 2, 5, TINY_RECORDS, 1000)]

    assert rates == sorted(rates)
    assert pytest.approx(BATCHES_PER_S_MAX / (1 + TINY_EXTRA), rel=0.05) == rates[0]
    assert pytest.approx(BATCHES_PER_S_MAX) == rates[-1]


def test_full_batches_do_not_say_how_much_comes_in_a_window() -> None:
    pace = grown(20)

    assert Pace(POLICY).window_s(12) == pace.window_s(12)


def test_who_asks_for_a_short_window_gets_it_and_pays_with_batches() -> None:
    policy = BatchPolicy(age_min_s=0.001, age_max_s=10.0)

    assert 0.001 == Pace(policy).window_s(2)
    assert 2 * BATCHES_PER_S_MAX < 12 / Pace(policy).window_s(12)


@given(LATENCIES, SEALS, st.integers(0, 1_000_000), st.booleans())
def test_the_window_stays_between_floor_and_ceiling(
    latencies: list[float],
    seals: list[tuple[int, bool]],
    open_batches: int,
    behind: bool,
) -> None:
    pace = Pace(POLICY)
    pace.behind = behind
    for records, full in seals:
        pace.sealed(records, full=full)
    for latency_s in latencies:
        pace.acked(latency_s)

    assert POLICY.age_min_s <= pace.window_s(open_batches) <= POLICY.age_max_s


def test_full_batches_double_the_size() -> None:
    assert 800 == grown(3).records_max


def test_a_batch_that_is_full_by_bytes_leaves_the_size_alone() -> None:
    pace = grown(1)
    pace.sealed(150, full=True)

    assert 200 == pace.records_max


def test_batches_that_end_half_empty_halve_the_size() -> None:
    pace = grown(3)
    pace.sealed(400, full=False)
    assert 800 == pace.records_max

    pace.sealed(399, full=False)
    assert 400 == pace.records_max


@given(SEALS)
def test_the_size_never_falls_below_the_policy(seals: list[tuple[int, bool]]) -> None:
    pace = Pace(POLICY)
    for records, full in seals:
        pace.sealed(records, full=full)

        assert POLICY.records_max <= pace.records_max


@given(SEALS)
def test_the_size_is_at_most_twice_the_largest_batch_ever_full(
    seals: list[tuple[int, bool]],
) -> None:
    """What ends the growth is ``bytes_max``: a batch that it fills is smaller than the size."""
    pace, largest = Pace(POLICY), 0
    for records, full in seals:
        records = min(records, pace.records_max)  # noqa: PLW2901 - no batch holds more
        largest = max(largest, records)
        pace.sealed(records, full=full)

        assert pace.records_max <= max(POLICY.records_max, 2 * largest)
