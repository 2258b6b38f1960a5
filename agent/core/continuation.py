"""Whose copy an unknown file is: where reading goes on after copy-truncate. Pure."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from heapq import nsmallest
from typing import Literal

from msgspec import Struct

from agent.core.identity import (
    ANCHOR_BYTES,
    Birth,
    Checkpoint,
    Probe,
    digest,
    fingerprint_range,
    matches,
    rewound,
)

CONTINUE_BYTES_MIN = ANCHOR_BYTES
"""Settled bytes without which no unknown file is taken for a copy: shorter ones are alike by
chance (ten bytes of ``{"n":1}``), so they are read in full."""
CANDIDATES_MAX = 64
"""Sources one unknown file is compared with; each costs a read of 64 bytes."""
STILL_S = 10.0
"""A copy that has not grown for this long is finished."""
WAIT_S = 300.0
"""Longest wait for the original of a possible copy to be truncated; then it is read in full."""
SLACK_NS = 2_000_000_000
"""Birth times come from the kernel's coarse clock and ``gone_at`` from ours."""


class Sighting(Struct, frozen=True):
    """A file nobody knows: its name, its first bytes, and for how long it has been looked at.

    ``still_s`` is the time since it last grew, ``waited_s`` since it was first seen.
    """

    birth: Birth
    size: int
    path: str
    client: str
    still_s: float = 0.0
    waited_s: float = 0.0


class Candidate(Struct, frozen=True):
    """A source the sighting may be a copy of. ``size`` is the original's, None when it is gone."""

    before: Checkpoint
    probe: Probe
    size: int | None


Verdict = Literal["new", "wait", "copy", "short_copy"]


class Continuation(Struct, frozen=True):
    """``copy``: go on as ``source`` at its watermark, with its ids. ``short_copy``: a copy taken
    before ``source`` was settled to its end; begin at ``resume_at`` as a source of its own.
    ``wait``: ask again soon. ``new``: nobody's copy, read it from 0 as a source of its own.
    """

    verdict: Verdict
    resume_at: int = 0
    source: Checkpoint | None = None


def continues(sighting: Sighting, candidates: Iterable[Candidate]) -> Continuation:
    """Decide whether an unknown file is the copy-truncate copy of a known source.

    Yes only if ``Index.alike`` named the source, fingerprint and anchor match, and the original is
    gone or truncated. While it is still there in full the answer is ``wait``: a copy is truncated
    right after, and until then both hold the same unread bytes. A file that outgrows the original,
    or stays for ``STILL_S`` beside an intact one, is new. What that costs: a copy that somebody
    keeps beside its original is sent twice. What it saves: files that merely begin alike.
    """
    waiting = truncated = False
    for candidate in sorted(candidates, key=lambda c: _preference(c.before)):
        before, probe = candidate.before, candidate.probe
        whole = matches(before, probe)
        if before.gone_at is not None:
            if whole:
                return Continuation("copy", before.watermark, before)
            if probe.size < before.watermark and (standing := rewound(before, probe)):
                return Continuation("short_copy", standing, before)
        elif candidate.size is not None and (whole or _growing(before, probe)):
            waiting |= sighting.size <= candidate.size
            truncated |= candidate.size < before.watermark
    # Once the original is cut, its own reader is about to notice and to set ``gone_at``.
    patient = sighting.waited_s < WAIT_S and (truncated or (waiting and sighting.still_s < STILL_S))
    return Continuation("wait" if patient or not sighting.size else "new")


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
    and begins with the same bytes. A look-up costs one digest for each length of fingerprint in
    use, however many tombstones there are.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self._buckets: dict[bytes, dict[Checkpoint, int]] = {}  # each with its number of owners
        self._lengths: defaultdict[int, int] = defaultdict(int)
        self._rows: dict[Hashable, tuple[Checkpoint, ...]] = {}
        for checkpoint in checkpoints:
            self.put(checkpoint, checkpoint)

    def put(self, owner: Hashable, *rows: Checkpoint) -> None:
        """Let ``owner`` be known by ``rows`` from now on, and by nothing it was known by before.

        A row with too few settled bytes could prove nothing and is left out.
        """
        rows = tuple(row for row in rows if row.watermark >= CONTINUE_BYTES_MIN)
        before = self._rows.get(owner, ())
        if rows == before:
            return
        for row in before:
            self._discard(row)
        for row in rows:
            self._add(row)
        if rows:
            self._rows[owner] = rows
        else:
            del self._rows[owner]

    def _add(self, row: Checkpoint) -> None:
        bucket = self._buckets.setdefault(_bucket_of(row), {})
        bucket[row] = bucket.get(row, 0) + 1
        self._lengths[fingerprint_range(row.watermark).end] += 1

    def _discard(self, row: Checkpoint) -> None:
        key, length = _bucket_of(row), fingerprint_range(row.watermark).end
        bucket = self._buckets[key]
        bucket[row] -= 1
        if not bucket[row]:
            del bucket[row]
        if not bucket:
            del self._buckets[key]
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]

    def alike(self, sighting: Sighting, prefix: bytes) -> list[Checkpoint]:
        """Return at most ``CANDIDATES_MAX`` sources that ``sighting`` may be a copy of.

        ``prefix`` is its first ``min(1024, size)`` bytes.
        """
        prints = [digest(prefix[:n]) for n in self._lengths if n <= len(prefix)]
        found = (
            checkpoint
            for stem in _stems(sighting.path)
            for fingerprint in prints
            for checkpoint in self._buckets.get(_key(sighting.client, stem, fingerprint), ())
            if _plausible(checkpoint, sighting.birth)
        )
        return nsmallest(CANDIDATES_MAX, found, key=_preference)


def _plausible(before: Checkpoint, birth: Birth) -> bool:
    if before.birth == birth:
        return False  # the file itself, in an older generation
    if not birth.born_ns:
        return True
    too_old = birth.born_ns < before.birth.born_ns - SLACK_NS
    return not too_old and (
        before.gone_at is None or birth.born_ns <= before.gone_at * 1e9 + SLACK_NS
    )


def _bucket_of(checkpoint: Checkpoint) -> bytes:
    stem = checkpoint.path.rpartition("/")[2].partition(".")[0]
    return _key(checkpoint.client, stem, checkpoint.fingerprint)


def _key(client: str, stem: str, fingerprint: bytes) -> bytes:
    return digest(repr((client, stem)).encode() + fingerprint)


def _stems(path: str) -> Iterator[str]:
    """Yield what the name of the original may have been, up to its first dot."""
    stem = path.rpartition("/")[2].partition(".")[0]
    yield stem
    for at, character in enumerate(stem):
        if character in "-_~":
            yield stem[:at]
