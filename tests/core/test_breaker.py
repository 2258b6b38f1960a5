"""Backoff and the circuit breaker: never early, never two probes, never wedged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.breaker import Breaker, State, backoff_s
from agent.core.policy import BreakerPolicy, RetryPolicy
from tests.fakes import FakeClock

POLICY = BreakerPolicy(failures_max=2, cooldown_s=30.0)
RETRY = RetryPolicy(backoff_s=1.0, backoff_max_s=30.0)
JITTER = st.floats(0, 1, exclude_max=True)


def breaker_in(state: State, clock: FakeClock) -> Breaker:
    breaker = Breaker(POLICY, clock.monotonic)
    if state is not State.CLOSED:
        breaker.failed()
        breaker.failed()
    if state is State.HALF_OPEN:
        clock.advance(30.0)
        assert breaker.allow()
    assert state is breaker.state
    return breaker


@pytest.mark.parametrize(
    ("before", "call", "after"),
    [
        (State.CLOSED, Breaker.succeeded, State.CLOSED),
        (State.CLOSED, Breaker.failed, State.CLOSED),
        (State.CLOSED, Breaker.allow, State.CLOSED),
        (State.OPEN, Breaker.succeeded, State.CLOSED),
        (State.OPEN, Breaker.failed, State.OPEN),
        (State.OPEN, Breaker.allow, State.OPEN),
        (State.HALF_OPEN, Breaker.succeeded, State.CLOSED),
        (State.HALF_OPEN, Breaker.failed, State.OPEN),
        (State.HALF_OPEN, Breaker.allow, State.HALF_OPEN),
    ],
)
def test_every_state_has_an_answer_to_every_call(before: State, call: object, after: State) -> None:
    breaker = breaker_in(before, FakeClock())
    assert callable(call)
    call(breaker)

    assert after is breaker.state


def test_opens_on_the_last_allowed_failure_and_not_before() -> None:
    breaker = Breaker(POLICY, FakeClock().monotonic)

    breaker.failed()
    assert breaker.allow()

    breaker.failed()
    assert not breaker.allow()


def test_stays_open_until_the_cooldown_has_fully_passed() -> None:
    """One millisecond early is still early."""
    clock = FakeClock()
    breaker = breaker_in(State.OPEN, clock)

    clock.advance(29.999)
    assert not breaker.allow()

    clock.advance(0.001)
    assert 0.0 == breaker.wait_s()
    assert breaker.allow()
    assert State.HALF_OPEN is breaker.state


def test_lets_one_probe_through_and_no_second() -> None:
    clock = FakeClock()
    breaker = breaker_in(State.OPEN, clock)
    clock.advance(30.0)

    assert [True, False] == [breaker.allow(), breaker.allow()]


def test_a_failed_probe_reopens_for_a_whole_cooldown() -> None:
    clock = FakeClock()
    breaker = breaker_in(State.HALF_OPEN, clock)
    clock.advance(4.0)

    breaker.failed()

    assert 30.0 == breaker.wait_s()


def test_a_probe_that_never_reports_costs_one_cooldown() -> None:
    """A stop can cancel the probe between ``allow`` and its result."""
    clock = FakeClock()
    breaker = breaker_in(State.HALF_OPEN, clock)

    clock.advance(30.0)

    assert breaker.allow()


def test_a_straggler_does_not_stretch_the_cooldown() -> None:
    clock = FakeClock()
    breaker = breaker_in(State.OPEN, clock)
    clock.advance(20.0)

    breaker.failed()

    assert 10.0 == breaker.wait_s()


def test_a_success_forgets_earlier_failures() -> None:
    breaker = Breaker(POLICY, FakeClock().monotonic)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()

    assert State.CLOSED is breaker.state


STEPS = st.lists(
    st.one_of(
        st.just("failed"),
        st.just("succeeded"),
        st.just("allow"),
        st.sampled_from([0.5, 10.0, 29.5, 30.0]),
    ),
    max_size=60,
)


@given(STEPS)
def test_at_most_one_probe_in_a_cooldown_and_never_a_longer_wait(steps: list[str | float]) -> None:
    """Between two probes lies a success or a whole cooldown; nobody ever waits longer than one."""
    clock = FakeClock()
    breaker = Breaker(POLICY, clock.monotonic)
    last_probe_s: float | None = None
    for step in steps:
        if step == "succeeded":
            breaker.succeeded()
            last_probe_s = None
        elif step == "failed":
            breaker.failed()
        elif step == "allow":
            probing = breaker.state is not State.CLOSED
            could = breaker.wait_s() == 0.0
            assert could == breaker.allow()
            if probing and could:
                assert last_probe_s is None or clock.now - last_probe_s >= POLICY.cooldown_s
                last_probe_s = clock.now
        else:
            clock.advance(float(step))
        assert 0.0 <= breaker.wait_s() <= POLICY.cooldown_s


@given(st.integers(1, 10_000), JITTER)
def test_backoff_lies_between_half_and_all_of_its_ceiling(attempt: int, jitter: float) -> None:
    wait_s = backoff_s(RETRY, attempt, lambda: jitter)
    ceiling_s = min(2.0 ** min(attempt - 1, 100), 30.0)

    assert ceiling_s / 2 <= wait_s <= ceiling_s


def test_backoff_doubles_up_to_its_maximum() -> None:
    waits_s = [backoff_s(RETRY, attempt, lambda: 0.0) for attempt in range(1, 9)]

    assert [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0] == waits_s


def test_the_attempt_before_the_first_retry_has_no_backoff() -> None:
    with pytest.raises(AssertionError):
        backoff_s(RETRY, 0, lambda: 0.0)
