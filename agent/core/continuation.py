"""Whose copy an unknown file is: where reading goes on after copy-truncate. Pure."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from heapq import nsmallest
from operator import is_
from typing import Literal

from msgspec import Struct

from agent.core.identity import (
    Birth,
    Checkpoint,
    Probe,
    digest,
    fingerprint_range,
    matches,
    rewound,
)

CONTINUE_BYTES_MIN = 64
"""Settled bytes without which no unknown file is taken for a copy: shorter ones are alike by
chance (ten bytes of ``{"n":1}``), so they are read in full."""
CANDIDATES_MAX = 64
"""Sources one unknown file is compared with; each costs a read of 512 bytes."""
STILL_S = 10.0
"""A copy that has not grown for this long is finished."""
WAIT_S = 300.0
"""Longest wait for the original of a possible copy to be truncated; then it is read in full."""
SLACK_NS = 2_000_000_000
"""Birth times come from the kernel's coarse clock and ``gone_at`` from ours."""
KINDS = 512
"""Of names, by their hash: a look-up need not try what only files of other names begin with."""


class Sighting(Struct, frozen=True):
    """A file nobody knows: its name, its first bytes, and for how long it has been looked at.

    ``still_s`` is the time since it last grew, ``waited_s`` since it was first seen. ``outgrown``
    says that it was a whole copy beside its original and has been written to since.
    """

    birth: Birth
    size: int
    path: str
    client: str
    still_s: float = 0.0
    waited_s: float = 0.0
    outgrown: bool = False


class Candidate(Struct, frozen=True):
    """A source the sighting may be a copy of. ``size`` is the original's, None when it is gone.

    ``same`` says whether the whole sighting was found to be the beginning of the original, byte by
    byte; None: nobody has compared them.
    """

    before: Checkpoint
    probe: Probe
    size: int | None
    same: bool | None = None


Verdict = Literal["new", "wait", "compare", "copy", "short_copy"]


class Continuation(Struct, frozen=True):
    """``copy``: go on as ``source`` at its watermark, with its ids. ``short_copy``: a copy taken
    before ``source`` was settled to its end; begin at ``resume_at`` as a source of its own.
    ``wait``: ask again soon. ``compare``: ask again once it was compared with ``source``.
    ``new``: nobody's copy, read it from 0 as a source of its own.
    """

    verdict: Verdict
    resume_at: int = 0
    source: Checkpoint | None = None


def continues(sighting: Sighting, candidates: Iterable[Candidate]) -> Continuation:
    """Decide whether an unknown file is the copy of a known source.

    Only if ``Index.alike`` named the source, and fingerprint and anchor match. Where the original
    is gone or truncated, the copy continues it. Where it is still there in full, the answer is
    ``wait`` as long as the file grows: copy-truncate cuts the original right after, and until then
    both hold the same unread bytes. A file at rest is compared with it, and waits on as long as it
    equals its beginning to the last byte. One that outgrows the original, differs, or is written
    to after it was a whole copy, is new: at worst its lines are sent twice.
    """
    ordered = sorted(candidates, key=lambda c: _preference(c.before))
    for candidate in ordered:
        if candidate.before.gone_at is not None and (found := _continued(sighting, candidate)):
            return found
    there = [c for c in ordered if c.before.gone_at is None and _alike(c)]
    beside = [c for c in there if sighting.size <= (c.size or 0)]
    # Once the original is cut, its own reader is about to notice and to set ``gone_at``.
    cut = any(
        c.size is not None and (c.size < c.before.watermark or (c.same and c not in beside))
        for c in there
    )
    still = sighting.still_s >= STILL_S
    unsure = [c.before for c in beside if c.same is None]
    if not sighting.size or (cut and sighting.waited_s < WAIT_S):
        return Continuation("wait")
    if sighting.outgrown:
        return Continuation("new")
    if any(c.same for c in beside) or (beside and not still and sighting.waited_s < WAIT_S):
        return Continuation("wait")
    if still and unsure and sighting.size >= CONTINUE_BYTES_MIN:
        return Continuation("compare", source=unsure[0])
    return Continuation("new")


def _continued(sighting: Sighting, of: Candidate) -> Continuation | None:
    """Return how the sighting continues a source whose original is gone, None if it does not."""
    before, probe = of.before, of.probe
    if matches(before, probe):
        return Continuation("copy", before.watermark, before)
    if probe.size < before.watermark:
        standing = sighting.size if of.same else rewound(before, probe)
        if standing:
            return Continuation("short_copy", standing, before)
    return None


def _alike(candidate: Candidate) -> bool:
    before, probe = candidate.before, candidate.probe
    return bool(candidate.same) or matches(before, probe) or _growing(before, probe)


def _growing(before: Checkpoint, probe: Probe) -> bool:
    """Return whether this may be the beginning of a copy that is still being made."""
    agreed = all(
        found is None or found == anchor.digest
        for anchor, found in zip(before.older, probe.older, strict=False)
    )
    return agreed and probe.fingerprint == before.fingerprint and probe.size < before.watermark


def _preference(before: Checkpoint) -> tuple[float, int, str, int]:
    """Order what fits: the first to go after the copy was born, then the farthest settled."""
    gone_at = before.gone_at if before.gone_at is not None else float("inf")
    return gone_at, -before.watermark, before.source_id, before.generation


class Index:
    """Checkpoints by what a copy of their file would look like: client, name and fingerprint.

    A copy stays with its client, is named after its original (``feedback.jsonl`` ->
    ``feedback.jsonl.1``, ``feedback-20260101.jsonl``), was born after it and before it was gone,
    and begins with the same bytes. A look-up costs one digest for each length of fingerprint that
    is in use among files of its kind of name, however many tombstones there are.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint] = ()) -> None:
        # By fingerprint. One row mostly stands for itself: every known file pays for what is here.
        self._buckets: dict[bytes, Checkpoint | dict[Checkpoint, int]] = {}
        self._lengths: defaultdict[int, dict[int, int]] = defaultdict(dict)  # by kind of name
        self._rows: dict[Hashable, Checkpoint | tuple[Checkpoint, ...]] = {}  # as above
        self._roomy = False
        for checkpoint in checkpoints:
            self.put(checkpoint, checkpoint)

    def put(self, owner: Hashable, *rows: Checkpoint) -> None:
        """Let ``owner`` be known by ``rows`` from now on, and by nothing it was known by before.

        A row with too few settled bytes could prove nothing and is left out.
        """
        rows = tuple(row for row in rows if row.watermark >= CONTINUE_BYTES_MIN)
        before = self._rows.get(owner, ())
        if isinstance(before, Checkpoint):
            before = (before,)
        if len(rows) == len(before) and all(map(is_, rows, before)):
            return  # not of equal ones: those that are kept elsewhere anyway take no memory here
        for row in before:
            self._discard(row)
            self._roomy = True
        for row in rows:
            self._add(row)
        if rows:
            self._rows[owner] = rows[0] if len(rows) == 1 else rows
        else:
            del self._rows[owner]

    def compact(self) -> None:
        """Give up the room of what was there once: a table keeps that of all it ever held."""
        if self._roomy:
            self._buckets, self._rows, self._roomy = {**self._buckets}, {**self._rows}, False

    def _add(self, row: Checkpoint) -> None:
        key = row.fingerprint
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = row
        else:
            if isinstance(bucket, Checkpoint):
                bucket = self._buckets[key] = {bucket: 1}
            bucket[row] = bucket.get(row, 0) + 1  # of its owners
        lengths, length = self._lengths[_kind(row.client, _stem(row.path))], _length(row)
        lengths[length] = lengths.get(length, 0) + 1

    def _discard(self, row: Checkpoint) -> None:
        key, kind, length = row.fingerprint, _kind(row.client, _stem(row.path)), _length(row)
        bucket = self._buckets[key]
        if isinstance(bucket, Checkpoint):
            del self._buckets[key]
        else:
            bucket[row] -= 1
            if not bucket[row]:
                del bucket[row]
            if not bucket:
                del self._buckets[key]
        lengths = self._lengths[kind]
        lengths[length] -= 1
        if not lengths[length]:
            del lengths[length]
        if not lengths:
            del self._lengths[kind]

    def alike(self, sighting: Sighting, prefix: bytes) -> list[Checkpoint]:
        """Return at most ``CANDIDATES_MAX`` sources that ``sighting`` may be a copy of.

        ``prefix`` is its first ``min(1024, size)`` bytes.
        """
        stems = {*_stems(sighting.path)}
        kinds = {_kind(sighting.client, stem) for stem in stems}
        lengths = {n for kind in kinds for n in self._lengths.get(kind, ()) if n <= len(prefix)}
        prints = [digest(prefix[:n]) for n in sorted(lengths)]
        found = (
            checkpoint
            for fingerprint in prints
            for checkpoint in self._bucket(fingerprint)
            if checkpoint.client == sighting.client
            and _stem(checkpoint.path) in stems
            and _plausible(checkpoint, sighting.birth)
        )
        return nsmallest(CANDIDATES_MAX, found, key=_preference)

    def of_life(self, row: Checkpoint) -> list[Checkpoint]:
        """Return what it holds of the source and generation of ``row``, beginning as ``row``."""
        life = row.source_id, row.generation
        bucket = self._bucket(row.fingerprint)
        return [found for found in bucket if (found.source_id, found.generation) == life]

    def _bucket(self, fingerprint: bytes) -> Iterable[Checkpoint]:
        bucket = self._buckets.get(fingerprint, {})
        return (bucket,) if isinstance(bucket, Checkpoint) else bucket


def _plausible(before: Checkpoint, birth: Birth) -> bool:
    if before.birth == birth:
        return False  # the file itself, in an older generation
    if not birth.born_ns:
        return True
    too_old = birth.born_ns < before.birth.born_ns - SLACK_NS
    return not too_old and (
        before.gone_at is None or birth.born_ns <= before.gone_at * 1e9 + SLACK_NS
    )


def _length(row: Checkpoint) -> int:
    return fingerprint_range(row.watermark).end


def _kind(client: str, stem: str) -> int:
    return hash((client, stem)) % KINDS


def _stem(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0]


def _stems(path: str) -> Iterator[str]:
    """Yield what the name of the original may have been, up to its first dot."""
    stem = _stem(path)
    yield stem
    for at, character in enumerate(stem):
        if character in "-_~":
            yield stem[:at]
