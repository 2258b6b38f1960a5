"""When to try again: backoff and the circuit breaker. Pure; clock and jitter come in."""

from collections.abc import Callable
from enum import Enum

from agent.core.policy import BreakerPolicy, RetryPolicy

Monotonic = Callable[[], float]
Jitter = Callable[[], float]
"""Uniform in [0, 1). Nodes fail together; only chance keeps them from coming back together."""


def backoff_s(policy: RetryPolicy, attempt: int, jitter: Jitter) -> float:
    """Return the wait before attempt ``attempt`` (1 is the first retry): doubling, jittered.

    Between half and all of ``backoff_s * 2**(attempt - 1)``, at most ``backoff_max_s``.
    """
    assert attempt >= 1
    ceiling = min(policy.backoff_s * 2.0 ** min(attempt - 1, 62), policy.backoff_max_s)
    return ceiling * (0.5 + 0.5 * jitter())


class State(Enum):
    CLOSED = "closed"  # sends flow
    OPEN = "open"  # sends wait
    HALF_OPEN = "half_open"  # one probe is out; its result decides


class Breaker:
    """Stop hammering a cluster that is down.

    CLOSED     --failures_max failures in a row-->  OPEN
    OPEN       --cooldown_s later, allow()------->  HALF_OPEN, one probe
    HALF_OPEN  --succeeded()-->  CLOSED             --failed()-->  OPEN again
    """

    def __init__(self, policy: BreakerPolicy, clock: Monotonic) -> None:
        self._policy = policy
        self._clock = clock
        self._failures = 0
        self._probe_at = 0.0
        self.state = State.CLOSED

    def allow(self) -> bool:
        """Return whether the caller may try now; a True while not CLOSED is the probe."""
        if self.state is State.CLOSED:
            return True
        if self.wait_s() > 0:
            return False
        # The date moves before the result is known: a probe that is cancelled and reports
        # nothing costs one more cooldown instead of wedging the breaker.
        self._probe_at = self._clock() + self._policy.cooldown_s
        self.state = State.HALF_OPEN
        return True

    def wait_s(self) -> float:
        """Return how long until ``allow()`` can turn True; 0.0 when it already can."""
        if self.state is State.CLOSED:
            return 0.0
        return max(0.0, self._probe_at - self._clock())

    def succeeded(self) -> None:
        self._failures = 0
        self.state = State.CLOSED

    def failed(self) -> None:
        self._failures += 1
        if self.state is State.OPEN:
            return  # a straggler from before we opened must not stretch the cooldown
        if self.state is State.HALF_OPEN or self._failures >= self._policy.failures_max:
            self._probe_at = self._clock() + self._policy.cooldown_s
            self.state = State.OPEN
