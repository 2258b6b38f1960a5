"""The copy of the audit log in a Kafka topic: each record as it stands in the file, in order.

The file is the truth, and the copy follows it from behind: nothing waits for it, and what Kafka has
not acknowledged is read from the file again. How far it is stands beside the log, in ``.sent``.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from agent import audit_position, wire
from agent.audit_tail import Line, Tail
from agent.clock import Clock, wait_event
from agent.core.auditing import Head, Note
from agent.core.batch import Batch
from agent.core.delivery import Phase
from agent.core.ledger import Chunk, Ledger
from agent.core.partition import crc32_partition
from agent.sink import Outlet
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks into the file."""
SAVE_S = 1.0
"""Between two notes of how far it is: a kill sends so much again."""
BATCH_BYTES_MAX = 256 * 1024
READS_MAX = 4
"""On their way at once, each of ``TAIL_BYTES`` at most."""
STALL_S = 3.0
"""A stop waits no longer than that for one acknowledgement."""


class MakeOutlet(Protocol):
    def __call__(
        self,
        *,
        settled: Callable[[Batch, int, float], None],
        refused: Callable[[Batch, str], None],
    ) -> Outlet: ...


class _Read(Chunk):
    """Records that were read at once. Offsets are numbers of records, counted in this life."""

    __slots__ = ("head",)

    def __init__(self, ledger: Ledger, start: int, lines: list[Line]) -> None:
        super().__init__(ledger, start, start + len(lines), b"", len(lines))
        self.head = lines[-1].head


class AuditTopic:
    """Ships the log from ``start`` to ``finish``.

    Args:
        path: The newest file of the log.
        key: Of each record: the node. So its records are in one partition, in order.
        durable: Return the newest record of the log that the disk has, if there is one yet.
        note: Of the audit log.
    """

    def __init__(
        self,
        path: Path,
        topic: str,
        key: str,
        outlet: MakeOutlet,
        codec: wire.Codec,
        *,
        durable: Callable[[], Head | None],
        note: Note,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.outlet = outlet(settled=self._settled, refused=self._refused)
        self._topic = topic
        self._key = key.encode()
        self._codec = codec
        self._durable = durable
        self._note = note
        self._clock = clock
        self._metrics = metrics
        self._path = path
        self._sent = self._saved = audit_position.load(path, topic)
        self._saved_s = clock.monotonic()
        self._said = False
        self._tail = Tail(path, self._sent)
        self._ledger = Ledger(0, b"")
        self._read_to = 0
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()
        self._ending = False
        self._running: list[asyncio.Task[None]] = []

    # ---- what others do

    def start(self) -> None:
        assert not self._running, "started twice"
        self._running = [asyncio.create_task(work) for work in (self._ship(), self.outlet.run())]

    async def watch(self) -> None:
        """Wait, and raise what breaks it. Cancelling this does not stop the copy."""
        await asyncio.shield(asyncio.gather(*self._running))

    async def finish(self, within_s: float) -> None:
        """Wait until the topic has all of the log, or cannot have it now; then end."""
        ends_s = self._clock.monotonic() + within_s
        while not self._complete and not self._vain:
            self._arrived.clear()
            self._wake.set()
            left_s = min(ends_s - self._clock.monotonic(), STALL_S)
            if left_s <= 0 or not await wait_event(self._arrived, left_s):
                break
        self._ending = True
        self._wake.set()
        shipping, sending = self._running
        sending.cancel()
        await asyncio.wait(self._running)
        await self.outlet.close()
        await asyncio.to_thread(self._tail.close)
        await self._save()
        event(log, logging.INFO, "audit.copied", topic=self._topic, unsent=self._unsent())
        shipping.result()  # what broke must not end with 0

    # ---- the one task

    async def _ship(self) -> None:
        while not self._ending:
            self._wake.clear()
            durable = self._durable()
            if durable is not None and self.outlet.topic is not None and self._room:
                await self._read(durable)
            self._metrics.audit_unsent.set(self._unsent())
            if self._clock.monotonic() - self._saved_s >= SAVE_S:
                await self._save()
            await wait_event(self._wake, LOOK_S)

    async def _read(self, durable: Head) -> None:
        before = self._tail.after
        try:
            lines = await asyncio.to_thread(self._tail.read, durable)
        except OSError as error:
            self._say("audit.not_read", error)
            return
        if not lines:
            return
        self._wake.set()  # there may be more
        if before is not None and (missing := lines[0].head.seq - before.seq - 1) > 0:
            event(log, logging.ERROR, "audit.not_copied", after=before.seq, records=missing,
                  detail="rotated out, or taken away, before the topic had them")  # fmt: skip
            self._note("copy.skipped", after=before.seq, records=missing)
        read = _Read(self._ledger, self._read_to, lines)
        batches = [*self._batches(read, lines)]
        self._ledger.reserve(read)
        self._read_to = read.end
        for batch in batches:
            self.outlet.admit(batch)

    def _batches(self, read: _Read, lines: list[Line]) -> Iterator[Batch]:
        topic = self.outlet.topic
        assert topic is not None
        bytes_max = min(BATCH_BYTES_MAX, topic.message_bytes_max - wire.HEADER_BYTES)
        partition = crc32_partition(self._key, topic.partitions)
        now_ms = int(self._clock.wall() * 1000)
        builder: wire.Builder | None = None
        for line in lines:
            record: wire.PlainRecord = now_ms, self._key, line.text, []
            if builder is None or not builder.extend((record,)):
                if builder is not None:
                    yield builder.seal(self._codec)
                builder = wire.Builder(partition, bytes_max, self._clock.monotonic())
                builder.extend((record,))
            builder.hold(read)
        assert builder is not None
        yield builder.seal(self._codec)

    # ---- what became of it

    def _settled(self, batch: Batch, _kafka_offset: int, _latency_s: float) -> None:
        for chunk in batch.chunks:
            self._ledger.settle(chunk)
        for read in self._ledger.take_passed():
            assert isinstance(read, _Read)
            self._sent = read.head
        self._arrived.set()
        self._wake.set()

    def _refused(self, batch: Batch, reason: str) -> None:
        """Go on without a record that Kafka will never take: those after it matter, too.

        Not noted: a topic that refuses all would have one more to refuse each time.
        """
        event(log, logging.ERROR, "audit.refused", topic=self._topic, reason=reason)
        self._settled(batch, -1, 0.0)

    @property
    def _room(self) -> bool:
        return self.outlet.delivery.queued < READS_MAX

    @property
    def _complete(self) -> bool:
        return self._durable() in (None, self._sent)

    @property
    def _vain(self) -> bool:
        delivery = self.outlet.delivery
        return delivery.outage is not None or (
            delivery.phase is not Phase.LIVE and delivery.reason is not None
        )

    def _unsent(self) -> int:
        durable = self._durable()
        return 0 if durable is None else max(0, durable.seq - (self._sent.seq if self._sent else 0))

    # ---- how far it is

    async def _save(self) -> None:
        self._saved_s = self._clock.monotonic()
        if self._sent is None or self._sent == self._saved:
            return
        sent = self._sent
        try:
            await asyncio.to_thread(audit_position.save, self._path, self._topic, sent)
        except OSError as error:
            self._say("audit.position_not_saved", error)
        else:
            self._saved, self._said = sent, False

    def _say(self, name: str, error: OSError) -> None:
        if not self._said:
            self._said = True
            event(log, logging.ERROR, name, path=error.filename, detail=error.strerror,
                  effect="records of the audit log go to the topic later, or twice")  # fmt: skip
