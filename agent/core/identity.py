"""Which file is which: births, checkpoints, and what a file at hand is to them. Pure.

A path says nothing (rotation moves it) and an inode little (ext4 hands a freed one out at once),
so a source is an inode *and* its birth. Content is checked on top: a checkpoint carries a digest
of the first bytes (the fingerprint) and of the bytes that end at its watermark (the anchor), and
reading goes on at the watermark only where both still match. Wherever the evidence leaves a
choice, the answer is the one that sends a line twice and not the one that skips it.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from itertools import takewhile
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct
from msgspec.structs import replace

from agent.core.lines import TAIL_BYTES

ANCHOR_BYTES = TAIL_BYTES
FINGERPRINT_BYTES = 1024
DIGEST_BYTES = 16
OLDER_MAX = 4
"""Older anchors of one checkpoint: about 120 bytes of memory each, for every known file."""
OLDER_RATIO = 4
REWIND_BYTES_MIN = FINGERPRINT_BYTES + ANCHOR_BYTES
"""Below this an older anchor overlaps the fingerprint and proves nothing of its own."""


class Readable(Protocol):
    """An open regular file. ``agent.opener.Descriptor`` is one; tests bring their own."""

    def pread(self, length: int, offset: int) -> bytes:
        """Return up to ``length`` bytes at ``offset``; fewer only where the file ends."""

    def size(self) -> int:
        """Return the size in bytes, now."""

    def close(self) -> None:
        """Give the descriptor back. Safe to repeat."""


class Birth(Struct, frozen=True, eq=False, gc=False):
    """What tells a file from every other one on its file system, now and after a reboot.

    ``born_ns`` is the birth time since the epoch (statx(2) ``stx_btime``), ``inode_generation``
    what ``FS_IOC_GETVERSION`` says; each is 0 where the file system does not tell. ``device`` may
    change at a reboot: a hint, not part of equality.
    """

    inode: int
    born_ns: int
    inode_generation: int
    device: int

    @property
    def key(self) -> tuple[int, int, int]:
        return self.inode, self.born_ns, self.inode_generation

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Birth) and self.key == other.key

    def __ne__(self, other: object) -> bool:
        return not self == other  # msgspec's own != would compare identities

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=16)
def one_device(device: int) -> int:
    """Return the same object for equal numbers: every known file holds its device."""
    return device


def source_id(birth: Birth) -> str:
    """Name the source that was born so: 16 hexadecimal characters, never the path."""
    return blake2b(b"%d/%d/%d" % birth.key, digest_size=8).hexdigest()


def digest(data: bytes) -> bytes:
    """Return 16 bytes that stand for ``data``."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


class Range(NamedTuple):
    """Bytes ``[start, end)`` of a file."""

    start: int
    end: int


def fingerprint_range(watermark: int) -> Range:
    return Range(0, min(FINGERPRINT_BYTES, watermark))


def anchor_range(offset: int) -> Range:
    return Range(max(0, offset - ANCHOR_BYTES), offset)


class Anchor(Struct, frozen=True, gc=False):
    """``digest`` of the ``min(512, offset)`` bytes that end at ``offset``."""

    offset: int
    digest: bytes


class Held(Readable, Protocol):
    """A file that is kept open to be read on."""

    def links(self) -> int:
        """Return the number of names; 0 once the file is deleted."""

    def disk_bytes(self) -> int:
        """Return how much room it takes up; holes take none."""

    def beyond_hole(self, offset: int) -> int:
        """Return where something is stored at or after ``offset``, which may be ``offset``."""


class File(Readable, Protocol):
    """A file, or the content of a compressed one, that says who it is."""

    @property
    def birth(self) -> Birth: ...


class Checkpoint(Struct, frozen=True, gc=False, kw_only=True):
    """How far one generation of one source is settled, and what proves that a file is it.

    There is one for every known file, so it holds nothing that can be derived.

    ``birth`` is the original file's. ``gone_at``, in wall-clock seconds, makes it a tombstone:
    the file was seen gone, or truncated and so superseded by the next generation.
    ``path`` is where the file was seen last: a hint.
    """

    birth: Birth
    generation: int
    watermark: int
    fingerprint: bytes
    anchor: Anchor
    older: tuple[Anchor, ...] = ()
    path: str
    client: str
    gone_at: float | None = None

    def __post_init__(self) -> None:
        assert self.anchor.offset == self.watermark, "the anchor stands at the watermark"
        assert all(a.offset < self.watermark for a in self.older), "older anchors lie before it"

    @property
    def source_id(self) -> str:
        return source_id(self.birth)


def advance(before: Checkpoint, anchor: Anchor, fingerprint: bytes) -> Checkpoint:
    """Move the watermark to ``anchor``, forward only. ``fingerprint`` covers its range there."""
    if anchor.offset == before.watermark:
        return before
    assert anchor.offset > before.watermark, f"{anchor.offset} is behind {before.watermark}"
    older = thinned((*before.older, before.anchor), anchor.offset)
    return replace(
        before, watermark=anchor.offset, fingerprint=fingerprint, anchor=anchor, older=older
    )


def thinned(anchors: Iterable[Anchor], watermark: int) -> tuple[Anchor, ...]:
    """Keep at most ``OLDER_MAX`` anchors, each about four times as far back as the next.

    Bands of distance are shares of the watermark (its last 1/64, 1/16, 1/4, the rest), so the
    same few anchors serve a file of any size: cut short, it is sent again from at most four times
    as far back as the cut, or from one 64th of the file.
    """
    bands: dict[int, Anchor] = {}
    for anchor in sorted(anchors, key=lambda a: a.offset):
        if not REWIND_BYTES_MIN <= anchor.offset < watermark:
            continue
        band, reach = 0, (watermark - anchor.offset) * OLDER_RATIO
        while reach < watermark and band < OLDER_MAX - 1:
            band, reach = band + 1, reach * OLDER_RATIO
        # Of one band the farthest stays, so that it ages into the next band; the last band has
        # no next one, and there the nearest is worth most.
        if band == 0 or band not in bands:
            bands[band] = anchor
    return tuple(sorted(bands.values(), key=lambda a: a.offset, reverse=True))


class Probe(Struct, frozen=True):
    """What was found where ``demands`` and ``older_demands`` say to look.

    A digest is None where the file is too short for its range. ``older`` stands in the order of
    ``Checkpoint.older`` and may be left empty: then nothing is ever rewound.
    """

    birth: Birth
    size: int
    fingerprint: bytes | None
    anchor: bytes | None
    older: tuple[bytes | None, ...] = ()


def demands(before: Checkpoint) -> tuple[Range, Range]:
    """Return the ranges whose digests are a probe's ``fingerprint`` and ``anchor``."""
    return fingerprint_range(before.watermark), anchor_range(before.watermark)


def older_demands(before: Checkpoint) -> tuple[Range, ...]:
    """Return the ranges of a probe's ``older``: wanted only where the anchor does not match."""
    return tuple(anchor_range(anchor.offset) for anchor in before.older)


def examine(
    before: Checkpoint, birth: Birth, size: int, pread: Callable[[int, int], bytes]
) -> Probe:
    """Take the evidence ``compare`` needs with ``pread(length, offset)``, in two reads mostly."""
    fingerprint, anchor = (_digest_of(wanted, pread) for wanted in demands(before))
    probe = Probe(birth, size, fingerprint, anchor)
    if fingerprint != before.fingerprint or anchor == before.anchor.digest:
        return probe
    return replace(probe, older=tuple(_digest_of(r, pread) for r in older_demands(before)))


def _digest_of(wanted: Range, pread: Callable[[int, int], bytes]) -> bytes | None:
    length = wanted.end - wanted.start
    got = pread(length, wanted.start) if length else b""
    return digest(got) if len(got) == length else None


Cause = Literal["same", "rewound", "truncated", "mismatch", "replaced", "reset"]


class Change(Struct, frozen=True):
    """What became of a source, and the offset from which to read on.

    ``same``: go on at the watermark. Every other cause starts a new generation. ``rewound``: the
    end is gone and the beginning stands, as after a power cut. ``truncated``: shorter than the
    watermark. ``mismatch``: long enough, other content. ``replaced``: another file altogether,
    unknown until ``discovery.continues`` has judged it; its source id is its own. ``reset``: an
    operator wants it; ``compare`` never says so.
    """

    cause: Cause
    resume_at: int = 0


def compare(before: Checkpoint, now: Probe) -> Change:
    """Say what the file in ``now`` is to ``before``. Total; never resumes on half the evidence."""
    if now.birth != before.birth:
        return Change("replaced")
    if matches(before, now):
        return Change("same", before.watermark)
    if standing := rewound(before, now):
        return Change("rewound", standing)
    return Change("truncated" if now.size < before.watermark else "mismatch")


def matches(before: Checkpoint, now: Probe) -> bool:
    """Return whether the content up to the watermark is what it was; births are not compared."""
    return (
        now.size >= before.watermark
        and now.fingerprint == before.fingerprint
        and now.anchor == before.anchor.digest
    )


def rewound(before: Checkpoint, now: Probe) -> int:
    """Return the newest older anchor that stands, as do all before it; 0 when there is none."""
    if now.fingerprint != before.fingerprint:
        return 0
    oldest_first = list(zip(before.older, now.older, strict=False))[::-1]
    standing = takewhile(lambda pair: pair[0].digest == pair[1], oldest_first)
    offsets = [a.offset for a, _ in standing if REWIND_BYTES_MIN <= a.offset <= now.size]
    return max(offsets, default=0)
