"""Clients as metrics may name them: the first so many that there are, the rest is ``other``.

Pods come and go, and each could bring a name of its own: a label that follows them without a bound
costs memory here and in everything that stores it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

from agent.core.discovery import Seen
from agent.core.identity import Checkpoint
from agent.telemetry import OTHER, Metrics

NAMED_MAX = 32
NAME_CHARACTERS_MAX = 64


class Clients:
    """Keeps the series of clients. A client without a file gives its place to another.

    ``shown`` says what may be shown of a name; of clients that look the same one has a series.
    """

    def __init__(self, metrics: Metrics, shown: Callable[[str], str] = str) -> None:
        self._shown = shown
        self._metrics = metrics
        self._named: dict[str, str] = {}  # client -> label

    def label(self, client: str) -> str:
        return self._named.get(client, OTHER)

    def read(self, client: str, lines: int) -> None:
        self._metrics.client_lines_read.labels(self.label(client)).inc(lines)

    def _renamed(self, client: str) -> bool:
        """Return whether other rules of redaction show it as something else by now."""
        return self._shown(client)[:NAME_CHARACTERS_MAX] != self._named[client]

    def scanned(self, files: Iterable[tuple[Seen, Checkpoint]]) -> int:
        """Export how far each client is behind. Return the bytes of all."""
        behind: defaultdict[str, int] = defaultdict(int)
        for seen, row in files:
            behind[row.client] += max(0, seen.size - row.watermark)
        for client in [c for c in self._named if c not in behind or self._renamed(c)]:
            label = self._named.pop(client)
            for series in self._metrics.of_clients:
                series.remove(label)
        taken = set(self._named.values())
        for client in behind:
            label = self._shown(client)[:NAME_CHARACTERS_MAX]
            if len(self._named) >= NAMED_MAX:
                break
            if client not in self._named and label not in taken and label != OTHER:
                self._named[client] = label
                taken.add(label)
                for series in self._metrics.of_clients:
                    series.labels(label)
        by_label: defaultdict[str, int] = defaultdict(int, {OTHER: 0})
        for client, lag_bytes in behind.items():
            by_label[self.label(client)] += lag_bytes
        for label, lag_bytes in by_label.items():
            self._metrics.client_lag_bytes.labels(label).set(lag_bytes)
        return sum(behind.values())
