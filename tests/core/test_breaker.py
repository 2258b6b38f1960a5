"""Backoff and the circuit breaker: never early, never two probes, never wedged."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.breaker import Breaker, Jitter, State, backoff_s
from agent.core.policy import BreakerPolicy, RetryPolicy
from tests.fakes import FakeClock

POLICY = BreakerPolicy(failures_max=2, cooldown_s=30.0, ack_age_max_s=20.0)
RETRY = RetryPolicy(backoff_s=1.0, backoff_max_s=30.0)
JITTER = st.floats(0, 1, exclude_max=True)
GRAIN_S = 1e-9
"""What rounding may make of a date."""


def new_breaker(clock: FakeClock, jitter: Jitter = lambda: 0.0) -> Breaker:
    return Breaker(POLICY, clock.monotonic, jitter)


def breaker_in(state: State, clock: FakeClock, jitter: Jitter = lambda: 0.0) -> Breaker:
    breaker = new_breaker(clock, jitter)
    if state is not State.CLOSED:
        breaker.failed()
        breaker.failed()
    if state is State.HALF_OPEN:
        clock.advance(breaker.wait_s())
        assert breaker.allow()
    assert state is breaker.state
    return breaker


def unanswered_briefly(breaker: Breaker) -> None:
    breaker.unanswered(POLICY.ack_age_max_s - 0.001)


def unanswered_for_long(breaker: Breaker) -> None:
    breaker.unanswered(POLICY.ack_age_max_s)


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
        (State.CLOSED, unanswered_briefly, State.CLOSED),
        (State.CLOSED, unanswered_for_long, State.OPEN),
        (State.OPEN, unanswered_briefly, State.OPEN),
        (State.OPEN, unanswered_for_long, State.OPEN),
        (State.HALF_OPEN, unanswered_briefly, State.HALF_OPEN),
        (State.HALF_OPEN, unanswered_for_long, State.OPEN),
    ],
)
def test_every_state_has_an_answer_to_every_call(before: State, call: object, after: State) -> None:
    breaker = breaker_in(before, FakeClock())
    assert callable(call)
    call(breaker)

    assert after is breaker.state


def test_opens_on_the_last_allowed_failure_and_not_before() -> None:
    breaker = new_breaker(FakeClock())

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


@pytest.mark.parametrize("state", [State.CLOSED, State.HALF_OPEN])
def test_silence_opens_for_a_whole_cooldown(state: State) -> None:
    """With every broker away nothing ever fails: only time tells."""
    clock = FakeClock()
    breaker = breaker_in(state, clock)
    clock.advance(7.0)

    unanswered_for_long(breaker)

    assert (State.OPEN, 30.0) == (breaker.state, breaker.wait_s())


def test_silence_while_open_does_not_stretch_the_cooldown() -> None:
    clock = FakeClock()
    breaker = breaker_in(State.OPEN, clock)
    clock.advance(20.0)

    unanswered_for_long(breaker)

    assert 10.0 == breaker.wait_s()


def test_the_silence_that_opens_is_the_policys() -> None:
    assert POLICY.ack_age_max_s == new_breaker(FakeClock()).patience_s


@given(st.sampled_from([Breaker.failed, unanswered_for_long, Breaker.allow]), JITTER)
def test_a_cooldown_is_the_policys_at_least_and_never_twice_as_long(
    call: Callable[[Breaker], object], jitter: float
) -> None:
    """However it begins: a failure, a silence, or a probe that has just left."""
    clock = FakeClock()
    probing = call is Breaker.allow
    breaker = breaker_in(State.OPEN if probing else State.HALF_OPEN, clock, lambda: jitter)
    clock.advance(breaker.wait_s())

    call(breaker)

    assert POLICY.cooldown_s - GRAIN_S <= breaker.wait_s() < 2 * POLICY.cooldown_s + GRAIN_S


def test_a_success_forgets_earlier_failures() -> None:
    breaker = new_breaker(FakeClock())
    breaker.failed()
    breaker.succeeded()
    breaker.failed()

    assert State.CLOSED is breaker.state


STEPS = st.lists(
    st.one_of(
        st.just("failed"),
        st.just("succeeded"),
        st.just("unanswered"),
        st.just("allow"),
        st.just("wait"),
        st.sampled_from([0.5, 10.0, 29.5, 30.0]),
    ),
    max_size=60,
)


@given(STEPS, st.randoms(use_true_random=False))
def test_at_most_one_probe_in_a_cooldown_and_never_a_wait_of_two(
    steps: list[str | float], chance: Random
) -> None:
    """Between two probes lies a success or a whole cooldown; nobody waits for two of them."""
    clock = FakeClock()
    breaker = new_breaker(clock, chance.random)
    last_probe_s: float | None = None
    for step in steps:
        match step:
            case "succeeded":
                breaker.succeeded()
                last_probe_s = None
            case "failed":
                breaker.failed()
            case "unanswered":
                unanswered_for_long(breaker)
            case "wait":
                clock.advance(breaker.wait_s() + GRAIN_S)
            case "allow":
                probing = breaker.state is not State.CLOSED
                could = breaker.wait_s() == 0.0
                assert could == breaker.allow()
                if probing and could:
                    since_s = clock.now - (float("-inf") if last_probe_s is None else last_probe_s)
                    assert since_s >= POLICY.cooldown_s - GRAIN_S
                    last_probe_s = clock.now
            case _:
                clock.advance(float(step))
        assert 0.0 <= breaker.wait_s() < 2 * POLICY.cooldown_s + GRAIN_S


@given(st.integers(1, 10_000), JITTER)
def test_backoff_lies_anywhere_below_its_ceiling(attempt: int, jitter: float) -> None:
    """Full jitter: chance alone says where, and the ceiling itself is never reached."""
    ceiling_s = min(2.0 ** min(attempt - 1, 100), 30.0)

    wait_s = backoff_s(RETRY, attempt, lambda: jitter)

    assert 0.0 <= wait_s < ceiling_s
    assert pytest.approx(jitter) == wait_s / ceiling_s


def test_the_ceiling_of_backoff_doubles_up_to_its_maximum() -> None:
    waits_s = [backoff_s(RETRY, attempt, lambda: 0.5) for attempt in range(1, 9)]

    assert [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0] == waits_s


def test_the_attempt_before_the_first_retry_has_no_backoff() -> None:
    with pytest.raises(AssertionError):
        backoff_s(RETRY, 0, lambda: 0.0)
