"""Reads one generation of one source from an open descriptor: from a checkpoint to chunks.

Lives in the worker thread, but for ``ledger``, which the event loop settles. Both sides only
read what the other writes.
"""

from typing import NamedTuple

from msgspec.structs import replace

from agent.core.discovery import Seen
from agent.core.identity import (
    ANCHOR_BYTES,
    FINGERPRINT_BYTES,
    Anchor,
    Birth,
    Checkpoint,
    Held,
    Readable,
    advance,
    anchor_range,
    digest,
    fingerprint_range,
)
from agent.core.ledger import Chunk, Ledger
from agent.core.lines import NUL, Cursor, Piece


class Truncated(NamedTuple):
    """The bytes before the position are not what they were: this generation is over."""

    position: int


def starting_at(offset: int, file: Readable, who: Checkpoint) -> Checkpoint:
    """Return ``who`` as a generation that begins at ``offset``, with the proof of what lies before.

    Raises ``OSError`` when the file cannot be read.
    """
    (_, end), (start, _) = fingerprint_range(offset), anchor_range(offset)
    anchor = Anchor(offset, digest(file.pread(offset - start, start)))
    fingerprint = digest(file.pread(end, 0))
    return replace(who, watermark=offset, fingerprint=fingerprint, anchor=anchor, older=())


def first_generation(birth: Birth, path: str, client: str) -> Checkpoint:
    """Return the checkpoint of a file that nobody has read: its own source, at 0."""
    empty = digest(b"")
    return Checkpoint(
        birth=birth,
        generation=0,
        watermark=0,
        fingerprint=empty,
        anchor=Anchor(0, empty),
        path=path,
        client=client,
    )


class Harvester:
    """One generation of a source, its cursor and its ledger.

    ``path``, ``client`` and ``gone_at`` may be updated while it lives; they go into every
    checkpoint made from then on. ``file`` belongs to whoever opened it.

    Attributes:
        more: The last read was cut short by its length, not by the file's end.
        read_bytes: What it returned.
        seen_to: The offset up to which the file was seen; what lies between it and
            ``cursor.start`` is a line without its end.
        ending: Nothing will be written any more: the file's end is the end of its last line.
    """

    __slots__ = (
        "_base",
        "_head",
        "cursor",
        "ending",
        "file",
        "gone_at",
        "ledger",
        "more",
        "path",
        "read_bytes",
        "seen_to",
    )

    def __init__(self, file: Held, base: Checkpoint, line_bytes_max: int) -> None:
        self.file = file
        self.more = True
        self.ending = False
        self.read_bytes = 0
        self.seen_to = base.watermark
        self.path = base.path
        self.gone_at = base.gone_at
        start, end = anchor_range(base.watermark)
        tail = file.pread(end - start, start)
        self._head = file.pread(fingerprint_range(base.watermark).end, 0)
        proof = base.fingerprint, base.anchor.digest
        if len(tail) < end - start or (digest(self._head), digest(tail)) != proof:
            # Cut short between the probe and now. An impossible tail makes the first read say so.
            tail = b"\0" * (end - start)
        self.cursor = Cursor(base.watermark, tail, line_bytes_max)
        self.ledger = Ledger(base.watermark, tail, (base.source_id, base.generation))
        self._base = base

    @property
    def base(self) -> Checkpoint:
        """Return the checkpoint as last made: who the source is, and for whom."""
        return self._base

    def read(self) -> Piece | Truncated | None:
        """Read once; None when no line is complete. ``more`` then says whether to read on.

        Starts with the bytes before the position: no stat tells truncation apart from growth. Lines
        may end alike, so the first bytes of the file must be what they were as well.
        """
        cursor = self.cursor
        if cursor.passing:
            cursor.hop(self.file.beyond_hole(cursor.at))
        stands = self.file.pread(len(self._head), 0) == self._head
        tail = cursor.tail
        wanted = len(tail) + cursor.want
        got = self.file.pread(wanted, cursor.at - len(tail))
        self.more = len(got) == wanted
        self.read_bytes = len(got)
        self.seen_to = cursor.at - len(tail) + len(got)
        if stands and cursor.in_hole and self.file.pread(1, cursor.start) not in {b"", NUL}:
            cursor.rewind()
            self.more = True
            return None
        if not (stands and got.startswith(tail)):
            return Truncated(cursor.start)
        piece = cursor.feed(got)
        if piece is None and self.ending and not self.more:
            piece = cursor.finish(got)
        elif piece is not None and (piece.skipped == "hole" or self.ending):
            self.more = True  # what stands behind it was read, and not used
        if piece is not None and len(self._head) < FINGERPRINT_BYTES > piece.start:
            self._head = self.file.pread(min(FINGERPRINT_BYTES, piece.end), 0)
        return piece

    @property
    def torn(self) -> bool:
        """Return whether the file was seen to end with a line without its end."""
        return self.seen_to > self.cursor.start

    @property
    def behind(self) -> bool:
        """Return whether there is more in the file than was seen; asks the file."""
        return self.more or self.file.size() > self.seen_to

    def chunk(self, piece: Piece) -> Chunk:
        """Return the ledger entry for the piece that was just read."""
        lines = len(piece.lines) + (piece.skipped_to > piece.start and piece.skipped != "hole")
        return Chunk(self.ledger, piece.start, piece.end, self.cursor.tail, lines)

    def head(self, start: int, length: int) -> bytes:
        """Return the beginning of a line that was passed over."""
        return self.file.pread(length, start)

    def checkpoint(self) -> Checkpoint:
        """Return how far this generation is settled, and the proof of it. From either thread."""
        base, (watermark, tail) = self._base, self.ledger.mark
        base = self._advanced(base, watermark, tail)
        if (base.path, base.gone_at) != (self.path, self.gone_at):
            base = replace(base, path=self.path, gone_at=self.gone_at)
        self._base = base
        return base

    def reached(self) -> Checkpoint:
        """Return what ``checkpoint`` will be once all that was read is settled."""
        settled, cursor = self.checkpoint(), self.cursor
        if cursor.at > cursor.start:  # within an oversize line: the tail is not of the position
            return settled
        return self._advanced(settled, cursor.start, cursor.tail)

    def _advanced(self, base: Checkpoint, offset: int, tail: bytes) -> Checkpoint:
        if offset <= base.watermark:
            return base
        anchor, fingerprint = Anchor(offset, digest(tail)), base.fingerprint
        if offset <= ANCHOR_BYTES:
            fingerprint = anchor.digest  # of the same bytes
        elif base.watermark < FINGERPRINT_BYTES:
            fingerprint = digest(self._head[: fingerprint_range(offset).end])
        return advance(base, anchor, fingerprint)


class Followed:
    """A file we know: as last seen, as last settled, and its reader while it is open."""

    __slots__ = ("birth", "checkpoint", "harvester", "seen")

    def __init__(self, birth: Birth, checkpoint: Checkpoint) -> None:
        self.birth = birth  # of this very file; a copy's checkpoint carries its original's
        self.checkpoint = checkpoint
        self.seen: Seen | None = None  # None: not met yet, or gone
        self.harvester: Harvester | None = None

    def latest(self) -> Checkpoint:
        """Return how far it is settled by now."""
        if self.harvester is not None:
            self.checkpoint = self.harvester.checkpoint()
        return self.checkpoint
