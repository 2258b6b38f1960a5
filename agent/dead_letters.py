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

    Lifetime: ``run`` until cancelled. Every acknowledged batch of the outlet goes through
    ``acked``.

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
        self._moving: dict[Batch, Stored] = {}
        self._arrived: list[Stored] = []
        self._moved_to = 0  # the last row that was given to the outlet

    def acked(self, batch: Batch) -> None:
        """Take an acknowledged batch: settle it, or take it off the disk."""
        stored = self._moving.pop(batch, None)
        if stored is None:
            self._settle(batch)
        else:
            self._arrived.append(stored)

    def replaced(self, batch: Batch, by: Batch) -> None:
        """Note that the topic refused ``batch`` and that ``by`` goes in its place."""
        stored = self._moving.pop(batch, None)
        if stored is not None:
            self._moving[by] = stored

    async def run(self) -> None:
        while True:
            await self._look()
            self._metrics.dead_letters_stored.set(self._spool.records)
            self._metrics.dead_letters_stored_bytes.set(self._spool.bytes)
            await self._clock.sleep(LOOK_S)

    async def _look(self) -> None:
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            await self._in_executor(lambda: self._spool.drop(arrived))
        if self._outlet.problem is None:
            await self._move()
        elif self._spool.room():
            await self._put_by(self._outlet.withdraw())

    async def _put_by(self, batches: list[Batch]) -> None:
        fresh = [batch for batch in batches if self._moving.pop(batch, None) is None]
        self._moved_to = 0  # what was on its way is on disk still: begin again with the oldest
        if not fresh:
            return
        await self._in_executor(lambda: self._spool.put(fresh))
        for batch in fresh:
            self._settle(batch)
        event(log, logging.WARNING, "dead_letters.put_by", reason=self._outlet.problem,
              records=sum(b.count for b in fresh), stored_records=self._spool.records)  # fmt: skip

    async def _move(self) -> None:
        free = MOVED_AT_ONCE - len(self._moving)
        if not self._spool.records or free <= 0:
            return
        after = self._moved_to
        for stored in await self._in_executor(lambda: self._spool.oldest(after, free)):
            self._moving[stored.batch] = stored
            self._moved_to = stored.seq
            self._outlet.admit(stored.batch)

    async def _in_executor(self, work: Callable[[], T]) -> T:
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._executor, work)
        )
