"""The reading side: one turn after another in the worker thread, as long as there is room.

The worker thread owns sources, cursors and open batches; the event loop owns ledgers, outlets and
checkpoints. A turn is where they meet: the loop asks for one, takes over what it made, and sends
the sealed batches off while the worker is already in the next.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from agent.checkpoints import Checkpointer
from agent.chunk import Sealed
from agent.clock import wait_event
from agent.core.discovery import Scan, Sightings
from agent.core.quota import NO_ROOM, InFlight
from agent.core.seam import Mode
from agent.errors import AgentError
from agent.registry import Changes
from agent.sources import Sources
from agent.spooler import Spooler
from agent.worker import IDLE_S, REST_MAX_S, Orders, Turn, Worker

FINISH_LOOK_S = 0.05
"""How long a stop waits at a time for room, or for a descriptor."""

T = TypeVar("T")


class InWorker(Protocol):
    """Run ``work`` in the one thread that owns the ``Worker``."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class Intake:
    """Read until told to stop. Lifetime: ``run`` until ``stop``, then ``finish`` once.

    Args:
        in_worker: Everything of ``worker`` happens there.
        ways: Of the events and of the dead letters.
    """

    def __init__(
        self,
        worker: Worker,
        in_worker: InWorker,
        *,
        ways: tuple[Spooler, Spooler],
        checkpointer: Checkpointer,
        in_flight: InFlight,
    ) -> None:
        self._worker = worker
        self._in_worker = in_worker
        self._ways = ways
        self._checkpointer = checkpointer
        self._in_flight = in_flight
        self._woken = asyncio.Event()
        self._stopping = False
        self._starved = False  # the last turn had no room to read
        self._turning = asyncio.Lock()

    @property
    def known(self) -> Sightings:
        return self._worker.sources.known

    @property
    def remembered(self) -> Container[int]:
        """Return the inodes of what is followed, or was and may come back."""
        return self._worker.sources.registry.inodes

    @property
    def rest_s(self) -> float:
        """Return how far apart hints need to come: nothing would leave earlier."""
        return min(self._worker.pace.rest_s, REST_MAX_S)

    def hint(self, path: str | None) -> None:
        """Take a hint that ``path``, or anything, was written to.

        Not while stopping: with enough writers, one more hint would always have come, and
        ``finish`` would have no end. The scan before it knows of everything until then.
        """
        if self._stopping:
            return
        self._worker.sources.hint(path)
        self._woken.set()

    def wake(self) -> None:
        """Say that there may be something to replay, or another way for lines to go."""
        self._woken.set()

    def room(self) -> None:
        """Say that there may be room again."""
        if self._starved:
            self._woken.set()

    async def look(self, at: Callable[[Sources], T]) -> T:
        """Return what ``at`` finds between two turns; called in the worker."""
        async with self._turning:
            return await self._in_worker(lambda: at(self._worker.sources))

    async def take_in(self, scan: Scan) -> None:
        """Hand a scan's result to the worker."""
        acknowledged = all(way.mode is Mode.LIVE and not way.spooled_records for way in self._ways)
        async with self._turning:
            await self._in_worker(
                lambda: self._worker.sources.apply(scan, acknowledged=acknowledged)
            )
        self._woken.set()

    async def change(self, work: Callable[[Sources], T]) -> T:
        """Let an operator do something to the sources between two turns.

        A generation that begins with it is on disk when this returns. Raises ``AgentError`` while
        the agent stops.
        """
        async with self._turning:
            if self._stopping:
                raise AgentError("the agent is stopping")
            try:
                return await self._in_worker(lambda: work(self._worker.sources))
            finally:
                await self._take_over(await self._in_worker(self._worker.sources.registry.take))
                self._woken.set()

    async def run(self) -> None:
        """Read whatever is ready, as far as there is room for it, until ``stop``.

        Not to be cancelled while anybody goes on afterwards: a turn whose result is not taken
        over has read lines that no ledger knows.
        """
        while not self._stopping:
            await self._once()

    def stop(self) -> None:
        """Let ``run`` return after the turn it is in."""
        self._stopping = True
        self._woken.set()

    async def finish(self) -> None:
        """Read to where every known file ends by now, replay what is spooled as long as Kafka takes
        it, and seal what is open."""
        await self._in_worker(self._worker.sources.limit)
        while self._begun and not (self._worker.sources.idle and not self._replaying):
            turn = await self._once(FINISH_LOOK_S)
            if turn is not None and turn.wait_s > 0:  # what is open must not wait for company
                await self.seal()
        await self.seal()

    async def seal(self) -> None:
        """Send off every open batch as it is."""
        async with self.quiet():
            pass

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Send off every open batch as it is; none is opened until the end of the block."""
        async with self._turning:
            self._admit(await self._in_worker(self._worker.chunker.seal_all))
            yield

    @property
    def _begun(self) -> bool:
        """Return whether lines have a way to go: nobody knows a topic's partitions before.

        Dead letters need not go, but it must be known that they do not: the first ones would go
        through the spool, and all others of a backlog behind them.
        """
        events, dead_letters = self._ways
        if events.outlet.topic is None and events.mode is not Mode.SPOOLING:
            return False
        reason = dead_letters.outlet.delivery.reason
        away = reason is not None or dead_letters.mode is Mode.SPOOLING
        return away or dead_letters.outlet.topic is not None

    @property
    def _replaying(self) -> bool:
        return any(way.mode is Mode.REPLAYING for way in self._ways)

    async def turn(self) -> Turn | None:
        """Do one turn if anything may be read, and return it; else send off what is open."""
        replayed = await self._ways[0].replay(), await self._ways[1].replay()
        direct = self._direct(0), self._direct(1)
        read = self._may_read(direct)
        self._starved = not read
        if not read and not any(replayed):
            await self.seal()  # what takes up the room must not wait for company
            self._checkpointer.hurry()
            return None
        room = self._in_flight.room if read else NO_ROOM
        turn = await self._turn(Orders(room, direct, replayed))
        return turn._replace(wait_s=0.0) if any(replayed) else turn  # there may be more of it

    async def _once(self, wait_max_s: float = IDLE_S) -> Turn | None:
        """Do one turn; wait for room if there is none, or until there is more to read."""
        self._woken.clear()
        turn = await self.turn()
        wait_s = wait_max_s if turn is None else min(turn.wait_s, wait_max_s)
        if turn is not None and turn.rest_s > 0 and not self._stopping:
            await asyncio.sleep(turn.rest_s)
            wait_s -= turn.rest_s
        if wait_s > 0:
            await wait_event(self._woken, wait_s)
        return turn

    def _direct(self, number: int) -> bool:
        """Return whether lines may go straight to Kafka: nothing older is on another way."""
        way, stream = self._ways[number], self._worker.streams[number]
        return way.direct and (stream.direct or not stream.tail.open)

    def _may_read(self, direct: tuple[bool, bool]) -> bool:
        if self._in_flight.full or not self._begun:
            return False
        # Live again, but for the last lines of the tail: they go first.
        at_seam = any(
            way.direct and not straight for way, straight in zip(self._ways, direct, strict=True)
        )
        return not at_seam and all(way.may_append for way in self._ways)

    async def _turn(self, orders: Orders) -> Turn:
        async with self._turning:
            turn = await self._in_worker(lambda: self._worker.turn(orders))
            for way, rows in zip(self._ways, orders.replayed, strict=True):
                way.reserve(rows)
            for harvester, chunk in turn.chunks:
                self._checkpointer.reserve(harvester, chunk)
            await self._take_over(turn.changes)
        self._admit(turn.sealed)
        return turn

    async def _take_over(self, changes: Changes) -> None:
        self._checkpointer.put(changes.rows, changes.forgotten)
        if changes.begun:
            await self._checkpointer.flush()

    def _admit(self, sealed: Sealed) -> None:
        events, dead_letters = self._ways
        if sealed.events:
            events.admit(*sealed.events)
        if sealed.dead_letters:
            dead_letters.admit(*sealed.dead_letters)
