"""The files we follow: carries out a scan's plan, and says which one to read next.

Everything here runs in the worker thread, where blocking is allowed. Who a file is, the registry
says; this room opens and closes, and gives turns.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Container

from agent.clients import Clients
from agent.clock import Clock
from agent.core.auditing import Note, unheard
from agent.core.discovery import FileKey, Found, Scan, Seen, file_key, plan
from agent.core.identity import Change, Checkpoint, Held
from agent.core.lines import Piece
from agent.deletion import Deletion
from agent.departed import Departed
from agent.harvester import Followed, Harvester, Truncated
from agent.opener import Descriptor, Refused
from agent.packed import Packed
from agent.refusals import Refusals
from agent.registry import Registry
from agent.stuck import Stuck
from agent.telemetry import Metrics
from agent.turns import Turns
from agent.unpacking import COMPRESSED, content_birth, is_compressed, is_content

ROOM_S = 0.05
"""Between two looks at whether a file may be closed, so that another can be opened."""
OPENINGS_A_TURN = 32
"""Files opened between two chunks, so that a tree of 50,000 does not hold up what is read."""


class Sources:
    """All files known, open and waiting. One thread only, but for ``hint``.

    Args:
        open_file: Open a path beneath the root, or say why not.
        descriptors_max: Files open at once. Beyond it the one longest at rest is closed; while
            none rests, further files wait.
        held_bytes_max: Of deleted files that are open; None: no limit.
        start_at_end: On the very first start, pass over what the first scan finds.
    """

    def __init__(
        self,
        open_file: Callable[[str], Descriptor | Refused],
        registry: Registry,
        *,
        line_bytes_max: int,
        descriptors_max: int,
        held_bytes_max: int | None = None,
        start_at_end: bool,
        turns: Turns,
        deletion: Deletion,
        note: Note = unheard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.registry = registry
        self.registry.strangers.open_file = open_file
        self._packed = Packed(registry)
        self.turns = turns
        self.refusals = Refusals(metrics, note)
        self.clients = Clients(metrics)
        self._open_file = open_file
        self._line_bytes_max = line_bytes_max
        self._descriptors_max = descriptors_max
        self._start_at_end = start_at_end
        self._scanned = False
        self._metrics = metrics
        self._note = note
        self._by_key: dict[FileKey, Followed] = {}
        self._by_path: dict[str, Followed] = {}
        self._openings: deque[Found] = deque()
        self._open: OrderedDict[Followed, None] = OrderedDict()  # least recently read first
        self._ends: dict[Followed, int] | None = None  # how far to read before a stop; None: on
        self._failing: list[Followed] = []  # could not be read: again after the next scan
        self._hints: deque[str | None] = deque()
        self._departed = Departed(
            turns.add, self._close, held_bytes_max=held_bytes_max, clock=clock, metrics=metrics
        )
        self._deletion = deletion
        self._stuck = Stuck(clock=clock, metrics=metrics)

    def hint(self, path: str | None) -> None:
        """Say that ``path`` was written to; None: that any file may have been. From any thread."""
        self._hints.append(path)

    def apply(self, scan: Scan, *, acknowledged: bool = False) -> None:
        """Take in what a scan met; the files to open are opened a few at each ``next``.

        ``acknowledged``: nothing that was settled waits in the spool.
        """
        before = {key: f.seen for key, f in self._by_key.items() if f.seen is not None}
        todo = plan(before, scan)
        self._count_unopened(scan)
        for gone in todo.gone:
            self._lose(self._by_key.pop(gone.key))
        whole = not (scan.root_problem or scan.unreadable or scan.over_limit)
        if self._scanned and whole and not self._openings:  # all that a scan met was opened
            for followed in self.registry.never_met():
                self.registry.lose(followed)
        self._departed.scanned(list(self._open), self._drained)
        self.turns.add(*(f for f in self._failing if f.harvester is not None))
        self._failing.clear()
        self._scanned = True
        self._openings = deque(todo.open)
        resting = (f for f in self._open if self._drained(f) and not is_content(f.birth))
        for followed in self._stuck.scanned(resting):
            assert followed.seen is not None
            self._close(followed)
            self._openings.append(Found(followed.seen, "grown"))
        new = {found.seen.key for found in todo.open if found.why == "new"}
        if self._start_at_end and self.registry.empty:
            self.registry.strangers.begin_at_end = new
        self._start_at_end = False
        self.registry.scanned(new)
        self._packed.scanned(new)
        for seen in todo.linked:
            self.refusals.refuse(seen.path, "links", "another name of a file")
        self.refusals.scanned(scan)
        self._deletion.scanned(scan, self._by_key.values(), acknowledged=acknowledged)
        self._count()

    def next(self) -> Followed | None:
        """Return the file whose turn it is, None when none is known to have something to read."""
        for _ in range(len(self._hints)):
            self._hinted(self._hints.popleft())
        for finished, done in [*self._packed.finished(self._drained)]:
            self._close(finished)
            if done is not None and finished.seen is not None:
                self._see(done, finished.seen)
        strangers = self.registry.strangers
        again = [*strangers.studies.go_on(), *self._packed.due()]
        self._openings += [Found(seen, "touched") for seen in again]
        for _ in range(min(len(self._openings), OPENINGS_A_TURN)):
            found = self._openings[0]
            if found.why == "new" and strangers.resting(found.seen):
                self._openings.popleft()
                continue
            if not self._is_open(found.seen) and not self._room():
                break
            self._wake(self._openings.popleft().seen)
        followed = self.turns.take()
        while followed is not None and followed.harvester is None:  # given up meanwhile
            followed = self.turns.take()
        if followed is not None:
            self._open.move_to_end(followed)
        return followed

    def read(self, followed: Followed) -> Piece | Truncated | None:
        """Read once; a disk that fails is said once, and tried again after the next scan."""
        assert followed.harvester is not None
        try:
            return followed.harvester.read()
        except OSError as error:
            followed.harvester.more = False
            self._failing.append(followed)
            said = error.strerror or type(error).__name__
            self.refusals.refuse(followed.checkpoint.path, "error", said)
            return None

    def again(self, followed: Followed) -> None:
        """Give ``followed`` another turn, after the others."""
        assert followed.harvester is not None
        if self._ends is None or followed.harvester.cursor.start < self._ends.get(followed, 0):
            self.turns.add(followed)

    def limit(self) -> None:
        """Read no file further than it reaches now: a stop must not chase apps that write on."""
        self.turns.hurry()
        for followed in [f for f in self._open if f.seen is None]:
            self._departed.finish(followed)  # no other life of ours could read it
        self._ends = {f: f.harvester.file.size() for f in self._open if f.harvester is not None}

    def truncated(self, followed: Followed) -> None:
        """Begin the next generation of an open file whose content is not what it was."""
        reader = followed.harvester
        assert reader is not None
        file, size = reader.file, followed.seen.size if followed.seen is not None else 0
        self._unread("truncated", max(size, reader.seen_to) - reader.cursor.start)
        base = self.registry.supersede(followed, Change("truncated"), file)
        self._follow(followed, base, file)

    @property
    def known(self) -> Container[FileKey]:
        """Return the files that do not count against ``source.files_max`` any more."""
        return self._by_key

    @property
    def idle(self) -> bool:
        """Return whether nothing is known to be left to open or to read."""
        return not (self._hints or self._openings or self.turns.waiting)

    def wait_s(self, idle_s: float) -> float:
        """Return how long until there is something to do; ``idle_s`` if nobody knows."""
        studying = self.registry.strangers.studies.busy
        if self._hints or studying or (self._openings and not self.waiting):
            return 0.0
        polling = self._openings or self._packed.pending
        return self.turns.wait_s(ROOM_S if polling else idle_s)

    @property
    def waiting(self) -> bool:
        """Return whether all there is to do is to open files for which there is no room."""
        return not (self._hints or self.turns.ready) and len(self._open) >= self._descriptors_max

    def open_files(self) -> list[Followed]:
        return list(self._open)

    def _hinted(self, path: str | None) -> None:
        if path is None:
            self.turns.add(*self._open)
            return
        followed = self._by_path.get(path)
        if followed is not None and followed.harvester is not None:
            self.turns.add(followed)
            return
        seen = followed.seen if followed is not None else self.registry.strangers.at(path)
        if seen is not None:
            self._openings.append(Found(seen, "grown"))

    def _wake(self, seen: Seen) -> None:
        """Make a file that the scan or a hint named ready to be read, if it can be opened."""
        followed = self._by_key.get(seen.key)
        if followed is not None and followed.harvester is not None:
            self._see(followed, seen)
            self.turns.add(followed)
            return
        opened = self._open_file(seen.path)
        if isinstance(opened, Refused):
            self.refusals.refuse(seen.path, opened.reason, opened.detail)
            return
        if file_key(opened.birth.device, opened.birth.inode) != seen.key:
            opened.close()  # rotated since it was seen: the next scan knows what lies here now
            return
        try:
            packed = is_compressed(seen.path, opened)
            births = (opened.birth, content_birth(opened.birth)) if packed else (opened.birth,)
            if followed is not None and followed.birth not in births:
                self._lose(self._by_key.pop(seen.key))  # the inode has a new life
            if packed:
                self._adopt_packed(opened, seen)
            elif seen.path.endswith(COMPRESSED) and self.registry.get(opened.birth) is None:
                opened.close()
                self.refusals.refuse(seen.path, "corrupt", "neither gzip nor zstd")
            else:
                self._adopt(opened, seen)
        except OSError as error:
            opened.close()
            self.refusals.refuse(seen.path, "error", error.strerror or "")

    def _adopt(self, file: Descriptor, seen: Seen) -> None:
        known = self.registry.get(file.birth)
        if known is not None and known.harvester is not None:
            file.close()  # it was gone, is back, and was never let go of
            known.harvester.gone_at = None
            known.harvester.ending = False
            self._see(known, seen)
            self.turns.add(known)
            return
        if known is None and (links := file.links()) > 1:
            file.close()  # one of its names may be another client's
            self.refusals.refuse(seen.path, "links", f"{links} names")
            return
        found = self.registry.identify(file, seen)
        if found is None:
            file.close()
            return
        followed, base = found
        if followed.seen is None:
            copied = "copy" if base.birth != file.birth else "new"
            self._note("file.adopted", path=seen.path, client=base.client, source=base.source_id,
                       generation=base.generation, offset=base.watermark,
                       why=copied if known is None else "known")  # fmt: skip
        self._see(followed, seen)
        self._follow(followed, base, file)

    def _adopt_packed(self, file: Descriptor, seen: Seen) -> None:
        found = self._packed.identify(file, seen)
        if isinstance(found, Refused):
            self.refusals.refuse(seen.path, found.reason, found.detail)
        elif found is not None:
            self._see(found.followed, seen)
            if found.file is not None and found.base is not None:
                self._follow(found.followed, found.base, found.file)
                assert found.followed.harvester is not None
                found.followed.harvester.ending = found.whole
            elif found.followed.harvester is not None:
                self.turns.add(found.followed)
            if found.refused is not None:
                self.refusals.refuse(seen.path, found.refused.reason, found.refused.detail)

    def _follow(self, followed: Followed, base: Checkpoint, file: Held) -> None:
        assert followed.harvester is None or followed.harvester.file is file, "one reader a file"
        self.refusals.clear(base.path)
        followed.checkpoint = base
        followed.harvester = Harvester(file, base, self._line_bytes_max)
        self.registry.rows.append(base)
        if self._ends is not None:
            self._ends[followed] = file.size()
        self._open[followed] = None
        self.turns.add(followed)

    def _see(self, followed: Followed, seen: Seen) -> None:
        if followed.seen is not None and self._by_path.get(followed.seen.path) is followed:
            del self._by_path[followed.seen.path]
        followed.seen = seen
        self._by_key[seen.key] = followed
        self._by_path[seen.path] = followed
        if followed.harvester is not None:
            followed.harvester.path = seen.path

    def _lose(self, followed: Followed) -> None:
        if followed.seen is not None and self._by_path.get(followed.seen.path) is followed:
            del self._by_path[followed.seen.path]
        row, unread_bytes = followed.checkpoint, 0
        if followed.harvester is not None:
            self.turns.add(followed)  # one more look at what its descriptor holds
        elif followed.seen is not None:
            unread_bytes = max(0, followed.seen.size - row.watermark)
            self._unread("deleted", unread_bytes)
        self._note("file.gone", source=row.source_id, path=row.path, unread_bytes=unread_bytes)
        self.registry.lose(followed)

    def _is_open(self, seen: Seen) -> bool:
        followed = self._by_key.get(seen.key)
        return followed is not None and followed.harvester is not None

    def _room(self) -> bool:
        """Return whether another file may be opened, closing the one longest at rest if need be.

        Better one whose last line is whole: of another that is then deleted, the line is lost.
        """
        if len(self._open) < self._descriptors_max:
            return True
        resting = [f for f in self._open if self._drained(f)]
        resting.sort(key=lambda f: f.harvester is not None and f.harvester.torn)
        for followed in resting:
            if self._departed.finish(followed):
                self._close(followed)
                return True
        return False

    def _drained(self, followed: Followed) -> bool:
        harvester = followed.harvester
        assert harvester is not None
        return not (followed in self.turns or harvester.more or harvester.ledger.in_flight_bytes)

    def _close(self, followed: Followed) -> None:
        assert followed.harvester is not None
        self.registry.rows.append(followed.latest())
        followed.harvester.file.close()
        followed.harvester = None
        del self._open[followed]

    def _count_unopened(self, scan: Scan) -> None:
        """Count what went while it still waited to be opened."""
        met = {seen.key for seen in scan.files} if self._openings else ()
        for found in self._openings:
            if found.seen.key not in met:
                known_bytes = found.before.size if found.before is not None else 0
                self._unread("deleted", found.seen.size - known_bytes)

    def _unread(self, cause: str, unread_bytes: int) -> None:
        self._metrics.gone_unread_bytes.labels(cause).inc(max(0, unread_bytes))

    def _count(self) -> None:
        files = self._metrics.files
        files.labels("active").set(len(self._open))
        files.labels("idle").set(len(self._by_key) - len(self._open))
        files.labels("unreadable").set(self.refusals.count)
        known = ((f.seen, f.latest()) for f in self._by_key.values() if f.seen is not None)
        self._metrics.lag_bytes.set(self.clients.scanned(known))
