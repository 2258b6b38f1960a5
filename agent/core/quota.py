"""How much may be under way at once. Pure counting; whoever reads asks before it reads."""

from agent.core.ledger import Chunk
from agent.core.policy import InFlightPolicy


class InFlight:
    """What was read and does not lie below a stored checkpoint yet, against its bounds.

    It bounds memory (invariant 4) and, since nothing counts as done before its checkpoint is on
    disk, the copies after a crash (invariant 5).
    """

    def __init__(self, policy: InFlightPolicy) -> None:
        self._policy = policy
        self.events = 0
        self.bytes = 0

    def add(self, chunk: Chunk) -> None:
        self.events += chunk.lines
        self.bytes += chunk.end - chunk.start

    def remove(self, chunk: Chunk) -> None:
        self.events -= chunk.lines
        self.bytes -= chunk.end - chunk.start
        assert self.events >= 0, "more was stored than was read"
        assert self.bytes >= 0, "more was stored than was read"

    @property
    def full(self) -> bool:
        """Return whether reading must wait. One chunk may overshoot; it is bounded itself."""
        return self.events >= self._policy.events_max or self.bytes >= self._policy.bytes_max
