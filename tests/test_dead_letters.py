"""Dead letters without a topic: on disk, settled, and moved once the topic is there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import pytest
from prometheus_client import CollectorRegistry

from agent import wire
from agent.core.batch import Batch
from agent.core.breaker import Breaker
from agent.core.delivery import Delivery
from agent.core.policy import BreakerPolicy, RetryPolicy
from agent.dead_letters import DeadLetters
from agent.sink import Outlet
from agent.spool import Spool
from agent.telemetry import Metrics
from tests.fakes import PLAIN, FakeClock, FakeKafka, InlineExecutor, batch_of, turns

P = ParamSpec("P")
T = TypeVar("T")


class LateExecutor(Executor):
    """A writer thread that is busy with something else until it is told to go on."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        self.waiting.append(lambda: done.set_result(fn(*args, **kwargs)))
        return done

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class Room(NamedTuple):
    outlet: Outlet
    kafka: FakeKafka
    clock: FakeClock
    spool: Spool
    keeper: DeadLetters
    settled: list[bytes]

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            self.clock.advance(0.5)
            await turns()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    clock, kafka, settled = FakeClock(), FakeKafka(), list[bytes]()
    clock.drive()
    metrics = Metrics(CollectorRegistry())
    spool = Spool(tmp_path / "spool.db", 1 << 20)
    delivery = Delivery(
        RetryPolicy(backoff_max_s=2.0),
        Breaker(BreakerPolicy(cooldown_s=2.0), clock.monotonic),
        split=partial(wire.split, codec=PLAIN),
        retire_s=1.0,
        clock=clock.monotonic,
        jitter=lambda: 0.5,
    )

    def settle(batch: Batch) -> None:
        settled.extend(record.value for record in wire.records(batch))

    outlet = Outlet(
        "dead_letters",
        delivery,
        kafka.connect,
        settled=lambda batch, offset, latency_s: keeper.acked(batch),
        refused=lambda batch, reason: None,
        ack_age_max_s=30.0,
        clock=clock,
        metrics=metrics,
    )
    keeper = DeadLetters(
        outlet, spool, InlineExecutor(), settle=settle, clock=clock, metrics=metrics
    )
    running = [asyncio.create_task(outlet.run()), asyncio.create_task(keeper.run())]
    await turns()
    yield Room(outlet, kafka, clock, spool, keeper, settled)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await outlet.close()
    spool.close()


async def test_with_a_topic_nothing_touches_the_disk(room: Room) -> None:
    room.outlet.admit(batch_of(b"a"))
    await room.pass_time(2)

    assert [b"a"] == room.settled == room.kafka.values()
    assert 0 == room.spool.records


async def test_without_a_topic_they_are_settled_on_disk(room: Room) -> None:
    """A watermark must not wait for a topic that may never come."""
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.outlet.admit(batch_of(b"a"))
    room.outlet.admit(batch_of(b"b"))
    await room.pass_time(4)

    assert [b"a", b"b"] == room.settled
    assert 2 == room.spool.records


async def test_they_move_in_order_and_leave_the_disk(room: Room) -> None:
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    for value in (b"a", b"b", b"c"):
        room.outlet.admit(batch_of(value))
    await room.pass_time(4)
    room.kafka.down = None
    await room.pass_time(10)

    assert [b"a", b"b", b"c"] == room.kafka.values()
    assert [b"a", b"b", b"c"] == room.settled, "settled once, not again on arrival"
    assert 0 == room.spool.records


async def test_one_that_fails_on_the_way_stays_on_disk_once(room: Room) -> None:
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.outlet.admit(batch_of(b"a"))
    await room.pass_time(4)
    assert 1 == room.spool.records
    room.kafka.fail("timeout")
    room.kafka.down = None
    await room.pass_time(1)

    await room.pass_time(20)

    assert [b"a"] == room.kafka.values()
    assert 0 == room.spool.records
    assert [b"a"] == room.settled


async def put_by(room: Room, *batches: Batch) -> None:
    """Leave ``batches`` on disk, as a topic that was missing for a while does."""
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    for batch in batches:
        room.outlet.admit(batch)
    await room.pass_time(4)
    assert sum(batch.count for batch in batches) == room.spool.records


async def test_one_that_is_cut_on_the_way_leaves_the_disk(room: Room) -> None:
    """The topic's limit may be smaller by now. A row that stayed would come again after each
    restart, and what is counted as on its way would never end."""
    await put_by(room, batch_of(b"a" * 100, b"b" * 100))
    room.kafka.message_bytes_max = 250
    room.kafka.down = None
    await room.pass_time(10)

    assert [b"a" * 100, b"b" * 100] == room.kafka.values()
    assert 0 == room.spool.records


async def test_a_slow_answer_moves_nothing_twice(room: Room) -> None:
    """Nothing goes twice while a producer lives (invariant 5)."""
    values = [b"%d" % n for n in range(8)]
    await put_by(room, *map(batch_of, values))
    room.kafka.down = None
    room.kafka.hold()
    await room.pass_time(40)
    assert "unanswered" == room.outlet.problem
    room.kafka.release()
    while not room.kafka.values():
        await turns(1)
    room.kafka.hold()  # the others are on their way still
    await room.pass_time(2)
    room.kafka.release()
    await room.pass_time(10)

    assert values == room.kafka.values()
    assert 0 == room.spool.records


async def test_a_stop_leaves_nothing_on_disk_that_has_arrived(room: Room) -> None:
    """Otherwise the next life sends it again."""
    await put_by(room, *(batch_of(b"%d" % n) for n in range(40)))
    room.kafka.down = None
    while not room.kafka.values():
        await room.pass_time(0.5)
    stopping = asyncio.create_task(room.keeper.finish())
    await turns()
    assert stopping.done()
    await room.pass_time(2)
    await room.keeper.flush()

    assert 0 < len(room.kafka.values()) < 40, "what is on disk may stay there"
    assert 40 == len(room.kafka.values()) + room.spool.records


async def test_a_stop_waits_until_what_was_taken_back_is_settled(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the outlet and the disk it is nowhere; the last checkpoint must come after."""
    slow = LateExecutor()
    monkeypatch.setattr(room.keeper, "_executor", slow)
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    room.outlet.admit(batch_of(b"a"))
    while not slow.waiting:
        await room.pass_time(0.5)
    assert room.outlet.empty.is_set()
    stopping = asyncio.create_task(room.keeper.finish())
    await turns()
    assert not stopping.done()
    assert [] == room.settled

    slow.go_on()
    await stopping
    assert [b"a"] == room.settled
    monkeypatch.undo()


async def test_what_is_on_disk_finds_its_way_to_a_topic_of_fewer_partitions(room: Room) -> None:
    await put_by(room, batch_of(b"a", partition=7), batch_of(b"b", partition=7))
    room.kafka.partitions = 3
    room.kafka.down = None
    await room.pass_time(20)

    assert [b"a", b"b"] == room.kafka.values(7 % 3)
    assert 0 == room.spool.records


async def test_an_outage_is_said_once_not_with_each_dead_letter(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    room.kafka.down = "topic_missing"
    room.kafka.fail("topic_missing")
    for number in range(10):
        room.outlet.admit(batch_of(b"%d" % number))
        await room.pass_time(4)

    assert 10 == room.spool.records
    said = [r for r in caplog.records if r.getMessage() == "dead_letters.put_by"]
    assert 1 == len(said)
