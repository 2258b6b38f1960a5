"""The files we follow: carries out a scan's plan, and says which one to read next.

Everything here runs in the worker thread, where blocking is allowed. ``adoption`` opens files,
``opened`` holds those that are, ``departed`` those that are gone.
"""

from collections import deque
from collections.abc import Callable, Container, Iterator
from itertools import chain

from agent.adoption import Adoption
from agent.clients import Clients, Known
from agent.clock import Clock
from agent.core.auditing import Note, unheard
from agent.core.discovery import FileKey, Found, Scan, Seen, Sightings, plan
from agent.core.identity import Change
from agent.core.lines import Piece
from agent.deletion import Deletion
from agent.departed import Departed
from agent.harvester import Followed, Truncated
from agent.met import Met
from agent.opened import Opened
from agent.opener import Descriptor, Refused
from agent.openings import Openings
from agent.packed import Packed
from agent.refusals import Refusals
from agent.registry import Registry
from agent.resetting import Resetting
from agent.stuck import Stuck
from agent.telemetry import Metrics
from agent.turns import Turns
from agent.unpacking import is_content

ROOM_S = 0.05
"""Between two looks at whether a file may be closed, so that another can be opened."""
OPENINGS_A_TURN = 32
"""Files opened between two chunks, so that a tree of 50,000 does not hold up what is read."""


class Sources:
    """All files known, open and waiting. One thread only, but for ``hint``.

    Args:
        open_file: Open a path beneath the root, or say why not.
        descriptors_max: Files open at once: see ``Opened``.
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
        shown: Callable[[str], str] = str,
    ) -> None:
        self.registry = registry
        self.registry.strangers.open_file = open_file
        self.turns = turns
        self.refusals = Refusals(metrics, note)
        self.clients = Clients(metrics, shown, clock)
        self._openings = Openings()
        self.opened = Opened(
            registry,
            turns,
            line_bytes_max=line_bytes_max,
            descriptors_max=descriptors_max,
            put_by=self._openings.put_by,
        )
        self._start_at_end = start_at_end
        self._no_room = False  # for any of those that the last look could have opened
        self._scanned = False
        self._metrics = metrics
        self._note = note
        self._met = Met()
        self.packed = Packed(registry)
        self._adoption = Adoption(
            open_file,
            registry,
            self.packed,
            met=self._met,
            opened=self.opened,
            turns=turns,
            lose=self._lose,
            refusals=self.refusals,
            note=note,
        )
        self._departed = Departed(
            turns.add,
            self.opened.close,
            held_bytes_max=held_bytes_max,
            clock=clock,
            metrics=metrics,
        )
        self._deletion = deletion
        self._stuck = Stuck(clock=clock, metrics=metrics)
        self.resetting = Resetting(
            open_file,
            registry,
            met=self._met,
            opened=self.opened,
            put_by=self._openings.put_by,
        )
        self._failing: list[Followed] = []  # could not be read: again after the next scan
        self._hints: deque[str | None] = deque()

    def hint(self, path: str | None) -> None:
        """Say that ``path`` was written to; None: that any file may have been. From any thread."""
        self._hints.append(path)

    def apply(self, scan: Scan, *, acknowledged: bool = False) -> None:
        """Take in what a scan met; the files to open are opened a few at each ``next``.

        ``acknowledged``: nothing that was settled waits in the spool.
        """
        todo = plan(self._met.sightings(), scan, self.registry.settled)
        self._count_unopened(scan)
        for gone in todo.gone:
            self._lose(gone)
        whole = not (scan.root_problem or scan.unreadable or scan.over_limit)
        if self._scanned and whole and not self._openings:  # all that a scan met was opened
            for followed in self.registry.never_met():
                self.registry.lose(followed)
        self._departed.scanned(self.opened, self.opened.drained)
        self.turns.add(*(f for f in self._failing if f.harvester is not None))
        self._failing.clear()
        self._scanned = True
        waited = {found.seen.key for found in self._openings}
        self._openings.scanned(todo.open)
        self._reopen()
        new = {found.seen.key for found in todo.open if found.why == "new"}
        if self._start_at_end and self.registry.empty:
            self.registry.strangers.begin_at_end = new
        self._start_at_end = False
        self.registry.scanned(new)
        self.packed.scanned(new)
        for seen in todo.linked:
            self.refusals.refuse(seen.path, "links", "another name of a file")
        self.refusals.scanned(scan)
        self._deletion.scanned(scan, self._met.files(), acknowledged=acknowledged)
        self._count(waited)

    def next(self) -> Followed | None:
        """Return the file whose turn it is, None when none is known to have something to read."""
        for _ in range(len(self._hints)):
            self._hinted(self._hints.popleft())
        for finished, done in [*self.packed.finished(self.opened.drained)]:
            self.opened.close(finished)
            if done is not None and finished.seen is not None:
                self._met.see(done, finished.seen)
        strangers = self.registry.strangers
        again = [*strangers.studies.go_on(), *self.packed.due()]
        self._openings.add(*(Found(seen, "touched") for seen in again))
        self._open()
        return self.opened.take()

    def another(self) -> Followed | None:
        """Return the one after that, of those that are open. None is closed for it: what was read
        since ``next`` is in no ledger yet, and would be read again."""
        return self.opened.take()

    def _open(self) -> None:
        """Open a few of those that wait, one of each client in turn, as far as there is room."""
        self._openings.go_on()
        refused: int | None = None  # so many open files, or more, were too many for another one
        looks, put_back = min(len(self._openings), OPENINGS_A_TURN), 0
        for _ in range(looks):
            found = self._openings.take()
            client = found.seen.client
            if found.why == "new" and self.registry.strangers.resting(found.seen):
                continue
            if not self._is_open(found.seen):
                slowed = self.opened.full and self.turns.slowed(client) is not None
                held = self.opened.held(client)
                crowded = refused is not None and held >= refused
                if slowed or crowded or not self.opened.room(client, self._departed.finish):
                    if not slowed:
                        refused = held if refused is None else min(held, refused)
                    self._openings.untake(found)
                    put_back += 1
                    continue
            self._adoption.wake(found.seen)
            followed = self._met.by_key.get(found.seen.key)
            if followed is not None and followed.harvester is not None:
                self._openings.opened(followed)
        self._openings.go_on()
        self._no_room = 0 < looks == put_back

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
        self.opened.again(followed)

    def limit(self) -> None:
        """Read no file further than it reaches now: a stop must not chase apps that write on."""
        self.turns.hurry()
        for followed in self.opened:
            if followed.seen is None:
                self._departed.finish(followed)  # no other life of ours could read it
        self.opened.limit()

    def truncated(self, followed: Followed) -> None:
        """Begin the next generation of an open file whose content is not what it was."""
        reader = followed.harvester
        assert reader is not None
        file, size = reader.file, followed.seen.size if followed.seen is not None else 0
        self._unread("truncated", max(size, reader.seen_to) - reader.cursor.start)
        base = self.registry.supersede(followed, Change("truncated"), file)
        self.opened.follow(followed, base, file)

    def at(self, path: str) -> Followed | None:
        """Return the file that is followed at ``path``."""
        return self._met.at(path)

    def waits(self, path: str, client: str) -> tuple[str, str] | None:
        """Return what keeps the file at ``path`` from being read; see ``core.explaining``."""
        followed = self._met.at(path)
        if followed is not None and (limit := self.turns.slowed(followed.checkpoint.client)):
            return "quota", limit
        if followed is None and self.registry.strangers.at(path) is not None:
            return "copy", ""
        found = next((f for f in self._openings if f.seen.path == path), None)
        if found is not None:
            return ("opening" if self.opened.full else "scan"), ""
        if followed is None and self.refusals.crowded(client):
            return "over_limit", ""
        return None

    @property
    def known(self) -> Sightings:
        """Return the files that do not count against ``source.files_max`` any more."""
        return self._met

    @property
    def idle(self) -> bool:
        """Return whether nothing is known to be left to open or to read."""
        return not (self._hints or self._openings or self.turns.waiting)

    @property
    def at_rest(self) -> bool:
        """Return whether no scan is needed to know it: all is read, and nobody waits for evidence.

        What failed, or could not be opened, is not waited for.
        """
        strangers = self.registry.strangers
        unsure = strangers.studies.busy or strangers.undecided()
        return self.idle and not unsure and not self.packed.unsure(strangers.copies())

    def shares(self) -> dict[FileKey, float]:
        """Return how much of each file that was met is settled, from 0 to 1."""
        return {key: _share(followed) for key, followed in self._met.by_key.items()}

    def wait_s(self, idle_s: float) -> float:
        """Return how long until there is something to do; ``idle_s`` if nobody knows."""
        studying = self.registry.strangers.studies.busy
        if self._hints or studying or (self._openings and not self.waiting):
            return 0.0
        polling = self._openings or self.packed.pending
        return self.turns.wait_s(ROOM_S if polling else idle_s)

    @property
    def hinted(self) -> bool:
        """Return whether something was written since ``next`` looked."""
        return bool(self._hints)

    @property
    def waiting(self) -> bool:
        """Return whether all there is to do is to open files for which there was no room."""
        return self._no_room and not (self._hints or self.turns.ready)

    def _hinted(self, path: str | None) -> None:
        if path is None:
            self.turns.add(*self.opened)
            return
        followed = self._met.at(path)
        if followed is not None and followed.harvester is not None:
            self.turns.add(followed)
            return
        seen = followed.seen if followed is not None else self.registry.strangers.at(path)
        if seen is not None:
            self._openings.add(Found(seen, "grown", None if followed is None else seen))

    def _reopen(self) -> None:
        """Open those again whose descriptor does not show what the path does."""
        drained = self.opened.drained
        resting = (f for f in self.opened if drained(f) and not is_content(f.birth))
        for followed in self._stuck.scanned(resting):
            assert followed.seen is not None
            self.opened.close(followed)
            self._openings.add(Found(followed.seen, "grown", followed.seen))

    def _lose(self, gone: Seen) -> None:
        followed = self._met.lose(gone.key)
        row, unread_bytes = followed.checkpoint, 0
        if followed.harvester is not None:
            self.turns.add(followed)  # one more look at what its descriptor holds
        elif followed.seen is not None:
            unread_bytes = max(0, followed.seen.size - row.watermark)
            self._unread("deleted", unread_bytes)
        self._note("file.gone", source=row.source_id, path=row.path, unread_bytes=unread_bytes)
        self.registry.lose(followed)

    def _is_open(self, seen: Seen) -> bool:
        followed = self._met.by_key.get(seen.key)
        return followed is not None and followed.harvester is not None

    def _count_unopened(self, scan: Scan) -> None:
        """Count what went while it still waited to be opened."""
        met = {seen.key for seen in scan.files} if self._openings else ()
        for found in self._openings:
            if found.seen.key not in met:
                known_bytes = found.before.size if found.before is not None else 0
                self._unread("deleted", found.seen.size - known_bytes)

    def _unread(self, cause: str, unread_bytes: int) -> None:
        self._metrics.gone_unread_bytes.labels(cause).inc(max(0, unread_bytes))

    def _count(self, waited: Container[FileKey]) -> None:
        files = self._metrics.files
        files.labels("active").set(len(self.opened))
        files.labels("idle").set(len(self._met.by_key) - len(self.opened))
        files.labels("unreadable").set(self.refusals.count)
        self._metrics.lag_bytes.set(
            self.clients.scanned(chain(self._known(), self._unopened(waited)))
        )

    def _known(self) -> Iterator[Known]:
        for followed in self._met.files():
            seen, row = followed.seen, followed.latest()
            if seen is not None:
                torn = seen.size > row.watermark and self._ends_torn(followed)
                yield Known(row.client, seen, row.watermark, torn)

    def _unopened(self, waited: Container[FileKey]) -> Iterator[Known]:
        """Yield files that nobody opened from one scan to the next: Kafka was never there, or as
        many are open as may be."""
        waiting = [f.seen for f in self._openings if f.seen.key in waited]
        settled = self.registry.settled if waiting else {}
        for seen in waiting:
            if (
                seen.key not in self._met.by_key
                and seen.key not in self.registry.strangers.begin_at_end
            ):
                yield Known(seen.client, seen, settled.get(seen.inode, 0))

    def _ends_torn(self, followed: Followed) -> bool:
        """Return whether nothing of it waits but a line whose end is not written yet."""
        reader = followed.harvester
        return reader is not None and reader.torn and self.opened.drained(followed)


def _share(followed: Followed) -> float:
    watermark, size = followed.latest().watermark, 0
    if followed.harvester is not None:
        size = followed.harvester.file.size()
    elif is_content(followed.birth):
        return 0.0  # it waits to be unpacked
    elif followed.seen is not None:
        size = followed.seen.size
    return min(1.0, watermark / size) if size else 1.0
