"""A turn in the worker thread: pick files, read chunks of them, make batches, seal what is due.

A turn reads a few chunks, of one file or of many: to hand over to the other thread costs as much as
dozens of lines.
"""

from typing import NamedTuple

from agent.chunk import Chunker, Sealed
from agent.core.batch import Pace
from agent.core.ledger import Chunk
from agent.core.lines import Piece
from agent.core.quota import Room
from agent.core.tracing import ChunkSpan
from agent.harvester import Followed, Harvester, Truncated
from agent.registry import Changes
from agent.sources import Sources
from agent.spooler import Replayed

IDLE_S = 60.0
"""How long to sleep when nothing is open, ready or hinted; any hint ends it."""

REST_MAX_S = 0.05
"""So long a file may grow unread, and the kernel's queue of hints, which has 16,384 of them."""

BYTES_A_TURN = 1 << 20
"""Some ten milliseconds of reading: so long lines that others write meanwhile may wait."""
BYTES_ALONE = 4 * BYTES_A_TURN
"""The same while nobody writes any."""
READ_BYTES = BYTES_A_TURN // 64
"""What a read counts for besides the bytes that it found."""


class Orders(NamedTuple):
    """What the loop asks of one turn.

    Args:
        room: How much may be read.
        direct: For the events and for the dead letters: whether lines go straight to Kafka.
        replayed: What is to be replayed, likewise.
    """

    room: Room
    direct: tuple[bool, bool]
    replayed: tuple[list[Replayed], list[Replayed]]


class Turn(NamedTuple):
    """What one turn in the worker made: chunks, in the order in which they were read, and whose.

    ``wait_s`` is 0.0 while there is more to read; what is read within ``rest_s`` would not leave
    earlier.
    """

    chunks: list[tuple[Harvester, Chunk]]
    sealed: Sealed
    changes: Changes
    wait_s: float
    rest_s: float


class Worker:
    """What happens in the worker thread: pick files, read a chunk of each, seal what is due."""

    def __init__(self, sources: Sources, chunker: Chunker, pace: Pace) -> None:
        self.sources = sources
        self.chunker = chunker
        self.pace = pace
        self.streams = chunker.events, chunker.dead_letters

    def turn(self, orders: Orders) -> Turn:
        """Take what is replayed; read of the files that are ready; seal what is due."""
        sources, chunker, now_s = self.sources, self.chunker, self.chunker.now_s()
        for stream, direct, rows in zip(self.streams, orders.direct, orders.replayed, strict=True):
            stream.steer(direct=direct)
            if rows:
                chunker.refill(stream, rows)
        chunks = self._chunks(orders.room)
        ready_in_s = IDLE_S if orders.room.full else sources.wait_s(IDLE_S)
        sealed = chunker.seal_due(now_s, quiet=ready_in_s > 0 and not any(orders.replayed))
        changes = sources.registry.take()
        wait_s = min(chunker.due_in_s(IDLE_S), ready_in_s)
        rest_s = min(chunker.rest_in_s(), wait_s, REST_MAX_S)
        return Turn(chunks, sealed, changes, wait_s, rest_s)

    def _chunks(self, room: Room) -> list[tuple[Harvester, Chunk]]:
        """Read one file after the other, as long as there is ``room`` and for no long time."""
        chunks: list[tuple[Harvester, Chunk]] = []
        readers: set[Harvester] = set()
        read_bytes = 0
        followed = None if room.full else self.sources.next()
        while followed is not None and (reader := followed.harvester) is not None:
            span = self.chunker.traced()
            piece = self.sources.read(followed)
            if isinstance(piece, Truncated) and reader in readers:
                # The ledger must know of all that was read before its generation ends.
                self.sources.again(followed)
                break
            chunk = self._chunk(followed, reader, piece, span)
            if chunk is not None:
                chunks.append((reader, chunk))
                room = room.without(chunk)
            readers.add(reader)
            read_bytes += reader.read_bytes + READ_BYTES
            long = read_bytes >= (BYTES_A_TURN if self.sources.hinted else BYTES_ALONE)
            followed = None if room.full or long else self.sources.another()
        if readers:
            self.pace.behind = any(reader.more for reader in readers)
        return chunks

    def _chunk(
        self,
        followed: Followed,
        reader: Harvester,
        piece: Piece | Truncated | None,
        span: ChunkSpan | None,
    ) -> Chunk | None:
        """Make records of what ``reader`` read, if that were lines, and give it another turn."""
        sources, client, chunk = self.sources, reader.base.client, None
        if isinstance(piece, Truncated):
            sources.truncated(followed)
        elif piece is not None:
            chunk = self.chunker.fill(reader, piece, span)
            sources.clients.read(client, chunk.lines)
        made = (0, 0) if chunk is None else (chunk.rejected, chunk.lines)
        sources.turns.charge(followed, reader.read_bytes, *made)
        if reader.more:
            sources.again(followed)
        return chunk
