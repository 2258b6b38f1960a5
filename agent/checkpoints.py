"""Settle what was delivered, and put the watermarks on disk. Lives on the event loop.

A chunk counts as in flight from being read until a checkpoint behind it is committed, so what a
crash can send twice is bounded by ``in_flight`` and by nothing else.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Protocol

from msgspec.structs import replace

from agent.clock import Clock, wait_event
from agent.core.identity import Checkpoint
from agent.core.ledger import Chunk, Ledger
from agent.core.quota import InFlight
from agent.telemetry import Metrics

INTERVAL_S = 0.05
"""Between two commits while there is room to read on; without room the next one is at once."""


class Source(Protocol):
    """Who a ledger belongs to. A harvester is one."""

    def checkpoint(self) -> Checkpoint: ...


class Checkpointer:
    """Keep checkpoints as close behind the watermarks as one writer thread allows.

    Lifetime: ``run`` until cancelled, then ``flush`` once nothing more will be settled. A commit
    that fails ends ``run`` with ``StoreError``: without checkpoints we must not go on reading.

    Args:
        save: Commit rows and delete others; called in ``executor``, one call at a time.
        committed: Called on the loop after each commit: there may be room again.
    """

    def __init__(
        self,
        save: Callable[[list[Checkpoint], list[Checkpoint]], None],
        executor: Executor,
        in_flight: InFlight,
        *,
        committed: Callable[[], None],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._save = save
        self._executor = executor
        self._in_flight = in_flight
        self._committed = committed
        self._clock = clock
        self._metrics = metrics
        self._sources: dict[Ledger, Source] = {}
        self._others: dict[Ledger, Callable[[], None]] = {}
        self._moved: set[Ledger] = set()
        self._rows: dict[tuple[str, int], Checkpoint] = {}
        self._forgotten: list[Checkpoint] = []
        self._dirty = asyncio.Event()
        self._hurry = asyncio.Event()

    def reserve(self, source: Source, chunk: Chunk) -> None:
        """Take a chunk that was read. All its batches are known to it."""
        self._in_flight.add(chunk)
        self._sources[chunk.ledger] = source
        chunk.ledger.reserve(chunk)
        if not chunk.open_batches:  # nothing but blank lines: settled at once
            self._note(chunk.ledger)

    def settle(self, chunks: Iterable[Chunk]) -> None:
        """Note that the fate of a batch with lines of ``chunks`` is known (invariant 1)."""
        for chunk in chunks:
            chunk.ledger.settle(chunk)
            self._note(chunk.ledger)

    def tell(self, ledger: Ledger, moved: Callable[[], None]) -> None:
        """Let ``moved`` hear when chunks of ``ledger``, which is no file's, are settled."""
        self._others[ledger] = moved

    def put(self, rows: Iterable[Checkpoint], forgotten: Iterable[Checkpoint] = ()) -> None:
        """Take rows that did not come from an acknowledgement, and those to be deleted."""
        for row in rows:
            newer = self._rows.get((row.source_id, row.generation), row)
            if newer.watermark > row.watermark:  # an acknowledgement came between
                row = replace(newer, path=row.path, gone_at=row.gone_at)  # noqa: PLW2901
            self._rows[row.source_id, row.generation] = row
            self._dirty.set()
        for row in forgotten:
            self._forgotten.append(row)
            self._dirty.set()

    async def run(self) -> None:
        while True:
            await self._dirty.wait()
            await self.flush()
            self._hurry.clear()
            if not self._in_flight.full:
                await wait_event(self._hurry, INTERVAL_S)

    def hurry(self) -> None:
        """Say that reading waits for room: commit as soon as there is something to commit."""
        self._hurry.set()

    async def flush(self) -> None:
        """Commit everything that has moved, in one transaction. Raises ``StoreError``."""
        self._dirty.clear()
        rows, forgotten, passed = self.collect()
        if not rows and not forgotten:
            return
        started_s = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        saving = loop.run_in_executor(self._executor, self._save, rows, forgotten)
        await asyncio.shield(saving)  # cancelled, a commit still in its queue would be lost
        self._metrics.checkpoint_commits.inc()
        self._metrics.checkpoint_seconds.observe(self._clock.monotonic() - started_s)
        self.stored(passed)

    def collect(self) -> tuple[list[Checkpoint], list[Checkpoint], list[Chunk]]:
        """Return the rows to store, those to delete, and the chunks that are then done."""
        moved, self._moved = self._moved, set()
        rows, self._rows = self._rows, {}
        forgotten, self._forgotten = self._forgotten, []
        passed: list[Chunk] = []
        for ledger in moved:
            row = self._sources[ledger].checkpoint()
            rows[row.source_id, row.generation] = row
            passed += ledger.take_passed()
            if not ledger.in_flight_bytes:
                del self._sources[ledger]
        return [*rows.values()], forgotten, passed

    def stored(self, passed: Iterable[Chunk]) -> None:
        """Note that a commit is on disk: ``passed`` cannot be sent again by a crash any more."""
        for chunk in passed:
            self._in_flight.remove(chunk)
        self._committed()

    def _note(self, ledger: Ledger) -> None:
        moved = self._others.get(ledger)
        if moved is not None:
            moved()
            return
        self._moved.add(ledger)
        self._dirty.set()
