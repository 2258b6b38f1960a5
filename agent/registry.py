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
from agent.core.auditing import Note, unheard
from agent.core.continuation import Index
from agent.core.discovery import FileKey, Seen
from agent.core.identity import Birth, Change, Checkpoint, File, Readable, compare, examine
from agent.harvester import Followed, Harvester, first_generation, starting_at
from agent.strangers import Strangers
from agent.telemetry import Metrics, event
from agent.tombstones import Tombstones
from agent.unpacking import content_birth, file_birth, is_content

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
        note: Note = unheard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.rows: list[Checkpoint] = []
        self.forgotten: list[Checkpoint] = []
        self._begun = False
        self._index = Index()
        self._by_birth: dict[Birth, Followed] = {}
        self._tombstones = Tombstones(self._by_birth, self._index)
        self.strangers = Strangers(
            self._tombstones.holder, self._index, line_bytes_max=line_bytes_max, clock=clock
        )
        self._forget_after_s = forget_after_s
        self._note = note
        self.clock = clock
        self._metrics = metrics
        self._moving: dict[Followed, None] = {}  # whose rows may not be what the index says
        self._ending: list[Harvester] = []  # superseded, but not settled to their end yet
        for row in sorted(checkpoints, key=lambda c: c.generation):
            known = self._by_birth.get(row.birth)
            if known is not None:
                self._tombstones.add(self._ended(known.checkpoint))
            self._by_birth[row.birth] = Followed(row.birth, row)
        for followed in self._by_birth.values():
            self._tombstones.add(followed)
            self._moving[followed] = None
        self.unmet = [*self._by_birth.values()]
        """What the store knew; ``never_met`` keeps those that no scan has met."""

    @property
    def empty(self) -> bool:
        """Return whether nothing was ever followed."""
        return not self._by_birth

    @property
    def inodes(self) -> set[int]:
        """Return those of every file remembered; after a restart a scan has nothing else to know
        them by. From any thread."""
        return {birth.inode for birth in list(self._by_birth)}

    @property
    def settled(self) -> dict[int, int]:
        """Return how far files are settled that the store knows and no scan has met so far, by
        inode: who they are is not known before they are opened."""
        return {f.birth.inode: f.checkpoint.watermark for f in self.unmet}

    def take(self) -> Changes:
        """Return what has to reach the disk since the last call."""
        taken = Changes(self.rows, self.forgotten, self._begun)
        self.rows, self.forgotten, self._begun = [], [], False
        return taken

    def scanned(self, new: Collection[FileKey]) -> None:
        """Bring the books up to date after a scan that met the unknown files ``new``."""
        for harvester in [h for h in self._ending if not h.ledger.in_flight_bytes]:
            self._ending.remove(harvester)
            self._index.put(harvester)
            self.rows.append(harvester.checkpoint())
            self._tombstones.add(self.rows[-1])
        self.strangers.scanned(new)
        self._keep_books()  # without unknown files too: an inode may turn out to have a new life
        self._index.compact()
        self.forgotten += self._tombstones.forget(self.clock.wall() - self._forget_after_s)

    def identify(self, file: File, seen: Seen) -> tuple[Followed, Checkpoint] | None:
        """Say who ``file`` is and where to begin; None while that waits for evidence.

        Raises ``OSError`` when the file cannot be read.
        """
        followed = self._by_birth.get(file.birth)
        if followed is None:
            if self.strangers.crowded:
                self._keep_books()
            base = self.strangers.judge(file, seen)
            if base is None:
                return None
            followed = self._by_birth[file.birth] = Followed(file.birth, base)
            self._moving[followed] = None
            if base.birth != file.birth:
                self._tombstones.copied(followed)
            return followed, base
        self._moving[followed] = None
        before = followed.checkpoint
        change = compare(before, examine(before, before.birth, file.size(), file.pread))
        if change.cause != "same":
            return followed, self.supersede(followed, change, file)
        gone_at = before.gone_at if followed.birth != before.birth else None  # of a copy's original
        if (before.path, before.gone_at) != (seen.path, gone_at):
            before = replace(before, path=seen.path, gone_at=gone_at)
        return followed, before  # mostly the very row that the index has: another costs as much

    def get(self, birth: Birth) -> Followed | None:
        return self._by_birth.get(birth)

    def supersede(self, followed: Followed, change: Change, file: Readable) -> Checkpoint:
        """End a generation and return the next; what is pending of the old one settles alone."""
        before = followed.latest()
        if followed.harvester is not None:
            followed.harvester.gone_at = self.clock.wall()
            self._ending.append(followed.harvester)
        else:
            self.rows.append(replace(before, gone_at=self.clock.wall()))
            self._tombstones.add(self.rows[-1])
        if followed.birth == before.birth:
            who = replace(before, generation=before.generation + 1, gone_at=None)
        else:  # a copy that is no longer one
            who = first_generation(followed.birth, before.path, before.client)
        event(log, logging.WARNING, "generation.begun", source=who.source_id, path=before.path,
              cause=change.cause, generation=who.generation, watermark=before.watermark,
              resume_at=change.resume_at)  # fmt: skip
        self._note("generation.begun", source=who.source_id, path=before.path, client=who.client,
                   cause=change.cause, generation=who.generation, watermark=before.watermark,
                   resume_at=change.resume_at)  # fmt: skip
        self._metrics.generations.labels(change.cause).inc()
        self._begun = True
        return starting_at(change.resume_at, file, who)

    def lose(self, followed: Followed) -> None:
        """Note that a file is gone: a tombstone, once what its descriptor holds is read."""
        gone_at = self.clock.wall()
        for gone in (followed, *self._other_half(followed)):
            gone.seen = None
            if gone.harvester is not None:
                gone.harvester.gone_at = gone_at
            gone.checkpoint = replace(gone.latest(), gone_at=gone_at)
            self.rows.append(gone.checkpoint)
            self._moving[gone] = None
            self._tombstones.add(gone)

    def note(self, done: Checkpoint, seen: Seen) -> Followed:
        """Note a compressed file of which all is settled; ``done`` is about the file itself."""
        followed = self._by_birth.get(done.birth)
        if followed is None:
            followed = self._by_birth[done.birth] = Followed(done.birth, done)
            self.rows.append(done)
        elif followed.checkpoint != done:
            followed.checkpoint = done
            self.rows.append(done)
        self._moving[followed] = None
        for content in self._other_half(followed):
            content.seen = seen
        return followed

    def _other_half(self, followed: Followed) -> list[Followed]:
        """Return the content of a compressed file, or the file of a content, if it is known."""
        birth = followed.birth
        other = self._by_birth.get(file_birth(birth) if is_content(birth) else content_birth(birth))
        return [] if other is None else [other]

    def never_met(self) -> list[Followed]:
        """Return what the store knows and no scan has met so far."""
        self.unmet = [
            f
            for f in self.unmet
            if f.checkpoint.gone_at is None
            and all(x.seen is None and x.harvester is None for x in (f, *self._other_half(f)))
        ]
        return self.unmet

    def _ended(self, row: Checkpoint) -> Checkpoint:
        """Return an older generation as a tombstone: a crash may have come before that was noted,
        and the copy of what is never gone would be read from its beginning."""
        if row.gone_at is None:
            row = replace(row, gone_at=self.clock.wall())
            self.rows.append(row)
        return row

    def _keep_books(self) -> None:
        """Let the index say what unknown files may be copies of by now.

        What is still read by its descriptor, or in flight, counts as not gone, so that its copy
        waits until it is settled: two readers of one generation would have two watermarks. It is
        known by all that was read too, for there may be nothing settled yet.
        """
        self.strangers.booked()  # before: the index keeps what equals the rows of files only once
        for followed in self._moving:
            known = self._by_birth.get(followed.birth) is followed
            self._index.put(followed, *(_faces(followed) if known else ()))
        # Made anew: a dict keeps the room of all the files that it ever held.
        self._moving = {f: None for f in self._moving if f.harvester is not None}
        for harvester in self._ending:
            self._index.put(harvester, *_in_flight(harvester))


def _faces(followed: Followed) -> tuple[Checkpoint, ...]:
    """Return what a copy of ``followed`` may be known by. While its file is there, it is not gone,
    though it may be a copy itself and its original be gone."""
    harvester = followed.harvester
    if harvester is not None:
        unread = followed.seen is None and harvester.behind
        if unread or harvester.ledger.in_flight_bytes:
            return _in_flight(harvester)
    row = followed.latest()
    if followed.seen is not None and row.gone_at is not None:
        row = replace(row, gone_at=None)
    return (row,)  # mostly the very row that is kept anyway: another would double its memory


def _in_flight(harvester: Harvester) -> tuple[Checkpoint, Checkpoint]:
    settled, reached = harvester.checkpoint(), harvester.reached()
    return replace(settled, gone_at=None), replace(reached, gone_at=None)
