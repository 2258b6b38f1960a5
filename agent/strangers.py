"""Files that nobody knows: new, or the copy that a copy-truncate leaves behind.

Lives in the worker thread. ``core.continuation`` decides; this room gathers its evidence.
"""

import contextlib
from collections.abc import Callable, Collection
from typing import Protocol

from msgspec.structs import replace

from agent.clock import Clock
from agent.core.continuation import (
    CONTINUE_BYTES_MIN,
    WAIT_S,
    Candidate,
    Continuation,
    Index,
    Sighting,
    continues,
)
from agent.core.discovery import FileKey, Seen, file_key
from agent.core.identity import (
    FINGERPRINT_BYTES,
    Birth,
    Checkpoint,
    File,
    Probe,
    Readable,
    examine,
)
from agent.core.lines import NUL
from agent.harvester import Followed, first_generation, starting_at
from agent.opener import Descriptor, Refused
from agent.studies import Studies, Study, begins_as
from agent.unpacking import Unpacked, is_compressed, is_content

Life = tuple[str, int]
"""Source and generation."""

LATELY_MAX = 512
"""Files that were judged and are in no books yet; of a tree of 50,000 they would be as many again,
and what they leave behind is not given back."""


class _Undecided:
    """An unknown file that may be a copy: since when, and how big it was when it last grew."""

    __slots__ = (
        "asked",
        "grew_s",
        "mtime_ns",
        "outgrown",
        "same",
        "seen",
        "size",
        "twin",
        "waits_s",
    )

    def __init__(self, seen: Seen, now_s: float) -> None:
        self.seen, self.size, self.mtime_ns = seen, 0, seen.mtime_ns
        self.grew_s = self.waits_s = now_s
        self.same: dict[Life, bool] = {}  # whether all of it is the beginning of that
        self.twin: Checkpoint | None = None  # one of which it is
        self.outgrown = False
        self.asked = False  # for a comparison, since the last scan

    def look(self, seen: Seen, size: int, now_s: float) -> None:
        if size != self.size:
            self.grew_s = now_s
        if (size, seen.mtime_ns) != (self.size, self.mtime_ns):
            self.outgrown |= self.twin is not None and size > self.size
            self.same, self.twin = {}, None
        self.seen, self.size, self.mtime_ns = seen, size, seen.mtime_ns


class Origins(Protocol):
    """Who files are that nobody has met here, as far as somebody else may know them."""

    def alike(self, sighting: Sighting, prefix: bytes) -> list[Checkpoint]:
        """Return what a file that begins with ``prefix`` may be known by."""

    def of(self, file: File, seen: Seen) -> Checkpoint:
        """Say who ``file`` is and where it begins. Raises ``OSError``."""


class Unheard:
    """Nobody else knows any file: each is a source of its own."""

    def alike(self, sighting: Sighting, prefix: bytes) -> list[Checkpoint]:
        return []

    def of(self, file: File, seen: Seen) -> Checkpoint:
        return first_generation(file.birth, seen.path, seen.client)


class Strangers:
    """Judges unknown files, and remembers those that must wait for evidence.

    Args:
        known: Return who goes on as that row, or was born as it says, as far as anybody knows.
        index: What unknown files may be copies of.
        line_bytes_max: How far back the end of the last line is looked for (``begin_at_end``).
    """

    open_file: Callable[[str], Descriptor | Refused]
    """Set by who opens files."""
    origins: Origins = Unheard()

    def __init__(
        self,
        known: Callable[[Checkpoint], Followed | None],
        index: Index,
        *,
        line_bytes_max: int,
        clock: Clock,
    ) -> None:
        self.begin_at_end: set[FileKey] = set()
        """Files that begin at their last line's end if they are nobody's copy."""
        self.studies = Studies()
        self._known = known
        self._line_bytes_max = line_bytes_max
        self._clock = clock
        self._undecided: dict[FileKey, _Undecided] = {}
        self._index = index
        self._lately: list[Checkpoint] = []  # as if read to their ends: nothing else is known yet
        self._lately_max = LATELY_MAX

    def scanned(self, new: Collection[FileKey]) -> None:
        """Keep those that a scan met again."""
        self._undecided = {key: u for key, u in self._undecided.items() if key in new}
        for undecided in self._undecided.values():
            undecided.asked = False

    @property
    def crowded(self) -> bool:
        """Return whether many were judged since ``booked``."""
        return len(self._lately) >= self._lately_max

    def booked(self) -> None:
        """Note that the books say what was read of each file by now."""
        unread = []
        for row in self._lately:
            if self._unread(row):
                unread.append(row)
            else:
                self._index.put(row.birth)
        self._lately, self._lately_max = unread, max(LATELY_MAX, 2 * len(unread))

    def _unread(self, row: Checkpoint) -> bool:
        followed = self._known(row)
        if followed is None or _life(followed.checkpoint) != _life(row):
            return False
        harvester = followed.harvester
        return harvester is not None and harvester.cursor.start < CONTINUE_BYTES_MIN

    def at(self, path: str) -> Seen | None:
        """Return the file at ``path`` whose identity still waits for evidence."""
        return next((u.seen for u in self._undecided.values() if u.seen.path == path), None)

    def resting(self, seen: Seen) -> bool:
        """Return whether ``seen`` is the whole copy it was, beside an original that is there."""
        u = self._undecided.get(seen.key)
        if u is None or u.twin is None or seen.path != u.seen.path:
            return False
        if (seen.size, seen.mtime_ns) != (u.size, u.mtime_ns):
            return False
        u.twin = self._by_now(u.twin)
        if (self._size_now(u.twin, seen.size) or -1) < seen.size:
            return False
        u.waits_s = self._clock.monotonic()
        return True

    def alike(self, birth: Birth, seen: Seen, prefix: bytes) -> list[Checkpoint]:
        """Return what a file may be a copy of that begins with ``prefix``."""
        sighting = Sighting(birth, len(prefix), seen.path, seen.client)
        return [*self._index.alike(sighting, prefix), *self.origins.alike(sighting, prefix)]

    def undecided(self) -> int:
        """Return how many files wait for evidence, whole copies beside their original apart."""
        return sum(u.size > 0 and u.twin is None for u in self._undecided.values())

    def copies(self) -> dict[FileKey, Checkpoint]:
        """Return what lies beside an original that has all of its lines."""
        return {key: u.twin for key, u in self._undecided.items() if u.twin is not None}

    def judge(self, file: File, seen: Seen) -> Checkpoint | None:
        """Say who ``file`` is and where it begins; None while that waits for evidence.

        Raises ``OSError`` when the file cannot be read.
        """
        now_s, size = self._clock.monotonic(), file.size()
        undecided = self._undecided.setdefault(seen.key, _Undecided(seen, now_s))
        undecided.look(seen, size, now_s)
        sighting = Sighting(
            birth=file.birth,
            size=size,
            path=seen.path,
            client=seen.client,
            still_s=now_s - undecided.grew_s,
            waited_s=now_s - undecided.waits_s,
            outgrown=undecided.outgrown,
        )
        prefix = file.pread(min(FINGERPRINT_BYTES, size), 0)
        alike = dict.fromkeys([*self._index.alike(sighting, prefix), *self._twins(undecided)])
        candidates = [self._candidate(c, file, undecided) for c in alike]
        verdict = continues(sighting, candidates)
        for candidate in candidates:
            if candidate.same and (candidate.size or 0) >= size:
                undecided.twin, undecided.waits_s = candidate.before, now_s
        if verdict.verdict == "compare":
            assert verdict.source is not None
            if not undecided.asked:
                undecided.asked = True
                before = verdict.source
                self.studies.ask(seen, lambda: self._compare(undecided, before))
            return None
        if verdict.verdict == "wait":
            return None
        del self._undecided[seen.key]
        base = self._base(verdict, file, seen)
        if base.gone_at is None:  # the same scan may have met a copy: it comes later, and waits
            self._lately.append(starting_at(file.size(), file, base))
            self._index.put(file.birth, self._lately[-1])
        return base

    def _base(self, verdict: Continuation, file: File, seen: Seen) -> Checkpoint:
        offset = verdict.resume_at
        if verdict.verdict == "copy":
            assert verdict.source is not None
            offset = self._line_start(file, verdict.resume_at)
            if offset == verdict.resume_at:
                return replace(verdict.source, path=seen.path)
        elif verdict.verdict == "new" and seen.key in self.begin_at_end:
            offset = _last_line_end(file, self._line_bytes_max)
        elif verdict.verdict == "new":
            return self.origins.of(file, seen)
        return starting_at(offset, file, first_generation(file.birth, seen.path, seen.client))

    def _line_start(self, file: File, offset: int) -> int:
        """Return where the line begins that goes on at ``offset``; that, if none does.

        What a deleted file ended with is settled, whole line or not; in a copy it may be whole.
        """
        start = max(0, offset - self._line_bytes_max - 1)
        if file.size() == offset or file.pread(1, offset - 1) in {b"\n", NUL}:
            return offset
        return start + file.pread(offset - start, start).rfind(b"\n") + 1

    def _candidate(self, before: Checkpoint, file: File, copy: _Undecided) -> Candidate:
        size = None
        if before.gone_at is None:
            size = self._size_now(before, copy.size)
            if size is None:
                before = self._by_now(before)  # it went, and was closed, since the last scan
        same = copy.same.get(_life(before))
        if same is None or before.gone_at is not None:
            probe = examine(before, before.birth, copy.size, file.pread)
        else:  # all was compared; its anchors move on, and what is packed cannot be asked for them
            probe = Probe(before.birth, copy.size, None, None)
        return Candidate(before, probe, size, same)

    def _size_now(self, before: Checkpoint, copy_size: int) -> int | None:
        """Return how much of the content of ``before`` there is; None where its file is gone."""
        original = self._known(before)
        if original is None:
            return None
        if _life(original.checkpoint) != _life(before):
            return 0  # whatever it holds by now is not this generation's
        if original.harvester is not None:
            return original.harvester.file.size()
        if original.seen is not None and not is_content(original.birth):
            return original.seen.size
        if original.seen is not None or original.checkpoint.gone_at is None:
            return max(copy_size, before.watermark)  # not met yet, or packed: as if it were intact
        return None

    def _twins(self, copy: _Undecided) -> list[Checkpoint]:
        """Return what the index holds of the source that ``copy`` was found to be a copy of.

        By its own first bytes it may not find it: fewer than of the original, which has grown.
        """
        if copy.twin is None:
            return []
        copy.twin = self._by_now(copy.twin)
        return self._index.of_life(copy.twin)

    def _by_now(self, row: Checkpoint) -> Checkpoint:
        holder = self._known(row)
        if holder is None or _life(holder.checkpoint) != _life(row):
            return row
        return holder.latest()

    def _compare(self, copy: _Undecided, before: Checkpoint) -> Study:
        """Find out whether all of ``copy`` is the beginning of ``before``, as both are now."""
        stamp = copy.size, copy.mtime_ns
        same: bool | None = False
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            mine = opened.enter_context(contextlib.closing(self.opened(copy.seen)))
            original = self._known(before)
            if original is not None and original.seen is not None:
                other = opened.enter_context(contextlib.closing(self.opened(original.seen)))
                if other.birth == original.birth:
                    same = yield from begins_as(mine, other)
            elif original is not None and original.harvester is not None:
                same = None  # gone, and read on by its descriptor: that has an end
            elif original is not None and self._clock.monotonic() < copy.waits_s + WAIT_S:
                same = None  # not met yet
        if same is not None and (copy.size, copy.mtime_ns) == stamp:
            copy.same[_life(before)] = same

    def opened(self, seen: Seen) -> Descriptor | Unpacked:
        """Open what a scan met, or what is packed in it. Raises ``OSError``."""
        file = self.open_file(seen.path)
        if isinstance(file, Refused):
            raise OSError(file.reason)
        if file_key(file.birth.device, file.birth.inode) != seen.key:
            file.close()
            raise OSError("another file lies there now")
        return Unpacked(file) if is_compressed(seen.path, file) else file


def _life(row: Checkpoint) -> Life:
    return row.source_id, row.generation


def _last_line_end(file: Readable, line_bytes_max: int) -> int:
    """Return where the last whole line ends, 0 if none does within ``line_bytes_max``."""
    size = file.size()
    start = max(0, size - line_bytes_max - 1)
    return start + file.pread(size - start, start).rfind(b"\n") + 1 if size else 0
