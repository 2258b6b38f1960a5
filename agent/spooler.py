"""The way of one topic's batches: to Kafka while it answers, else around through the spool.

    LIVE       admitted -> outlet -> acknowledged: settled
    SPOOLING   admitted -> committed at the spool's tail: settled
    REPLAYING  as SPOOLING; and head of the spool -> worker -> outlet -> acknowledged: deleted

When an outage begins, what the outlet holds is written down first: its fate is unknown, and its
producer may deliver it yet. It stays where it is, but stands for rows of the spool from then on,
and its lines are settled. A restart finds it at the head of the spool.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import NamedTuple, Protocol, TypeVar

from agent.clock import wait_event
from agent.core.auditing import Note, unheard
from agent.core.batch import Batch
from agent.core.ledger import Chunk, Ledger, Row
from agent.core.places import Place
from agent.core.quota import InFlight
from agent.core.receipts import Window
from agent.core.seam import Mode, Tail, mode_of
from agent.queue import Census, Limits, Queue
from agent.rows import Stored
from agent.sink import Outlet
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Between two looks at whether there is an outage."""
IDLE_LOOK_S = 5.0
"""The same while nothing is out, so that no outage can begin before something is admitted."""
FINISH_LOOK_S = 0.02
READ_RECORDS = 2000
"""Replayed in one turn of the worker, about as much as a chunk of a file holds."""

ALL_BYTES = 1 << 62
T = TypeVar("T")


class InStore(Protocol):
    """Run ``work`` where it may block. A cancelled caller does not stop it."""

    async def __call__(self, work: Callable[[], T]) -> T: ...


class Replayed(NamedTuple):
    """A row on its way to Kafka; without a batch it stands for a range that was lost."""

    row: Row
    batch: Batch | None


class SpoolRules(NamedTuple):
    """What steers one queue. ``tail_share``: see ``core.seam.Tail``."""

    enabled: bool
    limits: Limits
    drop_oldest: bool
    tail_share: float | None


class Spooler:
    """Carries batches to their outlet or into a queue, and back.

    Lifetime: ``run`` until cancelled; to stop in order, ``rest`` and ``finish`` while it runs; then
    ``flush``.

    Args:
        in_store: Do something with ``queue``, which blocks, in the one thread for that.
        in_flight: What was read from the spool, as what was read from files.
        settle: Called with the chunks of each batch that is on disk.
        changed: Called when there may be something to read again, from files or from here.
        stored: Called for each batch that is on disk, with where its lines come from and which
            records of the queue it is, the first and the last.
        note: Of the audit log.
    """

    def __init__(
        self,
        outlet: Outlet,
        queue: Queue,
        in_store: InStore,
        rules: SpoolRules,
        *,
        in_flight: InFlight,
        settle: Callable[[Iterable[Chunk]], None],
        changed: Callable[[], None],
        stored: Callable[[Iterable[Place], Window], None] = lambda _places, _window: None,
        note: Note = unheard,
        metrics: Metrics,
    ) -> None:
        self.outlet = outlet
        self.in_flight = in_flight
        self.full: str | None = None
        """Which limit of the spool is reached."""
        self.stored_batches = 0
        self.ledger = Ledger(queue.head, b"")
        self._queue = queue
        self._in_store = in_store
        self._rules = rules
        self._bytes_max = queue.bytes_max(rules.limits)
        self._settle = settle
        self._changed = changed
        self._stored = stored
        self._note = note
        self._metrics = metrics
        self._tail = Tail(rules.tail_share)
        self._incoming: list[Batch] = []
        self._head = queue.head  # what is before it is deleted
        self._end = queue.end  # of the tail, with what is just being committed
        self._read_to = queue.head  # the record after the last one that was read for replay
        self._finishing = False
        self._said = Mode.LIVE
        self._replayed = 0  # records, since a replay began
        self._woken = asyncio.Event()
        self._admitted = False  # to the outlet, since the last look
        self._resting = False  # the next look is as late as while nothing is out
        self._busy = asyncio.Lock()
        self._lost = 0  # as last counted
        self._count()

    # ---- what others ask

    @property
    def mode(self) -> Mode:
        outage = self._rules.enabled and self.outlet.delivery.outage is not None
        return mode_of(outage=outage, spooled=self.spooled_records > 0)

    @property
    def direct(self) -> bool:
        """Return whether what is sealed goes to Kafka, whose partitions must be known for that."""
        return self.mode is Mode.LIVE and self.outlet.topic is not None

    @property
    def spooled_records(self) -> int:
        """Return how many records are in the spool, or soon will be."""
        incoming = sum(batch.count for batch in self._incoming)
        return self._end - self._head + incoming

    @property
    def use(self) -> float:
        """Return how full the queue is, from 0 to 1, by its own limit."""
        return self._queue.bytes / max(1, self._bytes_max)

    @property
    def may_append(self) -> bool:
        """Return whether lines may be read, as far as this way of them is concerned."""
        return self.mode is not Mode.REPLAYING or self._finishing or self._tail.may_grow

    @property
    def read_to(self) -> int:
        """Return the number of the first record that is not on its way to Kafka."""
        return self._read_to

    def status(self) -> dict[str, object]:
        return {
            "mode": self.mode.value,
            "spooled_records": self.spooled_records,
            "spooled_bytes": self._queue.bytes,
            "spool_full": self.full,
        }

    async def census(self) -> Census:
        return await self._in_store(self._queue.census)

    async def page(self, start: int) -> list[Stored]:
        """Return rows from record ``start`` on, oldest first, to be looked at. None: no more."""
        async with self._busy:
            return await self._in_store(lambda: self._queue.oldest(start, READ_RECORDS))

    # ---- what others do

    async def purge(self) -> int:
        """Drop what is not on its way to Kafka, because an operator wants it; return how much."""
        async with self._busy:
            at = self._read_to
            dropped = await self._in_store(lambda: self._queue.drop_oldest(at, ALL_BYTES))
            self._count()
        self._woken.set()
        return dropped

    async def thin(
        self, start: int, sift: Callable[[list[Stored]], list[tuple[Stored, Batch | None]]]
    ) -> int | None:
        """Let ``sift`` say of some rows, from record ``start`` on, what is left of which.

        Those that are on their way to Kafka are not among them: it may have them already. Return
        where to go on; None: there is no more.
        """
        async with self._busy:  # until the disk has it nothing of it may be read for replay
            at = max(start, self._read_to)
            rows = await self._in_store(lambda: self._queue.oldest(at, READ_RECORDS))
            thinned = await asyncio.to_thread(sift, rows)
            if thinned:
                await self._in_store(lambda: self._queue.thin(thinned))
            self._count()
        self._woken.set()
        return rows[-1].seq + rows[-1].records if rows else None

    def admit(self, *batches: Batch) -> None:
        """Take sealed batches, of lines or of what was replayed, in order."""
        direct, through = self.direct, []
        for batch in batches:
            if self._stands_for_rows(batch) or (direct and batch.partition >= 0):
                through.append(batch)
            else:
                direct = False  # what is put by is older than what follows
                self._incoming.append(batch)
                self._woken.set()
        if through:
            self._admitted = True
            if self._resting:
                self._resting = False
                self._woken.set()
            self.outlet.admit(*through)

    async def replay(self) -> list[Replayed]:
        """Return the oldest rows that are not on their way yet, as far as there is room."""
        wanted = self.mode is Mode.REPLAYING and not self.in_flight.full
        if not wanted or self.outlet.topic is None or self._read_to == self._end:
            return []
        async with self._busy:
            at = self._read_to
            stored = await self._in_store(lambda: self._queue.oldest(at, READ_RECORDS))
        replayed = []
        for seq, records, batch in stored:
            row = Row(self.ledger, seq, records, batch.raw_bytes if batch is not None else 0)
            if batch is None:
                row.lines = 0
            replayed.append(Replayed(row, batch))
            self._read_to = row.end
        return replayed

    def reserve(self, replayed: Iterable[Replayed]) -> None:
        """Take rows that the worker made batches of."""
        for row, batch in replayed:
            self.in_flight.add(row)
            self.ledger.reserve(row)
            if batch is None:  # nothing of it will be acknowledged
                self.moved()

    def moved(self) -> None:
        """Hear that something which was read from the spool is settled."""
        self._woken.set()

    def rest(self) -> None:
        """Take in what is read whatever was replayed meanwhile: a stop is near."""
        self._finishing = True
        self._changed()

    async def finish(self) -> None:
        """Wait until each batch is acknowledged or on disk."""
        while True:
            async with self._busy:
                away = self.mode is Mode.SPOOLING and not self._unwritten()
                if not self._incoming and (self.outlet.empty.is_set() or away):
                    return
            await asyncio.sleep(FINISH_LOOK_S)

    async def run(self) -> None:
        while True:
            self._woken.clear()
            async with self._busy:
                await self._turn()
            # Not anew at each batch, between which nothing is out: looks are for what stays.
            self._resting, self._admitted = self._idle and not self._admitted, False
            await wait_event(self._woken, IDLE_LOOK_S if self._resting else LOOK_S)

    @property
    def _idle(self) -> bool:
        """Return whether all is well and nothing is on its way: whatever happens wakes ``run``."""
        well = self.outlet.problem is None and not self.outlet.delivery.queued
        return well and self._said is self.mode is Mode.LIVE

    async def flush(self) -> None:
        """Delete what has arrived, or the next life would send it again."""
        async with self._busy:
            await self._drop_arrived()

    # ---- one turn

    async def _turn(self) -> None:
        await self._drop_arrived()
        if self._incoming or self.mode is Mode.SPOOLING:
            await self._put()
        mode = self.mode
        if mode is not Mode.REPLAYING:
            self._tail.rest()
        if mode is not self._said:
            self._say(mode)

    async def _drop_arrived(self) -> None:
        passed = self.ledger.take_passed()
        if not passed:
            return
        watermark = self.ledger.watermark
        await self._in_store(lambda: self._queue.drop_below(watermark))
        self._head = watermark
        for row in passed:
            self.in_flight.remove(row)
        records = sum(row.lines for row in passed)
        self._metrics.replayed.labels(self.outlet.name).inc(records)
        self._replayed += records
        if self.mode is Mode.REPLAYING:
            self._tail.replayed(records)
        self._count()
        self._changed()

    async def _put(self) -> None:
        """Write down what the outlet holds, where that is not on disk yet, and then what came."""
        self.full = await self._in_store(lambda: self._queue.full(self._rules.limits))
        needed = sum(len(batch.payload) for batch in (*self._unwritten(), *self._incoming))
        if needed and self.full is not None and not await self._make_room(needed):
            return  # it all stays in flight, and so reading stops
        held, incoming = self._unwritten(), self._incoming  # nothing may be acked before they are
        if not held and not incoming:
            return
        self._incoming = []
        chunks = [chunk for batch in (*held, *incoming) for chunk in batch.chunks]
        records = sum(batch.count for batch in (*held, *incoming))
        whose = [(batch.places, batch.count) for batch in (*held, *incoming)]
        at = self._end
        following = self._following(incoming)
        self._stand_for_rows([*held, *following])
        self._end += records
        await self._in_store(lambda: self._queue.put([*held, *incoming]))
        for batch in following:
            self.outlet.admit(batch)
        if self.mode is Mode.REPLAYING:
            self._tail.appended(records)
        self.stored_batches += len(held) + len(incoming)
        self._metrics.spooled.labels(self.outlet.name).inc(records)
        for places, count in whose:
            self._stored(places, (at, at + count - 1))
            at += count
        self._settle(chunks)
        for batch in (*held, *incoming):
            batch.end_span("spooled")
        self._count()
        self._changed()

    def _following(self, incoming: list[Batch]) -> list[Batch]:
        """Return what was sealed for Kafka still when the outage began: it follows the rest there.

        If the topic comes back with fewer partitions, only together they can be put in file order.
        """
        if self._read_to < self._end or self.outlet.topic is None:
            return []
        return list(takewhile(lambda batch: batch.partition >= 0, incoming))

    def _unwritten(self) -> list[Batch]:
        return [b for b in self.outlet.delivery.batches() if not self._stands_for_rows(b)]

    def _stands_for_rows(self, batch: Batch) -> bool:
        return batch.chunks[0].ledger is self.ledger

    def _stand_for_rows(self, held: list[Batch]) -> None:
        """Let what is on its way settle rows: however it is cut or replaced, it holds those."""
        assert not held or self._read_to == self._end, "older rows would wait behind it"
        for batch in held:
            row = Row(self.ledger, self._read_to, batch.count, batch.raw_bytes)
            row.open_batches = 1
            row.lines_of = batch.places
            batch.chunks = [row]
            self._read_to = row.end
            self.in_flight.add(row)
            self.ledger.reserve(row)

    async def _make_room(self, needed: int) -> bool:
        """Drop the oldest events if that is what is wanted. Return whether more may be put by."""
        if self.mode is Mode.REPLAYING:
            # Replay makes room. What came last goes to Kafka through here, full or not.
            return self._head == self._end
        if not self._rules.drop_oldest or self.full != "bytes_max":
            return False  # dropping makes room in the file, and none on the disk
        at, least = self._read_to, max(needed, self._queue.bytes // 100)
        dropped = await self._in_store(lambda: self._queue.drop_oldest(at, least))
        self._metrics.spool_dropped.labels(self.outlet.name).inc(dropped)
        if dropped:
            event(log, logging.ERROR, "spool.dropped", sink=self.outlet.name, records=dropped,
                  limit=self.full)  # fmt: skip
            self._note("spool.dropped", sink=self.outlet.name, records=dropped)
        return dropped > 0

    def _say(self, mode: Mode) -> None:
        before, self._said = self._said, mode
        if mode is Mode.LIVE:
            self.full = None
        level = logging.WARNING if mode is Mode.SPOOLING else logging.INFO
        event(log, level, "spool.mode", sink=self.outlet.name, mode=mode.value,
              reason=self.outlet.delivery.outage, spooled_records=self.spooled_records)  # fmt: skip
        self._note("spool.mode", sink=self.outlet.name, mode=mode.value,
                   reason=self.outlet.delivery.outage)  # fmt: skip
        self._note_replay(before, mode)
        self._changed()

    def _note_replay(self, before: Mode, mode: Mode) -> None:
        name, left = self.outlet.name, self.spooled_records
        if before is Mode.REPLAYING:
            self._note("replay.ended", sink=name, records=self._replayed, left=left, by="agent")
        if mode is Mode.REPLAYING:
            self._replayed = 0
            self._note("replay.begun", sink=name, records=left, by="agent")

    def _count(self) -> None:
        lost, self._lost = self._queue.lost - self._lost, self._queue.lost
        self._metrics.spool_lost.labels(self.outlet.name).inc(lost)
        if lost:
            self._note("spool.lost", sink=self.outlet.name, records=lost)
        self._metrics.spool_records.labels(self.outlet.name).set(self._queue.records)
        self._metrics.spool_bytes.labels(self.outlet.name).set(self._queue.bytes)
