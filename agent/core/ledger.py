"""Which bytes of a file are safe to forget. Pure bookkeeping, one ``Ledger`` per generation.

The entry is a chunk, not a line: a chunk counts down the batches that hold lines of it, so
the cost is one step per partition and chunk, and ``Chunk.tail`` gives an anchor wherever
the watermark can stop.
"""

from collections import deque

from agent.core.places import Life, Place


class Chunk:
    """Lines ``[start, end)`` of one generation, read at once.

    ``open_batches`` counts the batches, of either sink, that hold a line of it and whose
    fate is unknown; at zero every byte of the chunk is settled.
    """

    __slots__ = ("end", "ledger", "lines", "open_batches", "rejected", "start", "tail")

    def __init__(self, ledger: "Ledger", start: int, end: int, tail: bytes, lines: int) -> None:
        self.ledger = ledger
        self.start = start
        self.end = end
        self.tail = tail
        self.lines = lines
        self.open_batches = 0
        self.rejected = 0  # of its lines

    @property
    def bytes(self) -> int:
        """Return what it weighs against ``in_flight``."""
        return self.end - self.start

    @property
    def places(self) -> tuple[Place, ...]:
        """Return where its lines come from; nothing where nobody asks for receipts of them."""
        life = self.ledger.life
        return () if life is None else (Place(*life, self.start, self.end),)


class Row(Chunk):
    """One row of the spool, which is a source like a file: its offsets are numbers of records.

    ``lines_of`` is where the lines of its records come from.
    """

    __slots__ = ("lines_of", "raw_bytes")

    def __init__(self, ledger: "Ledger", start: int, records: int, raw_bytes: int) -> None:
        super().__init__(ledger, start, start + records, b"", records)
        self.raw_bytes = raw_bytes
        self.lines_of: tuple[Place, ...] = ()

    @property
    def bytes(self) -> int:
        return self.raw_bytes

    @property
    def places(self) -> tuple[Place, ...]:
        return self.lines_of


class Ledger:
    """Turn acknowledgements in any order into a watermark that only moves forward.

    Bytes below ``watermark`` were delivered, or are durably a dead letter; nothing at or
    above it is promised (invariant 1). A chunk that is never settled holds the watermark
    still, and that is the point: we would rather send twice than skip.
    """

    __slots__ = ("_next", "_open", "_passed", "life", "mark")

    def __init__(self, watermark: int, tail: bytes, life: Life | None = None) -> None:
        self.life = life
        """Of which file it keeps the books, None where it is none's."""
        self.mark = watermark, tail
        """The watermark and the bytes before it, of which its anchor is made: one object, so that
        another thread never sees one without the other."""
        self._next = watermark  # where the next chunk must begin
        self._open: deque[Chunk] | None = None  # in file order; None while idle: it costs 600 B
        self._passed: list[Chunk] = []  # below the watermark, and not stored yet

    def reserve(self, chunk: Chunk) -> None:
        """Note that ``chunk`` is in flight. Chunks must tile the file without a gap."""
        assert chunk.start == self._next, (
            f"gap or overlap: expected {self._next}, got {chunk.start}"
        )
        assert chunk.end > chunk.start, f"empty chunk at {chunk.start}"
        if self._open is None:
            self._open = deque()
        self._open.append(chunk)
        self._next = chunk.end
        self._advance()

    def settle(self, chunk: Chunk) -> None:
        """Note that one of the batches that hold lines of ``chunk`` is settled."""
        assert chunk.open_batches > 0, f"chunk at {chunk.start} settled twice"
        chunk.open_batches -= 1
        self._advance()

    def _advance(self) -> None:
        while self._open and not self._open[0].open_batches:
            settled = self._open.popleft()
            self.mark = settled.end, settled.tail
            self._passed.append(settled)
        if not self._open:
            self._open = None

    @property
    def watermark(self) -> int:
        return self.mark[0]

    def take_passed(self) -> list[Chunk]:
        """Return the chunks that the watermark has passed since the last call."""
        passed, self._passed = self._passed, []
        return passed

    @property
    def in_flight_bytes(self) -> int:
        """Return the bytes read whose fate is unknown."""
        return self._next - self.watermark
