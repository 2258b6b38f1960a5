"""What gives no lines, and why: said once, counted by reason, named for who asks.

Written in the worker thread, read from the loop's.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from agent.core.auditing import Note, unheard
from agent.core.discovery import Scan, Skipped, is_below, printable
from agent.telemetry import UNREADABLE, Metrics, event

log = logging.getLogger(__name__)

NAMED_MAX = 100
"""Of those in ``named``: the counts tell of the rest."""
QUIET = frozenset({"gone", "old"})
"""As it was asked for, or nobody's problem."""

_Reasons = dict[str, str]  # by path


class Refusals:
    """Names below the root that gave no lines. One is said again when its reason changes.

    Args:
        note: Of the audit log.

    Attributes:
        count: How many there are, as of the last scan.
    """

    def __init__(self, metrics: Metrics, note: Note = unheard) -> None:
        self.count = 0
        self._note = note
        self._metrics = metrics
        self._refused: _Reasons = {}  # files that could not be opened or read
        self._skipped: _Reasons = {}  # the rest is of the last scan
        self._unreadable: _Reasons = {}
        self._crowded: set[str] = set()  # clients

    def refuse(self, path: str, reason: str, detail: str = "") -> None:
        """Note that opening or reading ``path`` failed."""
        if reason in QUIET or self._refused.get(path) == reason:
            return
        self._refused[path] = reason
        event(log, logging.WARNING, "file.refused", path=printable(path), reason=reason,
              detail=detail)  # fmt: skip
        self._note("file.refused", path=path, reason=reason, detail=detail)

    def clear(self, path: str) -> None:
        """Note that ``path`` can be read."""
        self._refused.pop(path, None)

    def scanned(self, scan: Scan) -> None:
        """Take what a scan could not or would not look at; forget what it did not meet."""
        if scan.root_problem is not None:
            return
        met = {seen.path for seen in scan.files} if self._refused else ()
        self._refused = {path: why for path, why in self._refused.items() if path in met}
        skipped, self._skipped = self._skipped, _reasons(scan.skipped)
        for path, reason in _new(self._skipped, skipped):
            event(log, logging.WARNING, "file.skipped", path=path, reason=reason)
            self._note("file.refused", path=path, reason=reason, detail="")
        unreadable, self._unreadable = self._unreadable, _reasons(scan.unreadable)
        for path, reason in _new(self._unreadable, unreadable):
            event(log, logging.WARNING, "directory.unreadable", path=path, reason=reason)
            self._note("file.refused", path=path, reason=reason, detail="")
        for client in sorted(scan.over_limit.keys() - self._crowded):
            event(log, logging.WARNING, "client.crowded", client=client,
                  files_not_taken=scan.over_limit[client])  # fmt: skip
        self._crowded = {*scan.over_limit}
        self._export(scan)

    def named(self) -> list[dict[str, str]]:
        """Return the first of them, for people. From any thread."""
        every = [*self._refused.copy().items(), *self._unreadable.items(), *self._skipped.items()]
        return [
            {"path": printable(path), "reason": reason} for path, reason in islice(every, NAMED_MAX)
        ]

    def why(self, path: str) -> tuple[str, str] | None:
        """Return why ``path`` gives no lines, and what lies above it if that is the reason."""
        reason = self._refused.get(path) or self._skipped.get(path)
        if reason is not None:
            return reason, ""
        above = (one for one in self._unreadable.items() if is_below(path, one[0]))
        return next(((why, f"({directory})") for directory, why in above), None)

    def crowded(self, client: str) -> bool:
        """Return whether ``client`` has more files than are taken."""
        return client in self._crowded

    def _export(self, scan: Scan) -> None:
        counts: Counter[str] = Counter(scan.skipped_counts)
        counts.update(self._refused.values())
        counts.update(self._unreadable.values())
        for reason in UNREADABLE:
            self._metrics.unreadable.labels(reason).set(counts[reason])
        self.count = sum(counts[reason] for reason in UNREADABLE)
        self._metrics.files_over_limit.set(sum(scan.over_limit.values()))


def _reasons(found: Iterable[Skipped]) -> _Reasons:
    return {one.path: one.reason for one in found if one.reason not in QUIET}


def _new(now: _Reasons, before: _Reasons) -> list[tuple[str, str]]:
    """Return what was not there, or for another reason; paths as a terminal may show them."""
    return [(printable(path), why) for path, why in sorted(now.items()) if before.get(path) != why]
