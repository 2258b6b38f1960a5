"""The files we follow: carries out a scan's plan, and says which one to read next.

Everything here runs in the worker thread, where blocking is allowed. What is decided about a
file is decided in ``core.identity`` and ``core.discovery``; this room opens, asks and obeys.
What must reach the disk is left in ``rows`` for the loop to collect.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable

from msgspec.structs import replace

from agent.clock import Clock
from agent.core.discovery import (
    Candidate,
    Continuation,
    FileKey,
    Found,
    Index,
    Scan,
    Seen,
    Sighting,
    continues,
    plan,
)
from agent.core.identity import (
    FINGERPRINT_BYTES,
    Birth,
    Change,
    Checkpoint,
    Readable,
    compare,
    examine,
)
from agent.harvester import Harvester, first_generation, starting_at
from agent.opener import Descriptor, Refused
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

OPENINGS_A_TURN = 32
"""Files opened between two chunks, so that a tree of 50,000 does not hold up what is read."""


class Followed:
    """A file we know: as last seen, as last settled, and its reader while it is open."""

    __slots__ = ("birth", "checkpoint", "harvester", "seen")

    def __init__(self, birth: Birth, checkpoint: Checkpoint, seen: Seen | None) -> None:
        self.birth = birth  # of this very file; a copy's checkpoint carries its original's
        self.checkpoint = checkpoint
        self.seen = seen  # None: gone, a tombstone
        self.harvester: Harvester | None = None

    def latest(self) -> Checkpoint:
        if self.harvester is not None:
            self.checkpoint = self.harvester.checkpoint()
        return self.checkpoint


class _Undecided:
    """An unknown file that may be a copy: since when, and how big it was when it last grew."""

    __slots__ = ("grew_s", "seen", "seen_s", "size")

    def __init__(self, seen: Seen, now_s: float) -> None:
        self.seen, self.size, self.grew_s, self.seen_s = seen, 0, now_s, now_s

    def look(self, seen: Seen, size: int, now_s: float) -> None:
        self.seen = seen
        if size != self.size:
            self.size, self.grew_s = size, now_s


class Sources:
    """All files known, open and waiting. One thread only, but for ``hint``.

    Args:
        open_file: Open a path beneath the root, or say why not.
        checkpoints: Everything the store holds, tombstones included.
        start_at_end: On the very first start, pass over what the first scan finds.
    """

    def __init__(
        self,
        open_file: Callable[[str], Descriptor | Refused],
        checkpoints: Iterable[Checkpoint],
        *,
        line_bytes_max: int,
        descriptors_max: int,
        start_at_end: bool,
        forget_after_s: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.rows: list[Checkpoint] = []
        self.forgotten: list[Checkpoint] = []
        self._open_file = open_file
        self._line_bytes_max = line_bytes_max
        self._descriptors_max = descriptors_max
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._metrics = metrics
        self._by_key: dict[FileKey, Followed] = {}
        self._by_path: dict[str, Followed] = {}
        self._by_birth: dict[Birth, Followed] = {}
        self._superseded: list[Checkpoint] = []  # older generations: what copies may continue
        self._ending: list[Harvester] = []  # superseded, but not settled to their end yet
        self._undecided: dict[FileKey, _Undecided] = {}
        self._unreadable: dict[str, str] = {}  # path -> reason, as last said
        self._openings: deque[Found] = deque()
        self._ready: OrderedDict[Followed, None] = OrderedDict()
        self._open: OrderedDict[Followed, None] = OrderedDict()  # least recently read first
        self._hints: deque[str | None] = deque()
        self._index = Index()
        self._start_at_end = start_at_end
        self._begin_at_end: set[FileKey] = set()
        for row in sorted(checkpoints, key=lambda c: c.generation):
            known = self._by_birth.get(row.birth)
            if known is not None:
                self._superseded.append(known.checkpoint)
            self._by_birth[row.birth] = Followed(row.birth, row, None)

    def hint(self, path: str | None) -> None:
        """Say that ``path`` was written to; None: that any file may have been. From any thread."""
        self._hints.append(path)

    def apply(self, scan: Scan) -> None:
        """Take in what a scan met; the files to open are opened a few at each ``next``."""
        before = {key: f.seen for key, f in self._by_key.items() if f.seen is not None}
        todo = plan(before, scan)
        for gone in todo.gone:
            self._lose(self._by_key.pop(gone.key))
        for followed in [f for f in self._open if f.seen is None and self._drained(f)]:
            self._close(followed)
        self._openings = deque(todo.open)
        if self._start_at_end and not self._by_birth:
            self._begin_at_end = {found.seen.key for found in todo.open}
        self._start_at_end = False
        self._end()
        new = {found.seen.key for found in todo.open if found.why == "new"}
        self._undecided = {k: u for k, u in self._undecided.items() if k in new}
        if new:
            self._index = self._indexed()
        self._forget()
        self._count(scan)

    def next(self) -> Followed | None:
        """Return the file whose turn it is, None when none is known to have something to read."""
        for _ in range(len(self._hints)):
            self._hinted(self._hints.popleft())
        for _ in range(min(len(self._openings), OPENINGS_A_TURN)):
            if not self._room():
                break
            self._wake(self._openings.popleft().seen)
        if not self._ready:
            return None
        followed, _ = self._ready.popitem(last=False)
        self._open.move_to_end(followed)
        return followed

    def again(self, followed: Followed) -> None:
        """Give ``followed`` another turn, after the others."""
        self._ready[followed] = None

    def truncated(self, followed: Followed) -> None:
        """Begin the next generation of an open file whose content is not what it was."""
        assert followed.harvester is not None
        followed.harvester.gone_at = self._clock.wall()
        self._supersede(followed, followed.latest(), Change("truncated"), followed.harvester.file)

    @property
    def known(self) -> Container[FileKey]:
        """Return the files that do not count against ``source.files_max`` any more."""
        return self._by_key

    @property
    def idle(self) -> bool:
        """Return whether nothing is known to be left to open or to read."""
        return not (self._hints or self._openings or self._ready)

    def open_files(self) -> list[Followed]:
        return list(self._open)

    def lag_bytes(self) -> int:
        """Return the bytes on disk, as last seen, above the watermarks."""
        return sum(
            max(0, f.seen.size - f.latest().watermark) for f in self._by_key.values() if f.seen
        )

    def _hinted(self, path: str | None) -> None:
        if path is None:
            self._ready.update(dict.fromkeys(self._open))
            return
        followed = self._by_path.get(path)
        if followed is not None and followed.seen is not None:
            if followed.harvester is not None:
                self._ready[followed] = None
            else:
                self._openings.append(Found(followed.seen, "grown"))
            return
        undecided = next((u for u in self._undecided.values() if u.seen.path == path), None)
        if undecided is not None:
            self._openings.append(Found(undecided.seen, "new"))

    def _wake(self, seen: Seen) -> None:
        """Make a file that the scan or a hint named ready to be read, if it can be opened."""
        followed = self._by_key.get(seen.key)
        if followed is not None and followed.harvester is not None:
            self._see(followed, seen)
            self._ready[followed] = None
            return
        opened = self._open_file(seen.path)
        if isinstance(opened, Refused):
            self._refused(seen.path, opened)
            return
        if followed is not None and followed.birth != opened.birth:
            self._lose(self._by_key.pop(seen.key))  # the inode has a new life
        try:
            self._identify(opened, seen)
        except OSError as error:
            opened.close()
            self._refused(seen.path, Refused("error", error.strerror or ""))

    def _identify(self, file: Descriptor, seen: Seen) -> None:
        """Say who ``file`` is: known, somebody's copy, or new; and where to begin."""
        followed = self._by_birth.get(file.birth)
        if followed is None:
            self._judge(file, seen)
            return
        before = followed.checkpoint
        self._see(followed, seen)
        change = compare(before, examine(before, before.birth, file.size(), file.pread))
        if change.cause != "same":
            self._supersede(followed, before, change, file)
            return
        is_copy = followed.birth != before.birth
        gone_at = before.gone_at if is_copy else None
        self._follow(followed, replace(before, path=seen.path, gone_at=gone_at), file)

    def _judge(self, file: Descriptor, seen: Seen) -> None:
        """Decide about a file that nobody knows; it may be the copy a copy-truncate leaves."""
        if (links := file.links()) > 1:  # one of its names may be another client's
            file.close()
            self._refused(seen.path, Refused("links", f"{links} names"))
            return
        now_s, size = self._clock.monotonic(), file.size()
        undecided = self._undecided.setdefault(seen.key, _Undecided(seen, now_s))
        undecided.look(seen, size, now_s)
        sighting = Sighting(
            birth=file.birth,
            size=size,
            path=seen.path,
            client=seen.client,
            still_s=now_s - undecided.grew_s,
            waited_s=now_s - undecided.seen_s,
        )
        alike = self._index.alike(sighting, file.pread(min(FINGERPRINT_BYTES, size), 0))
        verdict = continues(sighting, [self._candidate(c, file, size) for c in alike])
        if verdict.verdict == "wait":
            file.close()
            return
        del self._undecided[seen.key]
        base = self._base(verdict, file, seen)
        followed = Followed(file.birth, base, None)
        self._by_birth[file.birth] = followed
        self._see(followed, seen)
        self._follow(followed, base, file)

    def _base(self, verdict: Continuation, file: Descriptor, seen: Seen) -> Checkpoint:
        if verdict.verdict == "copy":
            assert verdict.source is not None
            return replace(verdict.source, path=seen.path)
        offset = verdict.resume_at
        if verdict.verdict == "new" and seen.key in self._begin_at_end:
            offset = last_line_end(file, self._line_bytes_max)
        who = first_generation(file.birth, seen.path, seen.client)
        return starting_at(offset, file, who)

    def _candidate(self, before: Checkpoint, file: Descriptor, size: int) -> Candidate:
        original = self._by_birth.get(before.birth)
        original_size = None
        if original is not None and original.harvester is not None:
            original_size = original.harvester.file.size()
        elif original is not None and original.seen is not None:
            original_size = original.seen.size
        return Candidate(before, examine(before, before.birth, size, file.pread), original_size)

    def _supersede(
        self, followed: Followed, before: Checkpoint, change: Change, file: Readable
    ) -> None:
        """End a generation and begin the next; what is pending of it settles on its own."""
        if followed.harvester is not None:
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
        self._follow(followed, starting_at(change.resume_at, file, who), file)

    def _follow(self, followed: Followed, base: Checkpoint, file: Readable) -> None:
        self._unreadable.pop(base.path, None)
        followed.checkpoint = base
        followed.harvester = Harvester(file, base, self._line_bytes_max)
        self.rows.append(base)
        self._open[followed] = None
        self._ready[followed] = None

    def _see(self, followed: Followed, seen: Seen) -> None:
        if followed.seen is not None:
            self._by_path.pop(followed.seen.path, None)
        followed.seen = seen
        self._by_key[seen.key] = followed
        self._by_path[seen.path] = followed
        if followed.harvester is not None:
            followed.harvester.path = seen.path

    def _lose(self, followed: Followed) -> None:
        """Note that a file is gone: a tombstone, once what its descriptor holds is read."""
        if followed.seen is not None and self._by_path.get(followed.seen.path) is followed:
            del self._by_path[followed.seen.path]
        followed.seen = None
        gone_at = self._clock.wall()
        if followed.harvester is not None:
            followed.harvester.gone_at = gone_at
            self._ready[followed] = None
        followed.checkpoint = replace(followed.latest(), gone_at=gone_at)
        self.rows.append(followed.checkpoint)

    def _room(self) -> bool:
        """Return whether another file may be opened, closing the least recently read if need be."""
        if len(self._open) < self._descriptors_max:
            return True
        idle = next((f for f in self._open if f not in self._ready and self._drained(f)), None)
        if idle is None:
            return False
        self._close(idle)
        return True

    def _drained(self, followed: Followed) -> bool:
        harvester = followed.harvester
        assert harvester is not None
        return not (followed in self._ready or harvester.more or harvester.ledger.in_flight_bytes)

    def _close(self, followed: Followed) -> None:
        assert followed.harvester is not None
        self.rows.append(followed.latest())
        followed.harvester.file.close()
        followed.harvester = None
        del self._open[followed]

    def _end(self) -> None:
        """Let go of generations that are over once everything read of them is settled."""
        for harvester in [h for h in self._ending if not h.ledger.in_flight_bytes]:
            self._ending.remove(harvester)
            self._superseded.append(harvester.checkpoint())
            self.rows.append(self._superseded[-1])

    def _indexed(self) -> Index:
        """Return what unknown files may be copies of.

        What is still in flight counts as not gone, so that its copy waits until it is settled:
        two readers of one generation would have two watermarks.
        """
        index = Index(self._superseded)
        for harvester in self._ending:
            index.add(replace(harvester.checkpoint(), gone_at=None))
        for followed in self._by_birth.values():
            row = followed.latest()
            busy = followed.harvester and followed.harvester.ledger.in_flight_bytes
            index.add(replace(row, gone_at=None) if busy else row)
        return index

    def _forget(self) -> None:
        """Let go of tombstones past their time, but not of one whose copy is still followed."""
        before = self._clock.wall() - self._forget_after_s
        expired = [
            birth
            for birth, f in self._by_birth.items()
            if f.seen is None and f.harvester is None and (f.checkpoint.gone_at or before) < before
        ]
        in_use = {
            (f.checkpoint.source_id, f.checkpoint.generation)
            for f in self._by_birth.values()
            if f.seen is not None
        }
        gone = [self._by_birth.pop(birth).checkpoint for birth in expired]
        gone += [c for c in self._superseded if (c.gone_at or before) < before]
        self.forgotten += [c for c in gone if (c.source_id, c.generation) not in in_use]
        self._superseded = [c for c in self._superseded if (c.gone_at or before) >= before]

    def _refused(self, path: str, refused: Refused) -> None:
        if self._unreadable.get(path) != refused.reason:
            self._unreadable[path] = refused.reason
            event(log, logging.WARNING, "file.refused", path=path, reason=refused.reason,
                  detail=refused.detail)  # fmt: skip

    def _count(self, scan: Scan) -> None:
        files = self._metrics.files
        files.labels("active").set(len(self._open))
        files.labels("idle").set(len(self._by_key) - len(self._open))
        files.labels("unreadable").set(len(self._unreadable) + len(scan.unreadable))


def last_line_end(file: Readable, line_bytes_max: int) -> int:
    """Return where the last whole line ends, 0 if none does within ``line_bytes_max``."""
    size = file.size()
    start = max(0, size - line_bytes_max - 1)
    return start + file.pread(size - start, start).rfind(b"\n") + 1 if size else 0
