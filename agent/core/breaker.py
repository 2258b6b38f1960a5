"""When to try again: backoff and the circuit breaker. Pure; clock and jitter come in."""

from collections.abc import Callable
from enum import Enum

from agent.core.policy import BreakerPolicy, RetryPolicy

Monotonic = Callable[[], float]
Jitter = Callable[[], float]
"""Uniform in [0, 1). Nodes fail together; only chance keeps them from coming back together."""


def backoff_s(policy: RetryPolicy, attempt: int, jitter: Jitter) -> float:
    """Return the wait before attempt ``attempt`` (1 is the first retry): doubling, full jitter.

    Anywhere between nothing and ``backoff_s * 2**(attempt - 1)``, at most ``backoff_max_s``: of all
    jitters this one spreads a fleet best
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).
    """
    assert attempt >= 1
    ceiling = min(policy.backoff_s * 2.0 ** min(attempt - 1, 62), policy.backoff_max_s)
    return ceiling * jitter()


class State(Enum):
    CLOSED = "closed"  # sends flow
    OPEN = "open"  # sends wait
    HALF_OPEN = "half_open"  # one probe is out; its result decides


class Breaker:
    """Stop hammering a cluster that is down.

    CLOSED     --failures_max failures in a row, or ack_age_max_s of silence-->  OPEN
    OPEN       --a cooldown later, allow()-->  HALF_OPEN, one probe
    HALF_OPEN  --succeeded()-->  CLOSED        --failed(), or silence-->  OPEN again

    A cooldown is never shorter than ``cooldown_s`` and never twice as long.
    """

    def __init__(self, policy: BreakerPolicy, clock: Monotonic, jitter: Jitter) -> None:
        self._policy = policy
        self._clock = clock
        self._jitter = jitter
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
        self._cool_down()
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
            self._open()

    def unanswered(self, silence_s: float) -> None:
        """Note how long nothing was answered: with every broker away nothing ever fails."""
        if self.state is not State.OPEN and silence_s >= self._policy.ack_age_max_s:
            self._open()

    def hasten(self) -> None:
        """Let the next probe go now: somebody knows more than a cooldown does."""
        self._probe_at = min(self._probe_at, self._clock())

    @property
    def patience_s(self) -> float:
        """Return the silence that opens it."""
        return self._policy.ack_age_max_s

    def _open(self) -> None:
        self._cool_down()
        self.state = State.OPEN

    def _cool_down(self) -> None:
        self._probe_at = self._clock() + self._policy.cooldown_s * (1.0 + self._jitter())
