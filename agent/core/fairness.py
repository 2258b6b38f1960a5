"""Whose turn it is among clients that share one reader. Pure.

Start-time fair queueing (Goyal, Vin, Cheng: https://doi.org/10.1145/248156.248171): who was served
least goes first, counted from the virtual time at which it began to wait. So a client with many
files, or with long lines, gets no more than one with a few, and who comes back after a pause is
owed nothing for it.
"""

from heapq import heappop, heappush
from itertools import count

KEPT = 1024
"""Clients remembered that do not wait."""


class Fairness:
    """Clients that wait for a turn, each at most once."""

    def __init__(self) -> None:
        self._virtual = 0.0
        self._tags: dict[str, float] = {}  # what each client's next turn begins at
        self._waiting: list[tuple[float, int, str]] = []
        self._entries = count()  # among equals, first come, first served

    def enter(self, client: str) -> None:
        """Let ``client`` wait for a turn; it does not wait yet."""
        tag = self._tags[client] = max(self._tags.get(client, 0.0), self._virtual)
        heappush(self._waiting, (tag, next(self._entries), client))

    def take(self) -> str | None:
        """Return whose turn it is, who does not wait any more; None when nobody waits."""
        if not self._waiting:
            return None
        self._virtual, _, client = heappop(self._waiting)
        return client

    def charge(self, client: str, amount: float) -> None:
        """Note what ``client`` got in its turn, or cost; before it waits again."""
        self._tags[client] = max(self._tags.get(client, 0.0), self._virtual) + amount
        if not self._waiting:  # it took nothing from anybody
            self._virtual = max(self._tags.values())
            self._tags.clear()
        elif len(self._tags) > KEPT + 2 * len(self._waiting):
            self._forget()

    def _forget(self) -> None:
        """Forgive those who do not wait what they owe, or their number would have no bound."""
        waiting = {client for _, _, client in self._waiting}
        self._tags = {client: tag for client, tag in self._tags.items() if client in waiting}
