"""Files that are gone and still open: what their descriptors hold is read, then let go of.

Lives in the worker thread. A deleted file lives on for whoever has it open, the app that writes it
perhaps too. So it is held until nothing came for ``GRACE_S``; then a last line without an end is
taken for one that will never have one. What is held costs disk that nobody sees: it has a bound,
and beyond it the file that went first is given up, counted: one of the client that holds most, so
that nobody's deletions cost another one its lines.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agent.clock import Clock
from agent.core.discovery import printable
from agent.harvester import Followed
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""A file that is gone and has not grown for so long is finished."""


class _Still(NamedTuple):
    """How big a file was, and since when."""

    size: int
    since_s: float


class Departed:
    """Decides when a file that is gone is finished.

    Args:
        look: Give files another turn, to be read on.
        close: Close a file.
        held_bytes_max: Of all deleted files that are open; None: no limit.
    """

    def __init__(
        self,
        look: Callable[[Followed], None],
        close: Callable[[Followed], None],
        *,
        held_bytes_max: int | None,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._look = look
        self._close = close
        self._held_bytes_max = held_bytes_max
        self._clock = clock
        self._metrics = metrics
        self._still: dict[Followed, _Still] = {}

    def scanned(self, opened: Iterable[Followed], drained: Callable[[Followed], bool]) -> None:
        """Look after those of ``opened`` that no scan meets any more. After each scan."""
        gone = [followed for followed in opened if followed.seen is None]
        self._still = {f: self._still[f] for f in gone if f in self._still}
        for followed in gone:
            if drained(followed):
                self._rest(followed)
        self._bound([followed for followed in gone if followed.harvester is not None])

    def finish(self, followed: Followed) -> bool:
        """Let what a file holds be its end. Return whether it can be closed now."""
        reader = followed.harvester
        assert reader is not None
        left_bytes = reader.file.size() - reader.cursor.start  # seen or not
        # One that was moved out of sight is somebody's file still, and may come back.
        if reader.ending or not left_bytes or reader.file.links():
            return True
        reader.ending = True
        self._look(followed)
        return False

    def _rest(self, followed: Followed) -> None:
        assert followed.harvester is not None
        now_s, size = self._clock.monotonic(), followed.harvester.file.size()
        still = self._still.get(followed)
        if still is None or still.size != size:
            self._still[followed] = _Still(size, now_s)
            followed.harvester.ending = False
            self._look(followed)
        elif now_s - still.since_s >= GRACE_S and self.finish(followed):
            self._close(followed)

    def _bound(self, gone: list[Followed]) -> None:
        """Keep within ``held_bytes_max``: of the client that holds most, what went first goes."""
        gone.sort(key=lambda followed: followed.checkpoint.gone_at or 0.0, reverse=True)
        held: defaultdict[str, list[tuple[Followed, int]]] = defaultdict(list)
        of_client: Counter[str] = Counter()
        for followed in gone:
            size, client = _held_bytes(followed), followed.checkpoint.client
            if size:
                held[client].append((followed, size))
                of_client[client] += size
        while self._held_bytes_max is not None and of_client.total() > self._held_bytes_max:
            client = max(of_client, key=lambda one: of_client[one])
            followed, size = held[client].pop()
            of_client[client] -= size
            self._give_up(followed)
        self._metrics.held_bytes.set(of_client.total())

    def _give_up(self, followed: Followed) -> None:
        reader = followed.harvester
        assert reader is not None
        unread_bytes = reader.file.size() - reader.cursor.start
        self._metrics.gone_unread_bytes.labels("held").inc(unread_bytes)
        event(log, logging.ERROR, "file.given_up", source=followed.checkpoint.source_id,
              path=printable(followed.checkpoint.path), unread_bytes=unread_bytes,
              reason="deleted files hold more than source.held_bytes_max")  # fmt: skip
        self._close(followed)


def _held_bytes(followed: Followed) -> int:
    """Return what only our descriptor keeps on the disk."""
    assert followed.harvester is not None
    file = followed.harvester.file
    return 0 if file.links() else file.disk_bytes()
