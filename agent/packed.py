"""Compressed files: one pass says whose content they hold, then what is new of it is read.

Lives in the worker thread. What is packed is another source than the file, with offsets of its
own, known by the same evidence as any other: see ``unpacking.content_birth``. Once all of it is
settled, a row for the file itself says so, and it need never be unpacked again. Everything that
takes long is a study, done in slices between which other files are read.
"""

from collections.abc import Callable, Collection, Container, Iterator
from contextlib import closing
from typing import NamedTuple

from msgspec.structs import replace

from agent.core.continuation import WAIT_S
from agent.core.discovery import FileKey, Seen
from agent.core.identity import (
    ANCHOR_BYTES,
    FINGERPRINT_BYTES,
    Birth,
    Checkpoint,
    Range,
    demands,
    examine,
    matches,
    older_demands,
)
from agent.harvester import Followed, first_generation, starting_at
from agent.opener import Descriptor, Refused
from agent.registry import Registry
from agent.studies import SLICE_BYTES, Study
from agent.survey import Surveyed, Unsurveyed, survey
from agent.unpacking import Unpacked, content_birth

OPEN_MAX = 4
"""Compressed files that are read at a time; each holds a decoder and its window."""
OF_CLIENT_MAX = 3
"""Of them one client's: one that is slowed has them open for hours."""


class Found(NamedTuple):
    """Who a compressed file is. With a ``file`` there is something to read, from ``base`` on.

    ``whole``: its last line has all that there will ever be of it.
    """

    followed: Followed
    base: Checkpoint | None = None
    file: Unpacked | None = None
    refused: Refused | None = None
    whole: bool = False


class _Case:
    """A compressed file that is not being read: what is known about it so far."""

    __slots__ = ("birth", "failed", "followed", "mtime_ns", "ready", "seen", "settling", "size",
                 "still_s", "surveyed", "wanted")  # fmt: skip

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.birth: Birth | None = None
        self.size = self.mtime_ns = -1
        self.still_s = 0.0  # since when it has not changed
        self.failed = False  # could not be read, since the last scan
        self.settling = False  # it was short once: another look only when it has not changed
        self.surveyed: Surveyed | None = None
        self.wanted: set[Range] = set()
        self.followed: Followed | None = None  # who it is, once that is known
        self.ready: Unpacked | None = None  # stands where reading begins

    def close(self) -> None:
        if self.ready is not None:
            self.ready.close()
            self.ready = None


class Packed:
    """All compressed files that are not read to their end. Owns the descriptors it is given."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._clock = registry.clock
        self._studies = registry.strangers.studies
        self._cases: dict[FileKey, _Case] = {}
        self._slots: dict[FileKey, str] = {}  # read, or soon to be; and whose they are
        self._reading: dict[FileKey, tuple[Followed, Unpacked]] = {}
        self._waiting: dict[str, dict[FileKey, Seen]] = {}  # for a slot, by client
        self._failed: dict[FileKey, Seen] = {}  # until the next scan

    def scanned(self, new: Collection[FileKey]) -> None:
        """Let go of what is not there any more; ``new`` are the files that nobody follows."""
        for key, case in [*self._cases.items()]:
            if key not in new and (case.followed is None or case.followed.seen is None):
                self._drop(key)
            case.failed = False
        for seen in self._failed.values():
            self._wait(seen)
        self._failed = {}
        self._studies.keep({*new, *self._cases})

    def studies(self, key: FileKey) -> bool:
        """Return whether it is being found out who that file is."""
        return key in self._cases

    @property
    def pending(self) -> bool:
        """Return whether a file is open that may be closed once it is settled."""
        return bool(self._reading)

    def unsure(self, copies: Container[FileKey]) -> bool:
        """Return whether one is read, or will be once it was looked at, has rested or has room.

        ``copies`` are known to hold nothing of their own.
        """
        looking = (
            c.followed is None and not c.failed and (c.surveyed is None or c.surveyed.size() > 0)
            for key, c in self._cases.items()
            if key not in copies
        )
        return bool(self._reading or self._waiting) or any(looking)

    def due(self) -> list[Seen]:
        """Return files that waited for another to be closed, and need not any more."""
        client = next((client for client in self._waiting if self._room(client)), None)
        if client is None:
            return []
        waiting = self._waiting.pop(client)
        seen = waiting.pop(next(iter(waiting)))
        if waiting:
            self._waiting[client] = waiting
        return [seen]

    def _wait(self, seen: Seen) -> None:
        self._waiting.setdefault(seen.client, {})[seen.key] = seen

    def _wait_no_more(self, seen: Seen) -> None:
        waiting = self._waiting.get(seen.client, {})
        waiting.pop(seen.key, None)
        if not waiting:
            self._waiting.pop(seen.client, None)

    def _room(self, client: str) -> bool:
        """Return whether one more file of ``client`` may be read."""
        own = sum(holder == client for holder in self._slots.values())
        return len(self._slots) < OPEN_MAX and own < OF_CLIENT_MAX

    def finished(
        self, drained: Callable[[Followed], bool]
    ) -> Iterator[tuple[Followed, Followed | None]]:
        """Yield what was read to its end and is settled: to be closed; and the file it was packed
        in, if it need not be unpacked again."""
        for key, (followed, file) in [*self._reading.items()]:
            if followed.harvester is None or followed.harvester.file is not file:
                del self._reading[key]  # closed by someone else
                self._slots.pop(key, None)
            elif drained(followed):
                del self._reading[key]
                self._slots.pop(key, None)
                seen, done = followed.seen, None
                case = self._cases.pop(key, None)
                if seen is None or case is None:
                    pass  # deleted: nobody will meet it again
                elif file.reached < file.size() or file.packed.size() != case.size:
                    self._failed[key] = seen
                elif case.surveyed is not None and case.surveyed.end == "complete":
                    done = self._done(file.packed, seen, case.size)
                yield followed, done

    def identify(self, file: Descriptor, seen: Seen) -> Found | Refused | None:
        """Say who ``file`` is and what there is to read; None while that waits for evidence.

        Raises ``OSError`` when it cannot be read.
        """
        found = None
        try:
            found = self._identify(file, seen)
        finally:
            if not isinstance(found, Found) or found.file is None or found.file.packed is not file:
                file.close()
        return found

    def _identify(self, file: Descriptor, seen: Seen) -> Found | Refused | None:
        at_once = self._at_once(file, seen)
        if at_once is not None:
            return at_once
        case = self._look(file, seen)
        if case.failed:
            return Refused("error", "cannot be read")
        surveyed = self._evidence(case)
        if surveyed is None:
            return None
        refused = surveyed.refused
        if not surveyed.size():
            return refused or Found(self._done(file, seen, case.size))
        try:
            found = self._registry.identify(surveyed, seen)
        except Unsurveyed as missing:
            case.wanted.add(missing.wanted)
            case.surveyed = None
            self._studies.ask(seen, lambda: self._survey(case))
            return None
        return None if found is None else self._begin(file, case, surveyed, *found)

    def _at_once(self, file: Descriptor, seen: Seen) -> Found | Refused | None:
        """Say what can be said without unpacking anything."""
        content = self._registry.get(content_birth(file.birth))
        if content is not None and content.harvester is not None:
            content.harvester.gone_at = None  # it was gone, is back, and was never let go of
            return Found(content)
        done = self._registry.get(file.birth)
        passed_over = content is None and seen.key in self._registry.strangers.begin_at_end
        if passed_over or (done is not None and _is_done(done, file)):
            self._drop(seen.key)
            return Found(self._done(file, seen, file.size()))
        if content is None and (links := file.links()) > 1:
            return Refused("links", f"{links} names")
        return None

    def _evidence(self, case: _Case) -> Surveyed | None:
        """Return what a pass over the content found; None until then, and while it may go on."""
        now_s = self._clock.monotonic()
        if case.surveyed is None:
            if not case.settling or now_s > case.still_s:
                self._studies.ask(case.seen, lambda: self._survey(case))
            return None
        if case.surveyed.end != "complete":
            case.settling = True
            patient = case.surveyed.end != "window" and now_s < case.still_s + WAIT_S
            if patient or not case.size:
                return None
        return case.surveyed

    def _begin(
        self,
        file: Descriptor,
        case: _Case,
        surveyed: Surveyed,
        followed: Followed,
        base: Checkpoint,
    ) -> Found:
        """Begin to read what is not settled, once there is room and it stands where that begins."""
        key, seen = case.seen.key, case.seen
        case.followed = followed
        if followed.checkpoint != base:
            followed.checkpoint = base
            self._registry.rows.append(base)
        refused = surveyed.refused
        if base.watermark >= surveyed.size():
            self._drop(key)
            done = followed if refused else self._done(file, seen, case.size)
            return Found(done, refused=refused)
        if key not in self._slots and not self._room(seen.client):
            self._wait(seen)
            return Found(followed)
        self._slots[key] = seen.client
        if case.ready is None and base.watermark > SLICE_BYTES:
            self._studies.ask(seen, lambda: self._go_to(case, surveyed, base.watermark))
            return Found(followed)
        ready, case.ready = case.ready, None
        content = ready or Unpacked(file, surveyed.size(), surveyed.damage_at)
        self._reading[key] = followed, content
        return Found(followed, base, content, refused, whole=surveyed.end == "complete")

    def _look(self, file: Descriptor, seen: Seen) -> _Case:
        case = self._cases.setdefault(seen.key, _Case(seen))
        if case.birth not in (None, file.birth):  # the inode has a new life
            self._drop(seen.key)
            case = self._cases[seen.key] = _Case(seen)
        case.birth, case.seen, size = file.birth, seen, file.size()
        if (size, seen.mtime_ns) != (case.size, case.mtime_ns):
            case.size, case.mtime_ns = size, seen.mtime_ns
            case.still_s = self._clock.monotonic()
            case.surveyed = None
            case.close()
        return case

    def _done(self, file: Descriptor, seen: Seen, size: int) -> Followed:
        """Note that what is packed in the first ``size`` bytes is settled, or was known to be."""
        done = self._registry.get(file.birth)
        if done is None or not _is_done(done, file):
            who = first_generation(file.birth, seen.path, seen.client)
            row = starting_at(size, file, who)
        else:
            row = replace(done.checkpoint, path=seen.path, gone_at=None)
        return self._registry.note(row, seen)

    def _survey(self, case: _Case) -> Study:
        stamp = case.size, case.mtime_ns
        try:
            with closing(self._content(case)) as content:
                known = self._registry.get(content.birth)
                rows = [known.checkpoint] if known is not None else []
                head = content.pread(FINGERPRINT_BYTES, 0)
                rows += self._registry.strangers.alike(content.birth, case.seen, head)
                wanted = {r for row in rows for r in (*demands(row), *older_demands(row))}
                surveyed = yield from survey(content, wanted | case.wanted)
        except OSError:
            self._fail(case)
        else:
            if (case.size, case.mtime_ns) == stamp:
                case.surveyed = surveyed

    def _go_to(self, case: _Case, surveyed: Surveyed, offset: int) -> Study:
        stamp = case.size, case.mtime_ns
        try:
            content = self._content(case)
        except OSError:
            self._fail(case)
            return
        content.limit, content.damage_at = surveyed.size(), surveyed.damage_at
        try:
            yield from content.forward(offset - ANCHOR_BYTES)
        except OSError:
            self._fail(case)
        else:
            if (case.size, case.mtime_ns) == stamp:
                case.ready = content
        finally:
            if case.ready is not content:
                content.close()

    def _content(self, case: _Case) -> Unpacked:
        opened = self._registry.strangers.opened(case.seen)
        if isinstance(opened, Unpacked):
            return opened
        opened.close()
        raise OSError("not compressed any more")

    def _fail(self, case: _Case) -> None:
        case.failed = True
        self._failed[case.seen.key] = case.seen

    def _drop(self, key: FileKey) -> None:
        case = self._cases.pop(key, None)
        if case is not None:
            case.close()
            self._wait_no_more(case.seen)
        if key not in self._reading:
            self._slots.pop(key, None)


def _is_done(row: Followed, file: Descriptor) -> bool:
    size, before = file.size(), row.checkpoint
    return (
        row.harvester is None
        and size == before.watermark > 0
        and matches(before, examine(before, before.birth, size, file.pread))
    )
