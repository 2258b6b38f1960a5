"""The way around Kafka: put by in an outage, settled, replayed in order, nothing lost or doubled.

The outlet is the real one over a Kafka in memory, the queue the real one on disk.
"""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry

from agent import purging, wire
from agent.builders import UNPARTITIONED, Builders, Stream
from agent.chunk import Chunker, ChunkPolicy
from agent.core.batch import Batch, Pace
from agent.core.ledger import Chunk, Ledger
from agent.core.places import Place
from agent.core.policy import (
    MIB,
    BatchPolicy,
    BreakerPolicy,
    InFlightPolicy,
    RetryPolicy,
    SchemaPolicy,
)
from agent.core.quota import InFlight
from agent.core.receipts import Window
from agent.core.record import RecordPolicy
from agent.core.revival import Wanted
from agent.core.seam import TAIL_SHARE, Mode
from agent.queue import Limits
from agent.rows import Stored
from agent.sink import Outlet
from agent.spool import Spool
from agent.spooler import Spooler, SpoolRules
from agent.telemetry import Metrics
from tests.fakes import PLAIN, FakeClock, FakeKafka, batch_of, chunks_of, delivery_of, turns

T = TypeVar("T")

ROOMY = Limits(MIB, 0.0)
EVENTS = SpoolRules(enabled=True, limits=ROOMY, drop_oldest=False, tail_share=TAIL_SHARE)
SILENCE_S = 35.0
"""Longer than the breaker's patience."""
BACK_S = 40.0
"""Enough for a cooldown, a connection and a replay."""


@dataclass
class Room:
    """A spooler between a file and Kafka, with what its neighbours do."""

    kafka: FakeKafka
    clock: FakeClock
    registry: CollectorRegistry
    spool: Spool
    outlet: Outlet
    way: Spooler
    chunker: Chunker
    stream: Stream
    busy_disk: asyncio.Event
    file: Ledger = field(default_factory=lambda: Ledger(0, b"", ("file", 0)))
    read_to: int = 0
    refused: list[Batch] = field(default_factory=list)
    stored: list[tuple[list[Place], Window]] = field(default_factory=list)
    settled: list[Batch] = field(default_factory=list)

    def read(self, *values: bytes, partition: int = 0, compressed: wire.Codec = PLAIN) -> None:
        """Let a batch of lines come from the file."""
        end = self.read_to + len(values)
        chunk = Chunk(self.file, self.read_to, end, b"", lines=len(values))
        self.read_to = end
        batch = batch_of(*values, partition=partition, chunks=[chunk], compressed=compressed)
        self.file.reserve(chunk)
        self.way.admit(batch)

    def acked(self, batch: Batch) -> None:
        self.settled.append(batch)
        self.settle(batch.chunks)

    def settle(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            chunk.ledger.settle(chunk)
            if chunk.ledger is self.way.ledger:
                self.way.moved()

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            self.clock.advance(0.5)
            await turns(20)

    async def fall_silent(self) -> None:
        self.kafka.hold()
        await self.pass_time(SILENCE_S)

    async def replay(self) -> None:
        """Do what the intake does with what is spooled, turn after turn."""
        while True:
            rows = await self.way.replay()
            self.chunker.refill(self.stream, rows)
            self.way.reserve(rows)
            sealed = self.chunker.seal_all()
            for batch in (*sealed.events, *sealed.dead_letters):
                self.way.admit(batch)
            await asyncio.sleep(0.1)

    def counted(self, name: str) -> float:
        labels = {"sink": self.outlet.name}
        found = self.registry.get_sample_value(f"feedback_agent_{name}", labels)
        assert found is not None, name
        return found

    @property
    def arrived(self) -> list[bytes]:
        return [value for partition in sorted(self.kafka.logs) for value in self._in(partition)]

    def _in(self, partition: int) -> list[bytes]:
        return self.kafka.values(partition)

    @property
    def spooled(self) -> int:
        return self.spool.queues[self.outlet.name].records


def chunker_of(topic: Callable[[], Outlet], clock: FakeClock, metrics: Metrics) -> Chunker:
    pace = Pace(BatchPolicy())

    def stream() -> Stream:
        described = Builders(lambda: topic().topic, PLAIN, pace, bytes_max=MIB, partitioner="crc32")
        return Stream(
            described, Builders(lambda: None, PLAIN, pace, bytes_max=MIB, partitioner="none")
        )

    record = RecordPolicy(version="1", hostname="n1")
    policy = ChunkPolicy("n1", SchemaPolicy(), record, 4096, event_time=False)
    return Chunker(policy, stream(), stream(), clock=clock, metrics=metrics)


@asynccontextmanager
async def begun(
    path: Path,
    kafka: FakeKafka,
    *,
    name: str = "events",
    rules: SpoolRules = EVENTS,
    events_max: int = 10_000,
    attempts_max: int = 3,
    absent_s: float = 5.0,
) -> AsyncIterator[Room]:
    """One life of the agent over what is on disk in ``path``."""
    clock, registry = FakeClock(), CollectorRegistry()
    clock.drive()
    metrics, spool = Metrics(registry), Spool(path / "spool.db", {})
    busy_disk = asyncio.Event()
    busy_disk.set()

    async def in_store(work: Callable[[], T]) -> T:
        await busy_disk.wait()
        return work()

    def refused(batch: Batch, reason: str) -> None:
        if name == "events":
            made.refused.append(batch)
        else:
            made.way.admit(made.chunker.rejects.of_record(batch, reason))

    outlet = Outlet(
        name,
        delivery_of(
            clock.monotonic,
            retry=RetryPolicy(attempts_max=attempts_max, backoff_max_s=2.0),
            breaker=BreakerPolicy(cooldown_s=5.0),
            retire_s=1.0,
            absent_s=absent_s,
        ),
        kafka.connect,
        settled=lambda batch, offset, latency_s: made.acked(batch),
        refused=refused,
        clock=clock,
        metrics=metrics,
    )
    way = Spooler(
        outlet,
        spool.queues[name],
        in_store,
        rules,
        in_flight=InFlight(InFlightPolicy(events_max=events_max)),
        settle=lambda chunks: made.settle(list(chunks)),
        changed=lambda: None,
        stored=lambda places, window: made.stored.append((list(places), window)),
        metrics=metrics,
    )
    chunker = chunker_of(lambda: outlet, clock, metrics)
    stream = chunker.events if name == "events" else chunker.dead_letters
    made = Room(kafka, clock, registry, spool, outlet, way, chunker, stream, busy_disk)
    running = [asyncio.create_task(work) for work in (outlet.run(), way.run(), made.replay())]
    await turns()
    yield made
    for task in running:
        task.cancel()
    for ended in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError), repr(ended)
    await outlet.close()
    spool.close()


@pytest.fixture
def kafka() -> FakeKafka:
    return FakeKafka(partitions=1)


@pytest.fixture
async def room(tmp_path: Path, kafka: FakeKafka) -> AsyncIterator[Room]:
    async with begun(tmp_path, kafka) as made:
        yield made


async def test_with_kafka_nothing_touches_the_disk(room: Room) -> None:
    room.read(b"a")
    await room.pass_time(2)

    assert [b"a"] == room.arrived
    assert 1 == room.file.watermark
    assert 0 == room.counted("spooled_total")


async def test_batches_that_come_and_go_are_looked_at_now_and_then(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches nothing is out, many times a second: that is no reason for a look."""
    room.read(b"first")
    await room.pass_time(0.5)
    looks, turn = 0, room.way._turn

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await turn()

    monkeypatch.setattr(room.way, "_turn", counted)
    for number in range(20):
        room.read(b"%d" % number)
        await turns()
        assert room.outlet.empty.is_set()

    assert looks <= 1
    room.kafka.hold()
    room.read(b"out")
    await room.pass_time(1)
    assert looks > 1, "what stays out is looked at"


async def test_of_what_is_admitted_together_nothing_overtakes_what_is_put_by(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    async with begun(tmp_path, kafka) as room:
        await turns()
        chunks = chunks_of(room.file, 1, 1, 1)
        sealed = [batch_of(b"%d" % n, partition=p, chunks=[chunks[n]])
                  for n, p in enumerate((0, UNPARTITIONED, 0))]  # fmt: skip
        for chunk in chunks:
            room.file.reserve(chunk)
        room.way.admit(*sealed)
        await room.pass_time(5)

        assert [b"0", b"1", b"2"] == room.arrived


async def test_in_an_outage_lines_are_settled_on_disk(room: Room) -> None:
    """What is out as it begins is written down first, and what comes follows it."""
    room.kafka.hold()
    room.read(b"a")
    await room.pass_time(SILENCE_S)
    assert Mode.SPOOLING is room.way.mode
    assert (1, 1) == (room.spooled, room.file.watermark)
    room.read(b"b", b"c", partition=UNPARTITIONED)
    await room.pass_time(1)

    assert (3, 3) == (room.spooled, room.file.watermark)
    assert [] == room.arrived
    room.kafka.release()


async def test_where_lines_went_is_told_whichever_way_they_go(room: Room) -> None:
    """Receipts of it: in the spool, and by a producer that delivers after all."""
    room.kafka.hold()
    room.read(b"a", b"b")
    room.read(b"c")
    await room.pass_time(SILENCE_S)
    room.read(b"d", partition=UNPARTITIONED)
    await room.pass_time(1)
    first, second, third = (Place("file", 0, *span) for span in ((0, 2), (2, 3), (3, 4)))
    assert [([first], (0, 1)), ([second], (2, 2)), ([third], (3, 3))] == room.stored
    room.kafka.release()
    await room.pass_time(BACK_S)

    assert [(first,), (second,)] == [batch.places for batch in room.settled[:2]]
    assert [b"a", b"b", b"c", b"d"] == room.arrived


async def test_what_arrives_after_all_leaves_the_spool_and_is_not_sent_again(room: Room) -> None:
    """Nothing goes twice while a producer lives (invariant 5)."""
    room.kafka.hold()
    room.read(b"a")
    room.read(b"b")
    await room.pass_time(SILENCE_S)
    assert 2 == room.spooled
    room.kafka.release()
    await room.pass_time(BACK_S)

    assert [b"a", b"b"] == room.arrived
    assert (0, Mode.LIVE) == (room.spooled, room.way.mode)


async def test_what_was_out_when_its_producer_was_given_up_goes_again_once(room: Room) -> None:
    """Only the answer was lost: one copy, and no more of them from the disk."""
    room.kafka.fail("timeout", appended=True)
    room.kafka.down = "unreachable"
    room.read(b"a")
    await room.pass_time(BACK_S)
    assert (1, 1) == (room.spooled, room.file.watermark)
    room.kafka.down = None
    await room.pass_time(BACK_S)

    assert [b"a", b"a"] == room.arrived
    assert (0, Mode.LIVE) == (room.spooled, room.way.mode)


async def test_the_spool_goes_first_and_in_order(room: Room) -> None:
    """Lines of now join the tail while older ones are in the spool (invariants 3 and 10)."""
    room.kafka.hold()
    room.read(b"0")
    await room.pass_time(SILENCE_S)
    for number in range(1, 20):
        room.read(b"%d" % number, partition=UNPARTITIONED)
        await room.pass_time(0.5)
    room.kafka.release()
    while room.way.mode is not Mode.REPLAYING:
        await turns(1)
    room.read(b"20")
    await room.pass_time(BACK_S)
    room.read(b"21")
    await room.pass_time(1)

    assert [b"%d" % number for number in range(22)] == room.arrived
    assert 22 == room.file.watermark
    assert 21 == room.counted("spooled_total") == room.counted("replayed_total")


async def test_a_restart_goes_on_with_what_is_on_disk(tmp_path: Path, kafka: FakeKafka) -> None:
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        for value in (b"a", b"b", b"c"):
            room.read(value, partition=UNPARTITIONED)
        await room.pass_time(1)
        assert 3 == room.file.watermark
    kafka.down = None
    async with begun(tmp_path, kafka, absent_s=0.0) as room:
        assert 3 == room.spooled
        room.read(b"d")
        await room.pass_time(BACK_S)

        assert [b"a", b"b", b"c", b"d"] == room.arrived
        assert (0, Mode.LIVE) == (room.spooled, room.way.mode)


async def test_nothing_is_replayed_before_the_partitions_are_known(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    """A node that waits before it connects would send all of it to the first partition."""
    kafka.partitions, kafka.down = 12, "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        room.read(b"a", partition=UNPARTITIONED)
        await room.pass_time(1)
    async with begun(tmp_path, kafka, absent_s=10.0) as room:
        assert Mode.REPLAYING is room.way.mode
        await room.pass_time(5)
        assert [] == await room.way.replay()
        assert 0 == room.outlet.delivery.queued


async def test_nothing_is_sent_to_a_partition_that_was_a_guess(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        assert (Mode.LIVE, None) == (room.way.mode, room.outlet.topic)
        assert not room.way.direct
        room.read(b"a")
        await room.pass_time(1)
        assert 0 == room.outlet.delivery.queued
        assert 1 == room.spooled
        kafka.down = None
        await room.pass_time(BACK_S)
        assert [b"a"] == room.arrived


async def test_what_is_refused_while_it_stands_for_a_row_settles_it_as_a_dead_letter(
    room: Room,
) -> None:
    """Its lines are settled by then: the row is what must not go before the dead letter is safe."""
    room.kafka.hold()
    room.read(b"good", b"bad")
    await room.pass_time(SILENCE_S)
    room.kafka.refuses = lambda record: record.value == b"bad"
    room.kafka.release()
    await room.pass_time(BACK_S)
    assert [b"good"] == room.arrived
    assert 2 == room.spooled

    (refused,) = room.refused
    room.settle(refused.chunks)  # the dead letter has arrived, or is on disk
    await room.pass_time(1)
    assert (0, Mode.LIVE) == (room.spooled, room.way.mode)


async def test_what_is_cut_on_the_way_leaves_the_disk(room: Room) -> None:
    """The topic's limit may be smaller by now. A row that stayed would come again for ever."""
    room.kafka.hold()
    room.read(b"0")
    await room.pass_time(SILENCE_S)
    room.read(b"a" * 100, b"b" * 100, partition=UNPARTITIONED)
    await room.pass_time(1)
    room.kafka.message_bytes_max = 250
    room.kafka.release()
    await room.pass_time(BACK_S)

    assert [b"0", b"a" * 100, b"b" * 100] == room.arrived
    assert 0 == room.spooled


async def test_what_is_spooled_finds_its_way_to_a_topic_of_fewer_partitions(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    kafka.partitions, kafka.down = 12, "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        room.read(b"a", partition=7)
        room.read(b"b", partition=9)
        await room.pass_time(1)
    kafka.partitions, kafka.down = 1, None
    async with begun(tmp_path, kafka, absent_s=0.0) as room:
        await room.pass_time(BACK_S)
        assert [b"a", b"b"] == room.arrived
        assert 0 == room.spooled


@pytest.mark.parametrize("before", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_what_is_spooled_outlives_a_change_of_compression(
    tmp_path: Path, kafka: FakeKafka, before: str
) -> None:
    """It goes as it lies there; what must be cut is opened by its own codec and sealed by ours."""
    chance = random.Random(1)  # noqa: S311 - to be repeated, not to be secret
    large = [chance.randbytes(300), chance.randbytes(300)]  # no codec makes them fit together
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        room.read(b"a", b"b", compressed=wire.codec(before, None))
        room.read(*large, compressed=wire.codec(before, None))
        await room.pass_time(1)
    kafka.down, kafka.message_bytes_max = None, 500
    async with begun(tmp_path, kafka, absent_s=0.0) as room:
        await room.pass_time(BACK_S)
        assert [b"a", b"b", *large] == room.arrived
        assert 0 == room.spooled


FULL_DISK = EVENTS._replace(limits=Limits(MIB, 1.0))


async def test_a_full_spool_stops_and_drops_nothing(tmp_path: Path, kafka: FakeKafka) -> None:
    """What does not fit stays in flight, so reading stops; it goes on when there is room."""
    rules = EVENTS._replace(limits=Limits(1, 0.0))
    async with begun(tmp_path, kafka, rules=rules) as room:
        kafka.hold()
        room.read(b"a")
        await room.pass_time(SILENCE_S)
        assert 1 == room.file.watermark, "the first one fits: nothing was there"
        room.read(b"b", partition=UNPARTITIONED)
        await room.pass_time(5)
        assert (1, 1) == (room.spooled, room.file.watermark)
        assert "bytes_max" == room.way.status()["spool_full"]
        kafka.release()
        await room.pass_time(BACK_S)

        assert [b"a", b"b"] == room.arrived
        assert (2, Mode.LIVE) == (room.file.watermark, room.way.mode)
        assert room.way.status()["spool_full"] is None
        assert 0 == room.counted("spool_dropped_total")


async def test_a_disk_that_stays_full_does_not_outlast_the_outage(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    """What waited for room goes to Kafka, which is back: there is nothing left to wait for."""
    async with begun(tmp_path, kafka, rules=FULL_DISK) as room:
        kafka.hold()
        room.read(b"a")
        await room.pass_time(SILENCE_S)
        room.read(b"b", partition=UNPARTITIONED)
        await room.pass_time(5)
        assert (0, 0) == (room.spooled, room.file.watermark)
        assert "disk_free_min" == room.way.status()["spool_full"]
        kafka.release()
        await room.pass_time(BACK_S)

        assert [b"a", b"b"] == room.arrived
        assert (2, Mode.LIVE) == (room.file.watermark, room.way.mode)


async def test_a_full_spool_that_drops_counts_each_record(tmp_path: Path, kafka: FakeKafka) -> None:
    """However much comes at once, the limit holds but for what was put by last."""
    limit = 2000
    rules = EVENTS._replace(limits=Limits(limit, 0.0), drop_oldest=True)
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka, rules=rules) as room:
        await room.pass_time(BACK_S)
        queue = room.spool.queues["events"]
        for number in range(60):
            for part in range(3):
                room.read(b"%d.%d " % (number, part) + b"x" * 100, partition=UNPARTITIONED)
            await room.pass_time(0.5)
            assert queue.bytes < limit + 600
        assert 180 == room.file.watermark
        dropped = room.counted("spool_dropped_total")
        assert 180 == dropped + room.spooled
        kafka.down = None
        await room.pass_time(BACK_S)

        assert 180 == dropped + len(room.arrived)
        assert len(room.arrived) == room.counted("replayed_total")
        assert room.arrived[-1].startswith(b"59.2 ")


async def test_a_full_spool_drops_nothing_while_nothing_comes(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    """Dropping rows frees no disk: what is full by others' doing would take the whole spool."""
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        room.read(b"a" * 1000, partition=UNPARTITIONED)
        await room.pass_time(1)
    rules = FULL_DISK._replace(drop_oldest=True)
    async with begun(tmp_path, kafka, rules=rules, absent_s=0.0) as room:
        await room.pass_time(BACK_S)
        assert 1 == room.spooled
        assert 0 == room.counted("spool_dropped_total")


async def test_nothing_is_dropped_once_kafka_is_back(tmp_path: Path, kafka: FakeKafka) -> None:
    """Replay makes room by itself."""
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        for number in range(20):
            room.read(b"%d" % number, partition=UNPARTITIONED)
        await room.pass_time(1)
    kafka.down = None
    rules = EVENTS._replace(limits=Limits(1, 0.0), drop_oldest=True)
    async with begun(tmp_path, kafka, rules=rules, absent_s=0.0) as room:
        while room.way.mode is not Mode.REPLAYING:
            await turns(1)
        room.read(b"20", partition=UNPARTITIONED)
        await room.pass_time(BACK_S)
        assert [b"%d" % number for number in range(21)] == room.arrived
        assert 0 == room.counted("spool_dropped_total")


async def test_without_a_spool_an_outage_is_backpressure(tmp_path: Path, kafka: FakeKafka) -> None:
    async with begun(tmp_path, kafka, rules=EVENTS._replace(enabled=False)) as room:
        await room.fall_silent()
        room.read(b"a")
        room.read(b"b")
        await room.pass_time(SILENCE_S)
        assert room.outlet.delivery.outage is not None
        assert (Mode.LIVE, 0, 0) == (room.way.mode, room.spooled, room.file.watermark)
        kafka.release()
        await room.pass_time(BACK_S)

        assert [b"a", b"b"] == room.arrived
        assert 2 == room.file.watermark


async def test_a_spool_that_was_switched_off_is_emptied_first(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        room.read(b"a", partition=UNPARTITIONED)
        await room.pass_time(1)
    kafka.down = None
    rules = EVENTS._replace(enabled=False)
    async with begun(tmp_path, kafka, rules=rules, absent_s=0.0) as room:
        room.read(b"b")
        await room.pass_time(BACK_S)
        assert [b"a", b"b"] == room.arrived
        assert Mode.LIVE is room.way.mode


async def test_the_tail_grows_by_half_of_what_is_replayed(
    tmp_path: Path, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as much to read as there may be, the spool must still become empty."""
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        for number in range(200):
            room.read(b"%d" % number, partition=UNPARTITIONED)
        await room.pass_time(1)
        assert room.way.may_append, "in an outage there is no limit but the spool's"
    kafka.down, read = None, 0
    async with begun(tmp_path, kafka, absent_s=0.0, events_max=10) as room:
        monkeypatch.setattr("agent.spooler.READ_RECORDS", 4)
        while room.way.mode is not Mode.LIVE:
            if room.way.may_append:
                room.read(b"x", partition=UNPARTITIONED)
                read += 1
            await room.pass_time(0.5)
            assert read <= room.counted("replayed_total") / 2 + 1
        assert 50 < read
        assert 200 + read == len(room.arrived)


async def test_a_row_that_is_unreadable_is_passed_over(tmp_path: Path, kafka: FakeKafka) -> None:
    """It is counted; those before and after it arrive."""
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        for value in (b"a", b"b", b"c"):
            room.read(value, partition=UNPARTITIONED)
        await room.pass_time(1)
        room.spool._connection.execute(
            "UPDATE spooled_events SET payload = x'00' WHERE seq = 1"
        ).connection.commit()
    kafka.down = None
    async with begun(tmp_path, kafka, absent_s=0.0) as room:
        await room.pass_time(BACK_S)
        assert [b"a", b"c"] == room.arrived
        assert (Mode.LIVE, 1) == (room.way.mode, room.spool.queues["events"].lost)
        assert 2 == room.counted("replayed_total"), "what was lost left for nowhere"


async def test_a_stop_waits_for_kafka_while_it_answers(room: Room) -> None:
    room.read(b"a")
    stopping = asyncio.create_task(room.way.finish())
    await room.pass_time(2)

    assert stopping.done()
    assert ([b"a"], 1) == (room.arrived, room.file.watermark)


async def test_a_stop_without_kafka_leaves_everything_on_disk(room: Room) -> None:
    room.kafka.hold()
    room.read(b"a")
    await room.pass_time(SILENCE_S)
    room.read(b"b", partition=UNPARTITIONED)
    stopping = asyncio.create_task(room.way.finish())
    await room.pass_time(2)

    assert stopping.done()
    assert (2, 2) == (room.spooled, room.file.watermark)


async def test_a_stop_waits_until_what_came_last_is_settled(room: Room) -> None:
    """Between the intake and the disk it is nowhere; the last checkpoint must come after."""
    await room.fall_silent()
    room.read(b"a")
    await room.pass_time(SILENCE_S)
    room.busy_disk.clear()
    room.read(b"b", partition=UNPARTITIONED)
    stopping = asyncio.create_task(room.way.finish())
    await room.pass_time(2)
    assert not stopping.done()
    assert 1 == room.file.watermark

    room.busy_disk.set()
    await room.pass_time(2)
    assert stopping.done()
    assert 2 == room.file.watermark


async def test_a_stop_leaves_nothing_on_disk_that_has_arrived(
    tmp_path: Path, kafka: FakeKafka
) -> None:
    """Otherwise the next life sends it again. The rest may stay there, for that one."""
    kafka.down = "unreachable"
    async with begun(tmp_path, kafka) as room:
        await room.pass_time(BACK_S)
        for number in range(40):
            room.read(b"%d" % number, partition=UNPARTITIONED)
        await room.pass_time(1)
    kafka.down = None
    async with begun(tmp_path, kafka, absent_s=0.0, events_max=1) as room:
        while not room.arrived:
            await room.pass_time(0.5)
        room.way.rest()
        stopping = asyncio.create_task(room.way.finish())
        await room.pass_time(2)
        assert stopping.done()
        await room.way.flush()
        assert 40 == len(room.arrived) + room.spooled
    async with begun(tmp_path, kafka, absent_s=0.0) as room:
        await room.pass_time(BACK_S)
        assert [b"%d" % number for number in range(40)] == room.arrived


async def test_an_outage_is_said_once(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent.spooler")
    await room.fall_silent()
    for number in range(10):
        room.read(b"%d" % number)
        await room.pass_time(5)
    room.kafka.release()
    await room.pass_time(BACK_S)

    modes = [
        fields["mode"]
        for fields in (getattr(record, "fields", {}) for record in caplog.records)
        if "mode" in fields
    ]
    assert 1 == modes.count("spooling")
    assert "live" == modes[-1]


# ---- dead letters: an outlet without patience

DEAD_LETTERS = SpoolRules(enabled=True, limits=ROOMY, drop_oldest=False, tail_share=None)


@pytest.fixture
async def dead_letters(tmp_path: Path, kafka: FakeKafka) -> AsyncIterator[Room]:
    async with begun(
        tmp_path, kafka, name="dead_letters", rules=DEAD_LETTERS, attempts_max=1
    ) as made:
        yield made


async def test_dead_letters_are_put_by_at_the_first_failure(dead_letters: Room) -> None:
    """A watermark must not wait for a topic that may never come."""
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.read(b"a")
    await room.pass_time(2)
    assert (1, 1) == (room.spooled, room.file.watermark)
    room.read(b"b")
    await room.pass_time(1)

    assert (2, 2) == (room.spooled, room.file.watermark)


async def test_dead_letters_move_in_order_and_leave_the_disk(dead_letters: Room) -> None:
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    values = [b"%d" % number for number in range(8)]
    for value in values:
        room.read(value)
        await room.pass_time(1)
    assert room.way.may_append
    room.kafka.down = None
    await room.pass_time(BACK_S)

    assert values == room.arrived
    assert (0, 8, Mode.LIVE) == (room.spooled, room.file.watermark, room.way.mode)


async def test_reading_goes_on_while_dead_letters_are_moved(dead_letters: Room) -> None:
    """They are in no hurry: the tail may grow, and events must not wait for it."""
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.read(b"a")
    await room.pass_time(2)
    room.kafka.down = None
    while room.way.mode is not Mode.REPLAYING:
        room.clock.advance(0.5)
        await turns(1)

    assert room.way.may_append


async def test_a_replayed_dead_letter_that_is_refused_shrinks_and_arrives(
    dead_letters: Room,
) -> None:
    """No dead letter of a dead letter: it gives up its payload, and says how much that was."""
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    chunk = Chunk(room.file, 0, 1, b"", lines=1)
    builder = wire.Builder(UNPARTITIONED, MIB, 0.0)
    headers = [("reason", b"not_json"), ("source", b"1;s;0;0;501")]
    builder.extend([(0, b"k", b"x" * 500, headers)])
    builder.hold(chunk)
    room.file.reserve(chunk)
    room.way.admit(builder.seal(PLAIN))
    await room.pass_time(2)
    assert (1, 1) == (room.spooled, room.file.watermark)
    room.kafka.refuses = lambda record: len(record.value) >= 500
    room.kafka.down = None
    await room.pass_time(BACK_S)

    (record,) = room.kafka.logs[0]
    assert {"reason": b"not_json", "cut": b"500", "source": b"1;s;0;0;501"} == dict(record.headers)
    assert (0, Mode.LIVE) == (room.spooled, room.way.mode)


# ---- an operator drops some of them


def without(*gone: bytes) -> Callable[[list[Stored]], list[tuple[Stored, Batch | None]]]:
    """Return what drops the records with those values."""

    def sift(rows: list[Stored]) -> list[tuple[Stored, Batch | None]]:
        thinned = []
        for row in rows:
            assert row.batch is not None
            kept = [one for one in wire.records(row.batch) if one.value not in gone]
            if len(kept) < row.records:
                left = wire.reseal(row.batch, kept, PLAIN) if kept else None
                thinned.append((row, left))
        return thinned

    return sift


async def thinned(room: Room, *gone: bytes) -> None:
    at: int | None = 0
    while at is not None:
        at = await room.way.thin(at, without(*gone))


async def test_what_is_left_of_a_row_arrives_once_and_in_order(dead_letters: Room) -> None:
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.read(b"a")
    await room.pass_time(1)
    room.read(b"b", b"c", b"d", b"e", partition=UNPARTITIONED)
    room.read(b"f", b"g", partition=UNPARTITIONED)
    await room.pass_time(1)

    await thinned(room, b"c", b"e", b"f", b"g")
    assert (3, 7) == (room.spooled, room.file.watermark)
    room.read(b"h", partition=UNPARTITIONED)
    room.kafka.down = None
    await room.pass_time(BACK_S)

    assert [b"a", b"b", b"d", b"h"] == room.arrived
    assert (0, 8, Mode.LIVE) == (room.spooled, room.file.watermark, room.way.mode)


async def test_what_is_on_its_way_is_not_dropped(room: Room) -> None:
    """Nobody knows whether Kafka has it already: it would be gone from here, and come from there;
    and its number must stay what the ledger of the spool counts on."""
    room.kafka.hold()
    room.read(b"a", b"b")
    await room.pass_time(SILENCE_S)
    room.read(b"c", b"d", partition=UNPARTITIONED)
    await room.pass_time(1)
    assert 2 == room.way.read_to

    await thinned(room, b"a", b"b", b"c")
    assert 3 == room.spooled
    room.kafka.release()
    await room.pass_time(BACK_S)

    assert [b"a", b"b", b"d"] == room.arrived
    assert (0, 4) == (room.spooled, room.file.watermark)


async def test_a_row_is_not_read_for_replay_while_it_is_sifted(dead_letters: Room) -> None:
    """Or it would go as it was, and what is left of it again."""
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.read(b"x")
    await room.pass_time(1)
    room.read(b"a", b"b", partition=UNPARTITIONED)
    await room.pass_time(1)
    begun_to, may_end = threading.Event(), threading.Event()

    def slow(rows: list[Stored]) -> list[tuple[Stored, Batch | None]]:
        begun_to.set()
        assert may_end.wait(30)
        return without(b"a")(rows)

    thinning = asyncio.create_task(room.way.thin(0, slow))
    await asyncio.to_thread(begun_to.wait, 30)
    room.kafka.down = None
    await room.pass_time(BACK_S)
    assert ([b"x"], 1) == (room.arrived, room.way.read_to)
    may_end.set()
    await thinning
    await room.pass_time(BACK_S)

    assert [b"x", b"b"] == room.arrived
    assert (0, 3) == (room.spooled, room.file.watermark)


async def test_how_many_go_and_stay_is_told_and_noted_once(room: Room) -> None:
    """A dry run says the same before, and notes nothing."""
    room.kafka.hold()
    room.read(b"a", b"b")
    await room.pass_time(SILENCE_S)
    room.read(b"c", b"d", b"e", partition=UNPARTITIONED)
    await room.pass_time(1)
    without_reason, notes = Wanted(reason=""), list[int]()

    before = [tally async for tally in purging.counted(room.way, without_reason)]
    purge = purging.purged(room.way, without_reason, PLAIN, notes.append)
    tallies = [tally async for tally in purge]

    assert (purging.Tally(3, 2), purging.Tally(3, 2)) == (before[-1], tallies[-1])
    assert ([3], 2) == (notes, room.spooled)
    room.kafka.release()


async def test_a_purge_that_nobody_listens_to_any_more_is_noted(dead_letters: Room) -> None:
    """Whoever asked may be gone; what they did stays on the record."""
    room = dead_letters
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.read(b"x")
    await room.pass_time(1)
    room.read(b"a", b"b", partition=UNPARTITIONED)
    await room.pass_time(1)
    notes: list[int] = []

    async with aclosing(
        purging.purged(room.way, Wanted(reason=""), PLAIN, notes.append)
    ) as tallies:
        async for tally in tallies:
            if tally.records:
                break

    assert [2] == notes
