"""Keeps dead letters from stopping anything: put by on disk while their topic will not have them.

    rejected or refused -> admitted -> acknowledged, or put by and settled -> moved later

A topic that is missing, denied or away would otherwise hold every watermark that has a bad line
below it (invariants 1 and 6). A full spool does: then reading stops, and nothing is dropped.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from agent.clock import Clock
from agent.core.batch import Batch
from agent.core.ledger import Chunk, Ledger
from agent.sink import Outlet
from agent.spool import Spool, Stored
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at the outlet."""
MOVED_AT_ONCE = 16
"""Batches on their way from the spool to the topic."""

T = TypeVar("T")


class DeadLetters:
    """Moves dead letters between their outlet and the spool.

    Lifetime: ``run`` until cancelled; to stop in order, ``finish`` while it runs. Every
    acknowledged batch of the outlet goes through ``acked``.

    Args:
        settle: Called for each batch once it is on disk.
        executor: One thread; everything of ``spool`` happens there.
    """

    def __init__(
        self,
        outlet: Outlet,
        spool: Spool,
        executor: Executor,
        *,
        settle: Callable[[Batch], None],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._outlet = outlet
        self._spool = spool
        self._executor = executor
        self._settle = settle
        self._clock = clock
        self._metrics = metrics
        # A row on its way is a chunk: however it is cut or replaced, what is made of it holds that.
        self._moving: dict[Chunk, Stored] = {}
        self._arrived: list[Stored] = []
        self._moved_to = 0  # the last row that was given to the outlet
        self._said = False  # that its topic will not have them, since it last would
        self._finishing = False
        self._looking = asyncio.Lock()

    def acked(self, batch: Batch) -> None:
        """Take an acknowledged batch: settle it, or take it off the disk."""
        row = self._row_of(batch)
        if row is None:
            self._settle(batch)
            return
        batch.settle()
        if not row.open_batches:
            self._arrived.append(self._moving.pop(row))

    async def finish(self) -> None:
        """Move nothing more, and wait until each one is acknowledged or on disk."""
        self._finishing = True
        while True:
            await self._outlet.empty.wait()
            async with self._looking:  # what was withdrawn may not be on disk yet
                if self._outlet.empty.is_set():
                    return

    async def flush(self) -> None:
        """Take off the disk what has arrived, or the next life would send it again."""
        arrived, self._arrived = self._arrived, []
        if arrived:
            await self._in_executor(lambda: self._spool.drop(arrived))

    async def run(self) -> None:
        while True:
            async with self._looking:
                await self._look()
            self._metrics.dead_letters_stored.set(self._spool.records)
            self._metrics.dead_letters_stored_bytes.set(self._spool.bytes)
            await self._clock.sleep(LOOK_S)

    async def _look(self) -> None:
        await self.flush()
        if self._outlet.problem is None:
            self._said = False
            await self._move()
        elif self._spool.room():
            await self._put_by(self._outlet.withdraw())

    async def _put_by(self, batches: list[Batch]) -> None:
        fresh = [batch for batch in batches if self._row_of(batch) is None]
        if len(fresh) < len(batches):  # what was on its way is on disk still: begin again with that
            self._moving.clear()
            self._moved_to = 0
        if not fresh:
            return
        await self._in_executor(lambda: self._spool.put(fresh))
        for batch in fresh:
            self._settle(batch)
        if not self._said:
            self._said = True
            event(log, logging.WARNING, "dead_letters.put_by", reason=self._outlet.problem,
                  stored_records=self._spool.records)  # fmt: skip

    async def _move(self) -> None:
        free = MOVED_AT_ONCE - len(self._moving)
        if self._finishing or not self._spool.records or free <= 0:
            return
        after = self._moved_to
        for stored in await self._in_executor(lambda: self._spool.oldest(after, free)):
            self._moving[_as_chunk(stored.batch)] = stored
            self._moved_to = stored.seq
            self._outlet.admit(stored.batch)

    def _row_of(self, batch: Batch) -> Chunk | None:
        return next((chunk for chunk in batch.chunks if chunk in self._moving), None)

    async def _in_executor(self, work: Callable[[], T]) -> T:
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._executor, work)
        )


def _as_chunk(batch: Batch) -> Chunk:
    """Return what counts down the batches that ``batch`` may be cut into."""
    whole = Chunk(Ledger(0, b""), 0, 1, b"", batch.count)
    whole.open_batches = 1
    whole.ledger.reserve(whole)
    batch.chunks = [whole]
    return whole
