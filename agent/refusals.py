"""What cannot be read, and why: said once, counted by reason, named for who asks.

Written in the worker thread, read from the loop's.
"""

import logging
from collections import Counter
from itertools import islice

from agent.core.discovery import Scan, printable
from agent.telemetry import UNREADABLE, Metrics, event

log = logging.getLogger(__name__)

NAMED_MAX = 100
"""Of those in ``named``: the counts tell of the rest."""
QUIET = {"gone", "old"}
"""Nobody's problem, and what was asked for."""


class Refusals:
    """Paths that gave no lines. A path is said again when its reason changes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._opening: dict[str, tuple[str, str]] = {}  # path -> reason and detail, of an open
        self._walking: dict[str, tuple[str, str]] = {}  # the same, of the last scan
        self.count = 0
        """How many there are, as of the last scan."""

    def note(self, path: str, reason: str, detail: str = "") -> None:
        """Note that opening or reading ``path`` failed."""
        if reason in QUIET:
            return
        if self._opening.get(path, ("",))[0] != reason:
            _say(path, reason, detail)
        self._opening[path] = reason, detail

    def clear(self, path: str) -> None:
        """Note that ``path`` can be read."""
        self._opening.pop(path, None)

    def scanned(self, scan: Scan) -> None:
        """Take what a scan could not or would not look at; forget what it did not meet."""
        met = {seen.path for seen in scan.files}
        self._opening = {path: why for path, why in self._opening.items() if path in met}
        before, self._walking = self._walking, {}
        for skipped in (*scan.skipped, *scan.unreadable):
            if skipped.reason not in QUIET:
                self._walking[skipped.path] = skipped.reason, ""
                if before.get(skipped.path, ("",))[0] != skipped.reason:
                    _say(skipped.path, skipped.reason, "")
        counts: Counter[str] = Counter(scan.skipped_counts)
        counts.update(directory.reason for directory in scan.unreadable)
        counts.update(reason for reason, _ in self._opening.values())
        for reason in UNREADABLE:
            self._metrics.unreadable.labels(reason).set(counts[reason])
        self.count = sum(counts[reason] for reason in UNREADABLE)

    def named(self) -> list[dict[str, str]]:
        """Return the first of them, for people. From any thread."""
        both = [*self._opening.copy().items(), *self._walking.copy().items()]
        return [
            {"path": printable(path), "reason": reason, "detail": detail}
            for path, (reason, detail) in islice(both, NAMED_MAX)
        ]


def _say(path: str, reason: str, detail: str) -> None:
    event(log, logging.WARNING, "file.refused", path=printable(path), reason=reason,
          detail=detail)  # fmt: skip
