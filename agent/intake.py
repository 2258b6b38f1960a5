"""The reading side: one turn after another in the worker thread, as long as there is room.

The worker thread owns sources, cursors and open batches; the event loop owns ledgers, outlets and
checkpoints. A turn is where they meet: the loop asks for one, takes over what it made, and sends
the sealed batches off while the worker is already in the next.
"""

import asyncio
from collections.abc import Callable, Container
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

from agent.checkpoints import Checkpointer
from agent.chunk import Chunker, Sealed
from agent.clock import wait_any, wait_event
from agent.core.discovery import FileKey, Scan
from agent.core.ledger import Chunk
from agent.core.quota import InFlight
from agent.harvester import Harvester, Truncated
from agent.registry import Changes
from agent.sink import Outlet
from agent.sources import Sources

IDLE_S = 60.0
"""How long to sleep when nothing is open, ready or hinted; any hint ends it."""

ROOM_S = 0.05
"""Between two looks at whether a file may be closed, so that another can be opened."""

T = TypeVar("T")


class Turn(NamedTuple):
    """What one turn in the worker made. ``wait_s`` is 0.0 while there is more to read."""

    harvester: Harvester | None
    chunk: Chunk | None
    sealed: Sealed
    changes: Changes
    wait_s: float


class Worker:
    """What happens in the worker thread: pick a file, read a chunk of it, seal what is due."""

    def __init__(self, sources: Sources, chunker: Chunker) -> None:
        self.sources = sources
        self.chunker = chunker

    def turn(self) -> Turn:
        """Read a chunk of the next file that is ready; without one, only seal what is due."""
        sources, chunker = self.sources, self.chunker
        chunk: Chunk | None = None
        harvester: Harvester | None = None
        followed = sources.next()
        if followed is not None and followed.harvester is not None:
            harvester = followed.harvester
            piece = sources.read(followed)
            if isinstance(piece, Truncated):
                sources.truncated(followed)
            elif piece is not None:
                chunk = chunker.fill(harvester, piece)
            if harvester.more:
                sources.again(followed)
        sealed = chunker.seal_due()
        changes = sources.registry.take()
        blocked_s = ROOM_S if sources.waiting else 0.0
        wait_s = chunker.due_in_s(IDLE_S) if sources.idle else blocked_s
        return Turn(harvester, chunk, sealed, changes, wait_s)


class Intake:
    """Read until told to stop. Lifetime: ``run`` until ``stop``, then ``finish`` once.

    Args:
        executor: One thread; everything of ``worker`` happens there.
    """

    def __init__(
        self,
        worker: Worker,
        executor: Executor,
        *,
        events: Outlet,
        dead_letters: Outlet,
        checkpointer: Checkpointer,
        in_flight: InFlight,
    ) -> None:
        self._worker = worker
        self._executor = executor
        self._events = events
        self._dead_letters = dead_letters
        self._checkpointer = checkpointer
        self._in_flight = in_flight
        self._stopping = asyncio.Event()
        self._hinted = asyncio.Event()
        self.room = asyncio.Event()
        self._turning = asyncio.Lock()

    def hint(self, path: str | None) -> None:
        """Take a hint that ``path``, or anything, was written to.

        Not while stopping: with enough writers, one more hint would always have come, and
        ``finish`` would have no end. The scan before it knows of everything until then.
        """
        if self._stopping.is_set():
            return
        self._worker.sources.hint(path)
        self._hinted.set()

    @property
    def known(self) -> Container[FileKey]:
        """Return the files that do not count against ``source.files_max`` any more."""
        return self._worker.sources.known

    async def take_in(self, scan: Scan) -> None:
        """Hand a scan to the worker; the files it found are read from the next turn on."""
        async with self._turning:
            await self._in_worker(lambda: self._worker.sources.apply(scan))
        self._hinted.set()

    async def run(self) -> None:
        """Read whatever is ready, as far as ``in_flight`` has room, until ``stop``.

        Not to be cancelled while anybody goes on afterwards: a turn whose result is not taken
        over has read lines that no ledger knows.
        """
        await wait_any(self._events.described, self._stopping)
        while not self._stopping.is_set():
            self._hinted.clear()
            if await self._full():
                continue
            turn = await self._turn()
            if turn.wait_s > 0:
                await wait_event(self._hinted, turn.wait_s)

    def stop(self) -> None:
        """Let ``run`` return after the turn it is in."""
        self._stopping.set()
        self._hinted.set()
        self.room.set()

    async def finish(self) -> None:
        """Read to where every known file ends by now, and seal what is open."""
        await self._in_worker(self._worker.sources.limit)
        while self._events.topic is not None and not self._worker.sources.idle:
            if await self._full():
                continue
            turn = await self._turn()
            if turn.wait_s > 0:  # for a descriptor; what is open must not wait for company
                await self.seal()
                await asyncio.sleep(turn.wait_s)
        await self.seal()

    async def seal(self) -> None:
        """Send off every open batch as it is."""
        async with self._turning:
            sealed = await self._in_worker(self._worker.chunker.seal_all)
        self._admit(sealed)

    async def _full(self) -> bool:
        """Return whether there was no room to read, after waiting until there is again."""
        self.room.clear()
        if not self._in_flight.full:
            return False
        await self.seal()  # what takes up the room must not wait for company
        self._checkpointer.hurry()
        await self.room.wait()
        return True

    async def _turn(self) -> Turn:
        async with self._turning:
            turn = await self._in_worker(self._worker.turn)
            self._checkpointer.put(turn.changes.rows, turn.changes.forgotten)
            if turn.chunk is not None:
                assert turn.harvester is not None
                self._checkpointer.reserve(turn.harvester, turn.chunk)
            if turn.changes.begun:
                await self._checkpointer.flush()
        self._admit(turn.sealed)
        return turn

    def _admit(self, sealed: Sealed) -> None:
        for batch in sealed.events:
            self._events.admit(batch)
        for batch in sealed.dead_letters:
            self._dead_letters.admit(batch)

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
