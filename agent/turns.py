"""Which file is read next: those that have something take turns, and a flooding client's wait."""

import logging
from collections import OrderedDict
from collections.abc import Iterable

from agent.core.quota import Allowances
from agent.harvester import Followed
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)


class Turns:
    """Files with something to read, first come, first served.

    Args:
        floods: Dead letters that a client may make. Beyond it, its files wait; no other's do.
    """

    def __init__(self, floods: Allowances, metrics: Metrics) -> None:
        self._floods = floods
        self._metrics = metrics
        self._ready: OrderedDict[Followed, None] = OrderedDict()
        self._slowed: dict[Followed, None] = {}
        self._said: set[str] = set()  # clients that are slowed, as last said
        self._hurried = False

    def add(self, *files: Followed) -> None:
        """Give each of ``files`` a turn, after those that wait for one."""
        self._ready.update(dict.fromkeys(files))

    def take(self) -> Followed | None:
        """Return the file whose turn it is, None if there is none, or none that may be read now."""
        self._release()
        while self._ready:
            followed, _ = self._ready.popitem(last=False)
            if not self._wait_s(followed):
                return followed
            self._slowed[followed] = None
            self._say(self._said | {followed.checkpoint.client})
        return None

    def charge(self, followed: Followed, dead_letters: int) -> None:
        """Note how many lines of ``followed`` were rejected."""
        if dead_letters:
            self._floods.take(followed.checkpoint.client, dead_letters)

    def hurry(self) -> None:
        """Let nobody wait any more: a stop reads what is there."""
        self._hurried = True

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def __len__(self) -> int:
        """Return how many files wait for a turn, slowed ones too."""
        return len(self._ready) + len(self._slowed)

    def __contains__(self, followed: Followed) -> bool:
        return followed in self._ready or followed in self._slowed

    def wait_s(self, idle_s: float) -> float:
        """Return how long until ``take`` returns a file; ``idle_s`` if nobody knows."""
        if self._ready:
            return 0.0
        return min([idle_s, *map(self._wait_s, self._slowed)])

    def _wait_s(self, followed: Followed) -> float:
        return 0.0 if self._hurried else self._floods.wait_s(followed.checkpoint.client)

    def _release(self) -> None:
        """Let files go on whose client has paid for its dead letters."""
        if not self._said:
            return
        due = [followed for followed in self._slowed if not self._wait_s(followed)]
        for followed in due:
            del self._slowed[followed]
        self.add(*due)
        self._say(_clients(self._slowed) | (self._said & _clients(due)))

    def _say(self, slow: set[str]) -> None:
        """Tell who is slowed; one who has just been let go may be slowed again in a moment."""
        for client in sorted(slow - self._said):
            event(log, logging.WARNING, "client.slowed", client=client,
                  reason="more dead letters than dlq.lines_per_s_max")  # fmt: skip
        for client in sorted(self._said - slow):
            event(log, logging.INFO, "client.released", client=client)
        self._said = slow
        self._metrics.clients_slowed.set(len(slow))


def _clients(files: Iterable[Followed]) -> set[str]:
    return {followed.checkpoint.client for followed in files}
