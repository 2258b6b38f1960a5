"""Every source we know or knew, and who an opened file is among them.

Lives in the worker thread. What is decided is decided in ``core.identity`` and
``core.discovery``; this room gathers the evidence and keeps the books. What must reach the disk is
left in ``rows`` and ``forgotten`` for the loop to collect.
"""

import logging
from collections.abc import Collection, Iterable
from typing import NamedTuple

from msgspec.structs import replace

from agent.clock import Clock
from agent.core.continuation import Index
from agent.core.discovery import FileKey, Seen
from agent.core.identity import Birth, Change, Checkpoint, Readable, compare, examine
from agent.harvester import Followed, Harvester, first_generation, starting_at
from agent.opener import Descriptor
from agent.strangers import Strangers
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)


class Changes(NamedTuple):
    """Rows to store and rows to delete. With ``begun`` a generation is among them, and nothing of
    it may be sent before it is stored: a crash would give its number to other content."""

    rows: list[Checkpoint]
    forgotten: list[Checkpoint]
    begun: bool


class Registry:
    """The books: by birth who is followed or remembered, and what an unknown file may continue.

    Args:
        checkpoints: Everything the store holds, tombstones included.
        line_bytes_max: How far back the end of the last line is looked for, to begin there.
        forget_after_s: How long a tombstone is kept, of the wall clock.
    """

    def __init__(
        self,
        checkpoints: Iterable[Checkpoint],
        *,
        line_bytes_max: int,
        forget_after_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.rows: list[Checkpoint] = []
        self.forgotten: list[Checkpoint] = []
        self._begun = False
        self.strangers = Strangers(self.get, line_bytes_max=line_bytes_max, clock=clock)
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._metrics = metrics
        self.inodes: set[int] = set()
        """Of every file remembered: after a restart a scan has nothing else to know them by."""
        self._by_birth: dict[Birth, Followed] = {}
        self._superseded: list[Checkpoint] = []  # older generations: what copies may continue
        self._ending: list[Harvester] = []  # superseded, but not settled to their end yet
        for row in sorted(checkpoints, key=lambda c: c.generation):
            known = self._by_birth.get(row.birth)
            if known is not None:
                self._superseded.append(self._ended(known.checkpoint))
            self._by_birth[row.birth] = Followed(row.birth, row)
            self.inodes.add(row.birth.inode)

    @property
    def empty(self) -> bool:
        """Return whether nothing was ever followed."""
        return not self._by_birth

    def take(self) -> Changes:
        """Return what has to reach the disk since the last call."""
        taken = Changes(self.rows, self.forgotten, self._begun)
        self.rows, self.forgotten, self._begun = [], [], False
        return taken

    def scanned(self, new: Collection[FileKey]) -> None:
        """Bring the books up to date after a scan that met the unknown files ``new``."""
        for harvester in [h for h in self._ending if not h.ledger.in_flight_bytes]:
            self._ending.remove(harvester)
            self._superseded.append(harvester.checkpoint())
            self.rows.append(self._superseded[-1])
        self.strangers.scanned(new, self._indexed)
        self._forget()

    def identify(self, file: Descriptor, seen: Seen) -> tuple[Followed, Checkpoint] | None:
        """Say who ``file`` is and where to begin; None while that waits for evidence.

        Raises ``OSError`` when the file cannot be read.
        """
        followed = self._by_birth.get(file.birth)
        if followed is None:
            base = self.strangers.judge(file, seen)
            if base is None:
                return None
            followed = self._by_birth[file.birth] = Followed(file.birth, base)
            self.inodes.add(file.birth.inode)
            return followed, base
        before = followed.checkpoint
        change = compare(before, examine(before, before.birth, file.size(), file.pread))
        if change.cause != "same":
            return followed, self.supersede(followed, change, file)
        is_copy = followed.birth != before.birth
        gone_at = before.gone_at if is_copy else None
        return followed, replace(before, path=seen.path, gone_at=gone_at)

    def get(self, birth: Birth) -> Followed | None:
        return self._by_birth.get(birth)

    def supersede(self, followed: Followed, change: Change, file: Readable) -> Checkpoint:
        """End a generation and return the next; what is pending of the old one settles alone."""
        before = followed.latest()
        if followed.harvester is not None:
            followed.harvester.gone_at = self._clock.wall()
            self._ending.append(followed.harvester)
        else:
            self._superseded.append(replace(before, gone_at=self._clock.wall()))
            self.rows.append(self._superseded[-1])
        if followed.birth == before.birth:
            who = replace(before, generation=before.generation + 1, gone_at=None)
        else:  # a copy that is no longer one
            who = first_generation(followed.birth, before.path, before.client)
        event(log, logging.WARNING, "generation.begun", source=who.source_id, path=before.path,
              cause=change.cause, generation=who.generation, watermark=before.watermark,
              resume_at=change.resume_at)  # fmt: skip
        self._metrics.generations.labels(change.cause).inc()
        self._begun = True
        return starting_at(change.resume_at, file, who)

    def lose(self, followed: Followed) -> None:
        """Note that a file is gone: a tombstone, once what its descriptor holds is read."""
        followed.seen = None
        gone_at = self._clock.wall()
        if followed.harvester is not None:
            followed.harvester.gone_at = gone_at
        followed.checkpoint = replace(followed.latest(), gone_at=gone_at)
        self.rows.append(followed.checkpoint)

    def never_met(self) -> list[Followed]:
        """Return what the store knows and no scan has met so far."""
        return [
            f
            for f in self._by_birth.values()
            if f.seen is None and f.harvester is None and f.checkpoint.gone_at is None
        ]

    def _ended(self, row: Checkpoint) -> Checkpoint:
        """Return an older generation as a tombstone: a crash may have come before that was noted,
        and the copy of what is never gone would be read from its beginning."""
        if row.gone_at is None:
            row = replace(row, gone_at=self._clock.wall())
            self.rows.append(row)
        return row

    def _indexed(self) -> Index:
        """Return what unknown files may be copies of.

        What is still in flight counts as not gone, so that its copy waits until it is settled:
        two readers of one generation would have two watermarks. It is known by all that was read
        too, for there may be nothing settled yet.
        """
        index = Index(self._superseded)
        busy = list(self._ending)
        for followed in self._by_birth.values():
            if followed.harvester is not None and followed.harvester.ledger.in_flight_bytes:
                busy.append(followed.harvester)
            else:
                index.add(followed.latest())
        for harvester in busy:
            index.add(replace(harvester.checkpoint(), gone_at=None))
            index.add(replace(harvester.reached(), gone_at=None))
        return index

    def _forget(self) -> None:
        """Let go of tombstones past their time, but not of one whose copy is still followed."""
        before = self._clock.wall() - self._forget_after_s
        expired = [birth for birth, f in self._by_birth.items() if _expired(f.checkpoint, before)]
        in_use = set()
        for followed in self._by_birth.values():
            if followed.seen is not None or followed.harvester is not None:
                in_use.add((followed.checkpoint.source_id, followed.checkpoint.generation))
        gone = [
            self._by_birth.pop(birth).checkpoint
            for birth in expired
            if self._by_birth[birth].seen is None and self._by_birth[birth].harvester is None
        ]
        if gone:
            self.inodes = {birth.inode for birth in self._by_birth}
        gone += [row for row in self._superseded if _expired(row, before)]
        self._superseded = [row for row in self._superseded if not _expired(row, before)]
        self.forgotten += [row for row in gone if (row.source_id, row.generation) not in in_use]


def _expired(row: Checkpoint, before: float) -> bool:
    return row.gone_at is not None and row.gone_at < before
