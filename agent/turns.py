"""Which file is read next: clients take turns by bytes, and one that floods dead letters waits."""

import logging
from collections.abc import Iterable

from agent.core.fairness import Fairness
from agent.core.quota import Allowances
from agent.harvester import Followed
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

TURN_BYTES = 4096
"""What a turn costs besides the bytes that are read: opening a chunk, asking the disk."""

_Files = dict[Followed, None]


class Turns:
    """Files with something to read: between clients by bytes, within one first come, first served.

    Args:
        floods: Dead letters that a client may make. Beyond it, its files wait; no other's do.
    """

    def __init__(self, floods: Allowances, metrics: Metrics) -> None:
        self._floods = floods
        self._metrics = metrics
        self._fairness = Fairness()
        self._ready: dict[str, _Files] = {}
        self._slowed: dict[str, _Files] = {}
        self._turn: str | None = None  # the client whose file was taken last
        self._said: set[str] = set()  # clients that are slowed, as last said
        self._hurried = False

    def add(self, *files: Followed) -> None:
        """Give each of ``files`` a turn, after those of its client that wait for one."""
        for followed in files:
            client = followed.checkpoint.client
            waiting = self._slowed.get(client) or self._ready.get(client)
            if waiting is not None:
                waiting.setdefault(followed)
                continue
            self._ready[client] = {followed: None}
            if client != self._turn:
                self._fairness.enter(client)

    def take(self) -> Followed | None:
        """Return the file whose turn it is, None if there is none, or none that may be read now."""
        self._release()
        if self._turn in self._ready:
            self._fairness.enter(self._turn)
        self._turn = None
        while (client := self._fairness.take()) is not None:
            files = self._ready[client]
            if self._wait_s(client):
                self._slowed[client] = self._ready.pop(client)
                self._say(self._said | {client})
                continue
            followed = next(iter(files))
            del files[followed]
            if not files:
                del self._ready[client]
            self._turn = client
            return followed
        return None

    def charge(self, followed: Followed, read_bytes: int, dead_letters: int) -> None:
        """Note what the turn of ``followed`` came to."""
        client = followed.checkpoint.client
        self._fairness.charge(client, read_bytes + TURN_BYTES)
        if dead_letters:
            self._floods.take(client, dead_letters)

    def hurry(self) -> None:
        """Let nobody be slowed any more: a stop reads what is there."""
        self._hurried = True

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    @property
    def waiting(self) -> bool:
        """Return whether any file waits for a turn, a slowed one too."""
        return bool(self._ready or self._slowed)

    def __contains__(self, followed: Followed) -> bool:
        client = followed.checkpoint.client
        return followed in self._ready.get(client, ()) or followed in self._slowed.get(client, ())

    def wait_s(self, idle_s: float) -> float:
        """Return how long until ``take`` returns a file; ``idle_s`` if nobody knows."""
        if self._ready:
            return 0.0
        return min([idle_s, *map(self._wait_s, self._slowed)])

    def _wait_s(self, client: str) -> float:
        return 0.0 if self._hurried else self._floods.wait_s(client)

    def _release(self) -> None:
        """Let clients go on who have paid for their dead letters."""
        if not self._said:
            return
        due = [client for client in self._slowed if not self._wait_s(client)]
        for client in due:
            self.add(*self._slowed.pop(client))
        # One who has just been let go may be slowed again in a moment.
        self._say(self._slowed.keys() | (self._said & set(due)))

    def _say(self, slow: Iterable[str]) -> None:
        slow = set(slow)
        for client in sorted(slow - self._said):
            event(log, logging.WARNING, "client.slowed", client=client,
                  reason="more dead letters than dlq.lines_per_s_max")  # fmt: skip
        for client in sorted(self._said - slow):
            event(log, logging.INFO, "client.released", client=client)
        self._said = slow
        self._metrics.clients_slowed.set(len(slow))
