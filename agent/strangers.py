"""Files that nobody knows: new, or the copy that a copy-truncate leaves behind.

Lives in the worker thread. ``core.continuation`` decides; this room gathers its evidence.
"""

from collections.abc import Callable, Collection

from msgspec.structs import replace

from agent.clock import Clock
from agent.core.continuation import Candidate, Continuation, Index, Sighting, continues
from agent.core.discovery import FileKey, Seen
from agent.core.identity import FINGERPRINT_BYTES, Birth, Checkpoint, Readable, examine
from agent.harvester import Followed, first_generation, starting_at
from agent.opener import Descriptor


class _Undecided:
    """An unknown file that may be a copy: since when, and how big it was when it last grew."""

    __slots__ = ("grew_s", "seen", "seen_s", "size")

    def __init__(self, seen: Seen, now_s: float) -> None:
        self.seen, self.size, self.grew_s, self.seen_s = seen, 0, now_s, now_s

    def look(self, seen: Seen, size: int, now_s: float) -> None:
        self.seen = seen
        if size != self.size:
            self.size, self.grew_s = size, now_s


class Strangers:
    """Judges unknown files, and remembers those that must wait for evidence.

    Args:
        known: Return who was born so, as far as anybody knows.
        index: What unknown files may be copies of.
        line_bytes_max: How far back the end of the last line is looked for (``begin_at_end``).
    """

    def __init__(
        self,
        known: Callable[[Birth], Followed | None],
        index: Index,
        *,
        line_bytes_max: int,
        clock: Clock,
    ) -> None:
        self.begin_at_end: set[FileKey] = set()
        """Files that begin at their last line's end if they are nobody's copy."""
        self._known = known
        self._line_bytes_max = line_bytes_max
        self._clock = clock
        self._undecided: dict[FileKey, _Undecided] = {}
        self._index = index
        self._met: list[Birth] = []  # judged since the last scan

    def scanned(self, new: Collection[FileKey]) -> None:
        """Keep those that a scan met again."""
        self._undecided = {key: u for key, u in self._undecided.items() if key in new}
        for birth in self._met:
            self._index.put(birth)
        self._met.clear()

    def at(self, path: str) -> Seen | None:
        """Return the file at ``path`` whose identity still waits for evidence."""
        return next((u.seen for u in self._undecided.values() if u.seen.path == path), None)

    def judge(self, file: Descriptor, seen: Seen) -> Checkpoint | None:
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
            waited_s=now_s - undecided.seen_s,
        )
        alike = self._index.alike(sighting, file.pread(min(FINGERPRINT_BYTES, size), 0))
        verdict = continues(sighting, [self._candidate(c, file, size) for c in alike])
        if verdict.verdict == "wait":
            return None
        del self._undecided[seen.key]
        base = self._base(verdict, file, seen)
        if base.gone_at is None:  # the same scan may have met a copy: it comes later, and waits
            self._index.put(file.birth, starting_at(file.size(), file, base))
            self._met.append(file.birth)
        return base

    def _base(self, verdict: Continuation, file: Descriptor, seen: Seen) -> Checkpoint:
        if verdict.verdict == "copy":
            assert verdict.source is not None
            return replace(verdict.source, path=seen.path)
        offset = verdict.resume_at
        if verdict.verdict == "new" and seen.key in self.begin_at_end:
            offset = _last_line_end(file, self._line_bytes_max)
        return starting_at(offset, file, first_generation(file.birth, seen.path, seen.client))

    def _candidate(self, before: Checkpoint, file: Descriptor, size: int) -> Candidate:
        original = self._known(before.birth)
        original_size = None
        if original is not None and _succeeds(original.checkpoint, before):
            original_size = 0  # whatever it holds by now is not this generation's
        elif original is not None and original.harvester is not None:
            original_size = original.harvester.file.size()
        elif original is not None and original.seen is not None:
            original_size = original.seen.size
        elif before.gone_at is None:
            original_size = max(size, before.watermark)  # not met yet: as if it were intact
        return Candidate(before, examine(before, before.birth, size, file.pread), original_size)


def _succeeds(row: Checkpoint, before: Checkpoint) -> bool:
    """Return whether ``row``, of the same file, is another life than ``before``."""
    return (row.source_id, row.generation) != (before.source_id, before.generation)


def _last_line_end(file: Readable, line_bytes_max: int) -> int:
    """Return where the last whole line ends, 0 if none does within ``line_bytes_max``."""
    size = file.size()
    start = max(0, size - line_bytes_max - 1)
    return start + file.pread(size - start, start).rfind(b"\n") + 1 if size else 0
