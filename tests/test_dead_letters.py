"""Dead letters without a topic: on disk, settled, and moved once the topic is there."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
