"""Which events are wanted by their own time, and what times were met. Pure."""

from agent.core.decode import Decoded
from agent.core.events import Event
from agent.core.formats import epoch_s


class Window:
    """Takes events of ``[since_s, until_s)``, seconds since 1970 UTC; None: without that end.

    An event without a time is taken: nobody can say that it is not wanted.

    Attributes:
        passed_over: Events that were not taken.
        timeless: Events that have no time of their own.
        oldest_s, newest_s: Of the times that were taken; None: there was none.
        expired: Taken, and older than ``expires_s``, which may be set at any time. Not counted are
            those whose time nobody trusts.
    """

    def __init__(self, since_s: float | None = None, until_s: float | None = None) -> None:
        self._since_s = float("-inf") if since_s is None else since_s
        self._until_s = float("inf") if until_s is None else until_s
        self.expires_s = float("-inf")
        self.passed_over = self.timeless = self.expired = 0
        self.oldest_s: float | None = None
        self.newest_s: float | None = None

    def takes(self, decoded: Event | Decoded) -> bool:
        """Return whether an event is wanted, and note its time."""
        suspect = isinstance(decoded, Decoded) and decoded.suspect
        timestamp = (decoded.event if isinstance(decoded, Decoded) else decoded).timestamp
        at_s = None if timestamp is None else epoch_s(timestamp)
        if at_s is None:
            self.timeless += 1
            return True
        if not self._since_s <= at_s < self._until_s:
            self.passed_over += 1
            return False
        self.oldest_s = at_s if self.oldest_s is None else min(self.oldest_s, at_s)
        self.newest_s = at_s if self.newest_s is None else max(self.newest_s, at_s)
        self.expired += at_s < self.expires_s and not suspect
        return True
