"""Clients as metrics may name them: the first so many that there are, the rest is ``other``.

Pods come and go, and each could bring a name of its own: a label that follows them without a bound
costs memory here and in everything that stores it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from agent.clock import Clock, SystemClock
from agent.core.discovery import Seen
from agent.core.lag import Waits
from agent.telemetry import OTHER, Metrics

NAMED_MAX = 32
NAME_CHARACTERS_MAX = 64


class Known(NamedTuple):
    """A file, how far it is settled, and whether all beyond that is a line without its end."""

    client: str
    seen: Seen
    watermark: int
    torn: bool = False


class Clients:
    """Keeps the series of clients. A client without a file gives its place to another.

    ``shown`` says what may be shown of a name; of clients that look the same one has a series.
    """

    def __init__(
        self,
        metrics: Metrics,
        shown: Callable[[str], str] = str,
        clock: Clock | None = None,
    ) -> None:
        self._clock = SystemClock() if clock is None else clock
        self._shown = shown
        self._waits = Waits()
        self._metrics = metrics
        self._named: dict[str, str] = {}  # client -> label

    def label(self, client: str) -> str:
        return self._named.get(client, OTHER)

    def read(self, client: str, lines: int) -> None:
        if client not in self._named:  # no scan has seen how far it is yet
            self._take(client)
        self._metrics.client_lines_read.labels(self.label(client)).inc(lines)

    def _renamed(self, client: str) -> bool:
        """Return whether other rules of redaction show it as something else by now."""
        return self._shown(client)[:NAME_CHARACTERS_MAX] != self._named[client]

    def scanned(self, files: Iterable[Known]) -> int:
        """Export how far each client is behind. Return the bytes of all."""
        lag_bytes: defaultdict[str, int] = defaultdict(int)
        oldest_s: dict[str, float] = {}
        self._waits.begin()
        for client, seen, watermark, torn in files:
            lag_bytes[client] += max(0, seen.size - watermark)
            if seen.size > watermark and not torn:
                since_s = self._waits.since(seen, watermark)
                oldest_s[client] = min(since_s, oldest_s.get(client, since_s))
        self._name(lag_bytes)
        now_s = self._clock.wall()
        lag_s = {client: max(0.0, now_s - oldest_s.get(client, now_s)) for client in lag_bytes}
        self._export(lag_bytes, lag_s)
        return sum(lag_bytes.values())

    def _name(self, clients: Iterable[str]) -> None:
        """Let clients without files go, and take new ones in their places."""
        clients = dict.fromkeys(clients)
        for client in [c for c in self._named if c not in clients or self._renamed(c)]:
            label = self._named.pop(client)
            for series in self._metrics.of_clients:
                series.remove(label)
        for client in clients:
            self._take(client)

    def _take(self, client: str) -> None:
        """Give a client a series of its own, where there is room and none that looks the same."""
        if len(self._named) >= NAMED_MAX or client in self._named:
            return
        label = self._shown(client)[:NAME_CHARACTERS_MAX]
        if label != OTHER and label not in self._named.values():
            self._named[client] = label
            for series in self._metrics.of_clients:
                series.labels(label)

    def _export(self, lag_bytes: Mapping[str, int], lag_s: Mapping[str, float]) -> None:
        bytes_of: defaultdict[str, int] = defaultdict(int, {OTHER: 0})
        longest_s: defaultdict[str, float] = defaultdict(float, {OTHER: 0.0})
        for client in lag_bytes:
            label = self.label(client)
            bytes_of[label] += lag_bytes[client]
            longest_s[label] = max(longest_s[label], lag_s[client])
        for label in bytes_of:
            self._metrics.client_lag_bytes.labels(label).set(bytes_of[label])
            self._metrics.client_lag_seconds.labels(label).set(longest_s[label])
