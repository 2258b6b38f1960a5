"""Which file is read next: clients take turns by bytes, and one that is over a limit waits."""

import logging
from heapq import heappop, heappush

from agent.clock import Clock
from agent.core.fairness import Fairness
from agent.core.quota import ClientLimits
from agent.harvester import Followed
from agent.telemetry import Metrics, event
from agent.waiting import Waiting

log = logging.getLogger(__name__)

TURN_BYTES = 4096
"""What a turn costs besides the bytes that are read: opening a chunk, asking the disk."""


class Turns:
    """Files with something to read: between clients by bytes, within one as ``waiting`` says.

    A client that was made to wait is in a spell until it has caught up and owes nothing: a backlog
    makes it wait again and again, which is said once.

    Args:
        limits: What a client may have. Beyond it, its files wait; no other's do.
    """

    def __init__(self, limits: ClientLimits, clock: Clock, metrics: Metrics) -> None:
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._fairness = Fairness()
        self._backlogs: dict[Followed, int] = {}  # of those that are open
        self._idle: dict[Followed, None] = {}  # of them, those that wait for no turn
        self._ready: dict[str, Waiting] = {}
        self._slowed: dict[str, Waiting] = {}
        self._turn: str | None = None  # the client whose file was taken last
        self._spells: dict[str, str] = {}  # client -> the limit it was over
        self._due: list[tuple[float, str]] = []  # a heap: when one in a spell will have paid
        self._counted_s = clock.monotonic()
        self._hurried = False

    def begin(self, followed: Followed, size: int) -> None:
        """Give ``followed``, which is ``size`` long, its first turn since it was opened."""
        self._backlogs[followed] = size
        self.add(followed)

    def end(self, followed: Followed) -> None:
        """Note that ``followed`` was closed."""
        self._backlogs.pop(followed, None)
        self._idle.pop(followed, None)

    def add(self, *files: Followed) -> None:
        """Give each of ``files`` a turn, after those of its client that wait for one."""
        for followed in files:
            self._idle.pop(followed, None)
            client = followed.checkpoint.client
            waiting = self._slowed.get(client) or self._ready.get(client)
            if waiting is not None:
                waiting.add(followed)
                continue
            waiting = self._ready[client] = Waiting(self._backlogs)
            waiting.add(followed)
            if client != self._turn:
                self._fairness.enter(client)

    def take(self) -> Followed | None:
        """Return the file whose turn it is, None if there is none, or none that may be read now."""
        last, self._turn = self._turn, None
        if last in self._ready:
            self._fairness.enter(last)
        elif last in self._spells:  # it has caught up, and may owe something still
            self._look_again(last)
        self._release()
        while (client := self._fairness.take()) is not None:
            if self._slow(client):
                continue
            files = self._ready[client]
            followed = files.take()
            if not files:
                del self._ready[client]
            self._turn = client
            if followed in self._backlogs:
                self._idle[followed] = None
            return followed
        return None

    def charge(self, followed: Followed, read_bytes: int, dead_letters: int, events: int) -> None:
        """Note what the turn of ``followed`` came to; ``events`` are its lines, bad ones too."""
        client = followed.checkpoint.client
        self._fairness.charge(client, read_bytes + TURN_BYTES)
        self._limits.take(client, events=events, read_bytes=read_bytes, dead_letters=dead_letters)

    def hurry(self) -> None:
        """Let nobody be slowed any more: a stop reads what is there."""
        self._release()
        self._hurried = True
        for client in [*self._slowed]:
            self.add(*self._slowed.pop(client))
        for client in sorted(self._spells):
            self._end(client)
        self._due.clear()

    def idle(self) -> list[Followed]:
        """Return the open files that wait for no turn, whose last one is longest ago first."""
        return [*self._idle]

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

    def slowed(self, client: str) -> str | None:
        """Return the limit for which the files of ``client`` wait, or None."""
        return self._spells.get(client) if client in self._slowed else None

    def wait_s(self, idle_s: float) -> float:
        """Return how long until ``take`` has something to do; ``idle_s`` if nobody knows."""
        if self._ready or self._turn in self._spells:  # or its spell would end later than it does
            return 0.0
        if not self._due:
            return idle_s
        return min(idle_s, max(0.0, self._due[0][0] - self._clock.monotonic()))

    def _slow(self, client: str) -> bool:
        """Let the files of ``client`` wait if it owes something; return whether they do."""
        if self._hurried or not self._limits.wait_s(client):
            return False
        self._slowed[client] = self._ready.pop(client)
        self._look_again(client)
        if client not in self._spells:
            reason = self._spells[client] = self._limits.reason(client)
            event(log, logging.WARNING, "client.slowed", client=client, reason=reason)
            self._metrics.clients_slowed.set(len(self._spells))
        return True

    def _look_again(self, client: str) -> None:
        """See to ``client`` once it has paid."""
        due_s = self._clock.monotonic() + self._limits.wait_s(client)
        heappush(self._due, (due_s, client))

    def _release(self) -> None:
        """Let clients go on who have paid; the spell of one who has caught up is over."""
        now_s, throttled_s = self._clock.monotonic(), 0.0
        while self._due and self._due[0][0] <= now_s:
            due_s, client = heappop(self._due)
            if client in self._slowed:
                throttled_s += max(0.0, due_s - self._counted_s)
                self.add(*self._slowed.pop(client))
            elif client in self._spells and self._settled(client):
                self._end(client)
        throttled_s += len(self._slowed) * (now_s - self._counted_s)
        self._counted_s = now_s
        self._metrics.client_throttled_seconds.inc(throttled_s)

    def _settled(self, client: str) -> bool:
        """Return whether it has caught up, and was not read since: then it would be due later."""
        return client not in self._ready and not self._limits.wait_s(client)

    def _end(self, client: str) -> None:
        reason = self._spells.pop(client)
        event(log, logging.INFO, "client.released", client=client, reason=reason)
        self._metrics.clients_slowed.set(len(self._spells))
