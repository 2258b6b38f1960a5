"""Files that grow while nothing of it is read. Lives in the worker thread.

Some file systems give two answers about one file: a network file system may keep an old size, and
an overlay (before Linux 4.19) showed a lower file for ever to who had it open when it was copied
up. Then only opening the path again helps. Nothing else should make a file stuck: one that waits
for its turn, for room, or for the end of a line has been seen to its end, or is about to be. If one
rests all the same before its end, opening it again gives it a turn.
"""

import logging
from collections.abc import Iterable

from agent.clock import Clock
from agent.core.discovery import printable
from agent.harvester import Followed
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

STUCK_S = 15.0
"""For so long, and in two scans at least, a file must be bigger by its path than was seen."""


class Stuck:
    """Finds them among the open files that have nothing to read."""

    def __init__(self, *, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._since_s: dict[Followed, float] = {}

    def scanned(self, resting: Iterable[Followed]) -> list[Followed]:
        """Return those of ``resting`` to be opened again. After each scan."""
        now_s, before, self._since_s = self._clock.monotonic(), self._since_s, {}
        found = []
        for followed in resting:
            assert followed.harvester is not None
            if followed.seen is None or followed.seen.size <= followed.harvester.seen_to:
                continue
            since_s = self._since_s[followed] = before.get(followed, now_s)
            if now_s - since_s >= STUCK_S:
                del self._since_s[followed]
                self._say(followed)
                found.append(followed)
        return found

    def _say(self, followed: Followed) -> None:
        assert followed.seen is not None
        assert followed.harvester is not None
        self._metrics.stuck_files.inc()
        event(log, logging.WARNING, "file.stuck", source=followed.checkpoint.source_id,
              path=printable(followed.seen.path), size=followed.seen.size,
              open_size=followed.harvester.file.size(), seen_to=followed.harvester.seen_to,
              effect="it is opened again")  # fmt: skip
