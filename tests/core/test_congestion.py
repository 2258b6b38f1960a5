"""The congestion window: it gives way to a broker that is slow or throttles, and comes back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.congestion import LIMIT_MAX, SLOW_FACTOR, SLOW_S, START, Window

QUICK_S = 0.01


def fill(window: Window, acks: int, now: float = 0.0, latency_s: float = QUICK_S) -> float:
    """Acknowledge ``acks`` batches, one after another, with the window in full use."""
    for _ in range(acks):
        now += latency_s
        window.acked(now - latency_s, now, out=int(window.limit), throttled=False)
    return now


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 1000), st.integers(1, 5000), st.booleans()),
        max_size=80,
    )
)
def test_each_acknowledgement_moves_the_window_by_the_rule_and_never_below_one(
    acks: list[tuple[float, float, int, bool]],
) -> None:
    """It halves at most once per round trip, and grows by one at most, only in full use."""
    window, now, cuts = Window(), 1000.0, list[tuple[float, float]]()
    for gap_s, latency_s, out, throttled in acks:
        now += gap_s
        before = window.limit
        window.acked(now - latency_s, now, out=out, throttled=throttled)
        after = window.limit

        assert 1.0 <= after <= LIMIT_MAX
        if after < before:
            assert throttled or latency_s > SLOW_S
            assert max(1.0, min(before, out) / 2) == after
            cuts.append((now - latency_s, now))
        elif after > before:
            assert not throttled
            assert out >= before - 1
            assert after - before <= 1.0
    for (_, cut_s), (sent_s, _) in pairwise(cuts):
        assert sent_s >= cut_s, "cut again for what was sent before the last cut"


@given(st.integers(2, 64), st.booleans())
def test_a_whole_flight_that_is_slow_or_throttled_halves_the_window_once(
    flight: int, throttled: bool
) -> None:
    window = Window()
    latency_s = QUICK_S if throttled else 2 * SLOW_S
    for n in range(flight):
        window.acked(100.0, 100.0 + latency_s + n / 1000, out=flight - n, throttled=throttled)

    assert flight / 2 <= window.limit < flight / 2 + 1


def test_each_throttled_round_trip_halves_the_window_down_to_one_batch() -> None:
    window, limits = Window(), []
    for n in range(8):
        window.acked(n, n + 0.5, out=int(window.limit), throttled=True)
        limits.append(window.limit)

    assert [32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0] == limits
    assert (True, False) == (window.room(0), window.room(1))


@given(st.floats(1.0, LIMIT_MAX), st.integers(0, 5000))
def test_there_is_room_for_one_batch_always_and_never_beyond_the_limit(
    limit: float, out: int
) -> None:
    window = Window()
    window.limit = limit

    assert window.room(0)
    assert window.room(out) == (out + 1 <= limit)


def test_it_recovers_from_one_to_where_it_began() -> None:
    """A batch more each round trip: n of them need about n * n / 2 acknowledgements."""
    window = Window()
    window.limit = 1.0

    fill(window, 2200)

    assert window.limit >= START


def test_it_never_grows_beyond_its_maximum() -> None:
    window = Window()
    window.limit = LIMIT_MAX - 0.0001

    fill(window, 10)

    assert LIMIT_MAX == window.limit


@given(st.integers(1, int(START) - 2))
def test_a_window_that_is_not_used_does_not_grow(out: int) -> None:
    """It would say nothing of what the brokers can take."""
    window = Window()
    for n in range(100):
        window.acked(n, n + QUICK_S, out=out, throttled=False)

    assert START == window.limit


@given(st.floats(0.0001, 10.0), st.floats(0, 1))
def test_slow_is_what_takes_several_times_the_usual_and_a_second_at_least(
    usual_s: float, share: float
) -> None:
    threshold_s = max(SLOW_S, SLOW_FACTOR * usual_s)
    for latency_s, slow in ((threshold_s * share * 0.99, False), (threshold_s * 1.01, True)):
        window = Window()
        window._usual_s = usual_s
        window.acked(0.0, latency_s, out=int(START), throttled=False)

        assert slow == (window.limit < START)


@given(st.floats(0.0, 1.0), st.floats(1.5, 1000.0))
def test_what_is_slow_for_long_becomes_the_usual(quick_s: float, slow_s: float) -> None:
    """A cluster that moved to the other end of the world must not be throttled for good."""
    window = Window()
    now = fill(window, 50, latency_s=quick_s)
    now = fill(window, 20, now, slow_s)
    least = window.limit

    fill(window, 1, now, slow_s)

    assert window.limit > least


@pytest.mark.parametrize("latency_s", [0.0, QUICK_S, SLOW_S])
def test_an_acknowledgement_within_a_second_is_never_slow(latency_s: float) -> None:
    window = Window()
    fill(window, 100, latency_s=0.0001)
    before = window.limit
    window.acked(50.0, 50.0 + latency_s, out=int(window.limit), throttled=False)

    assert window.limit > before
