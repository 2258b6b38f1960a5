"""Deletes files that were shipped, where it is told to. Lives in the worker thread.

Only what Kafka has acknowledged: a file must be settled to its end and unchanged from one scan to
the next, and the spool be empty at the second. What is in the spool by then came later.
"""

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from agent.clock import Clock
from agent.core.auditing import Note, unheard
from agent.core.deletion import childless, deletable
from agent.core.discovery import FileKey, Scan, Seen, printable
from agent.core.identity import Birth
from agent.harvester import Followed
from agent.opener import Refused
from agent.telemetry import Metrics, event
from agent.unpacking import is_content

log = logging.getLogger(__name__)


class Remove(NamedTuple):
    """What deletes: a file that was born so and is so long; a directory, unchanged since then."""

    file: Callable[[str, Birth, int], Refused | None]
    directory: Callable[[str, float], bool]


class Deletion:
    """Deletes what was shipped ``after_s`` after it was last written to; None: nothing, ever.

    Args:
        include: The patterns of ``source.include``, which say what a rotated file is called.
        note: Of the audit log.
    """

    def __init__(
        self,
        after_s: float | None,
        include: Iterable[str],
        remove: Remove,
        *,
        note: Note = unheard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._after_s = after_s
        self._include = tuple(include)
        self._remove = remove
        self._note = note
        self._clock = clock
        self._metrics = metrics
        self._due: dict[FileKey, Seen] = {}  # as the last scan met them, settled to their end
        self._refused: dict[FileKey, str] = {}  # as last said

    def scanned(self, scan: Scan, known: Iterable[Followed], *, acknowledged: bool) -> None:
        """Delete what is due. ``acknowledged``: nothing that was settled waits in the spool.

        ``known`` are the files that were met so far.
        """
        if self._after_s is None:
            return
        wall_s, before, self._due = self._clock.wall(), self._due, {}
        for followed in known:
            seen, row = followed.seen, followed.latest()
            if seen is None or _busy(followed) or is_content(followed.birth):
                continue
            if deletable(seen, row, self._include, wall_s=wall_s, after_s=self._after_s):
                if acknowledged and before.get(seen.key) == seen:
                    self._delete(followed, seen)
                else:
                    self._due[seen.key] = seen
        self._refused = {key: why for key, why in self._refused.items() if key in before}
        if not scan.unreadable:
            self._clear(scan, wall_s - self._after_s)

    def _delete(self, followed: Followed, seen: Seen) -> None:
        refused = self._remove.file(seen.path, followed.birth, seen.size)
        row, path = followed.checkpoint, printable(seen.path)
        if refused is None:
            self._metrics.deleted_files.inc()
            self._metrics.deleted_bytes.inc(seen.size)
            event(log, logging.INFO, "file.deleted", path=path, client=row.client,
                  source=row.source_id, size=seen.size)  # fmt: skip
            self._note("file.deleted", path=seen.path, client=row.client, source=row.source_id,
                       size=seen.size, why="source.delete_after_s", by="agent")  # fmt: skip
            return
        self._due[seen.key] = seen
        if self._refused.get(seen.key) != refused.reason:
            self._refused[seen.key] = refused.reason
            event(log, logging.WARNING, "file.not_deleted", path=path, reason=refused.reason,
                  detail=refused.detail)  # fmt: skip

    def _clear(self, scan: Scan, before_s: float) -> None:
        for path in sorted(childless(scan.directories, (seen.path for seen in scan.files))):
            if self._remove.directory(path, before_s):
                event(log, logging.INFO, "directory.deleted", path=printable(path))
                self._note("directory.deleted", path=path, by="agent")


def _busy(followed: Followed) -> bool:
    reader = followed.harvester
    return reader is not None and bool(reader.more or reader.ledger.in_flight_bytes)
