"""One contract for every sink, the fake one included; then the outlet over the fake."""

import asyncio
import gc
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client import CollectorRegistry

from agent import wire
from agent.answers import REASONS
from agent.core.batch import Batch
from agent.core.body import Headers
from agent.core.breaker import State
from agent.core.delivery import UNANSWERED, Phase
from agent.core.lanes import WINDOW
from agent.core.ledger import Ledger
from agent.core.policy import BreakerPolicy, RetryPolicy
from agent.demo.broker import EmbeddedKafka
from agent.errors import RecordRefused, SinkUnavailable
from agent.kafka import KafkaSink
from agent.sink import LOOK_S, RENEW_AGAIN_S, Outlet, Sink
from agent.telemetry import SEND_FAILURES, Metrics
from agent.wire import codec
from tests import real_kafka
from tests.conftest import Topics
from tests.fakes import (
    FakeClock,
    FakeKafka,
    batch_of,
    chunks_of,
    delivery_of,
    settle,
    turns,
)
from tests.patience import WITHIN_S

PARTITIONS = 3
TIMEOUT_S = 30.0
NOBODY = "127.0.0.1:1"
"""Where nothing listens; a port that was free a moment ago may be somebody's by now."""
GZIP = codec("gzip", None)
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")

Arrived = tuple[int, bytes | None, bytes, Headers]


@dataclass
class Place:
    """A topic of ``PARTITIONS`` and the way to it."""

    connect: Callable[[], Awaitable[Sink]]
    arrived: Callable[[], Awaitable[list[Arrived]]]


def through_aiokafka(bootstrap: str, topic: str) -> Place:
    async def connect() -> Sink:
        return await KafkaSink.connect(
            tuple(bootstrap.split(",")), topic, client_id="test", timeout_s=TIMEOUT_S
        )

    async def arrived() -> list[Arrived]:
        return [
            (record.partition, record.key, record.value, list(record.headers))
            for record in await real_kafka.read_all(bootstrap, topic)
        ]

    return Place(connect, arrived)


def in_memory(kafka: FakeKafka) -> Place:
    async def arrived() -> list[Arrived]:
        return [
            (partition, record.key, record.value, record.headers)
            for partition in range(PARTITIONS)
            for record in kafka.logs[partition]
        ]

    return Place(kafka.connect, arrived)


@pytest.fixture
def fake_place() -> Place:
    return in_memory(FakeKafka(PARTITIONS))


@pytest.fixture
def embedded_place(embedded: EmbeddedKafka) -> Place:
    embedded.create_topic("feedback", PARTITIONS)
    return through_aiokafka(embedded.bootstrap_servers, "feedback")


@pytest.fixture
async def kafka_place(kafka: str, topics: Topics) -> Place:
    return through_aiokafka(kafka, await topics(partitions=PARTITIONS))


KAFKA = pytest.param("kafka_place", marks=pytest.mark.kafka, id="kafka")


@pytest.fixture(
    params=[pytest.param("fake_place", id="fake"), pytest.param("embedded_place", id="embedded"),
            KAFKA]
)  # fmt: skip
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@asynccontextmanager
async def connected(place: Place) -> AsyncIterator[Sink]:
    sink = await place.connect()
    try:
        yield sink
    finally:
        await sink.close()


async def assert_no_more_than(before: set[asyncio.Task[Any]]) -> None:
    """Compare tasks after the loop had a turn to end those that are cancelled already."""
    await turns(5)
    assert before == asyncio.all_tasks()


# ---- the contract


async def test_the_topic_is_described(place: Place) -> None:
    async with connected(place) as sink:
        assert (PARTITIONS, 1_048_588) == (sink.topic.partitions, sink.topic.message_bytes_max)


async def test_send_returns_the_first_records_kafka_offset(place: Place) -> None:
    async with connected(place) as sink:
        first = [await sink.send(batch_of(b"1", b"2", partition=p)) for p in range(PARTITIONS)]
        second = await sink.send(batch_of(b"3", partition=1))

    assert ([0] * PARTITIONS, 2) == (first, second)


@pytest.mark.parametrize(
    "compressed",
    [codec(name, None) for name in CODECS],
    ids=CODECS,
)
async def test_records_arrive_with_key_and_headers(place: Place, compressed: wire.Codec) -> None:
    async with connected(place) as sink:
        await sink.send(batch_of(b"one", b"two", partition=2, key=b"\x00k", compressed=compressed))
        await sink.send(batch_of(b"three", partition=0))

    assert [
        (0, None, b"three", [("event_id", b"three")]),
        (2, b"\x00k", b"one", [("event_id", b"one")]),
        (2, b"\x00k", b"two", [("event_id", b"two")]),
    ] == await place.arrived()


async def test_a_partition_keeps_its_order_with_a_window_of_sends_out(place: Place) -> None:
    batches = [batch_of(b"%d" % n, b"%d+" % n, partition=1) for n in range(20)]
    async with connected(place) as sink:
        out: list[asyncio.Future[int]] = []
        for batch in batches:
            out.append(sink.send(batch))
            if len(out) >= WINDOW:
                await out[-WINDOW]
        kafka_offsets = await asyncio.gather(*out)

    assert list(range(0, 40, 2)) == kafka_offsets
    assert [v for n in range(20) for v in (b"%d" % n, b"%d+" % n)] == [
        value for _, _, value, _ in await place.arrived()
    ]


async def test_a_partition_that_is_not_there_is_a_changed_topic(place: Place) -> None:
    async with connected(place) as sink:
        with pytest.raises(SinkUnavailable) as caught:
            await sink.send(batch_of(b"x", partition=PARTITIONS))

    assert "topic_changed" == caught.value.reason


async def test_close_leaves_no_task_behind(place: Place) -> None:
    before = asyncio.all_tasks()
    async with connected(place) as sink:
        await sink.send(batch_of(b"x"))

    await assert_no_more_than(before)


async def test_a_batch_of_a_closed_sink_may_be_sent_by_the_next(place: Place) -> None:
    batch = batch_of(b"again", compressed=GZIP)
    for kafka_offset in range(2):
        async with connected(place) as sink:
            assert kafka_offset == await sink.send(batch)


@pytest.fixture
def small_fake_place() -> Place:
    return in_memory(FakeKafka(PARTITIONS, message_bytes_max=2000))


@pytest.fixture
async def small_kafka_place(kafka: str, topics: Topics) -> Place:
    topic = await topics(partitions=PARTITIONS, max_message_bytes=2000)
    return through_aiokafka(kafka, topic)


@pytest.fixture(
    params=[
        pytest.param("small_fake_place", id="fake"),
        pytest.param("small_kafka_place", marks=pytest.mark.kafka, id="kafka"),
    ]
)
def small_place(request: pytest.FixtureRequest) -> Place:
    """A topic that takes batches of 2000 bytes; the embedded broker has no such setting."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


async def test_what_is_too_large_is_refused_and_ends_its_producer(small_place: Place) -> None:
    """Why a partition's failure retires the producer: nothing after it can be in sequence."""
    async with connected(small_place) as sink:
        assert 2000 == sink.topic.message_bytes_max
        assert 0 == await sink.send(batch_of(b"fits"))

        refused, behind = await asyncio.gather(
            sink.send(batch_of(b"x" * 4000)), sink.send(batch_of(b"y")), return_exceptions=True
        )

    assert isinstance(refused, RecordRefused)
    assert "refused_too_large" == refused.reason
    assert isinstance(behind, SinkUnavailable)
    assert "sequence" == behind.reason
    assert [b"fits"] == [value for _, _, value, _ in await small_place.arrived()]


@pytest.mark.kafka
async def test_a_missing_topic_is_said_and_not_created_by_asking(kafka: str) -> None:
    """This broker would create it: auto.create.topics.enable is true by default."""
    missing = f"missing-{uuid4().hex}"
    before = asyncio.all_tasks()

    for _ in range(2):
        with pytest.raises(SinkUnavailable) as caught:
            await through_aiokafka(kafka, missing).connect()
        assert "topic_missing" == caught.value.reason

    await assert_no_more_than(before)
    await asyncio.sleep(0.5)  # a topic is created after the answer that says it is not there
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        assert missing not in await admin.list_topics()
    finally:
        await admin.close()


async def test_nobody_at_the_address_is_unreachable() -> None:
    before = asyncio.all_tasks()

    with pytest.raises(SinkUnavailable) as caught:
        await through_aiokafka(NOBODY, "feedback").connect()

    assert "unreachable" == caught.value.reason
    await assert_no_more_than(before)


async def test_a_broker_that_accepts_and_says_nothing_is_given_up_in_time() -> None:
    """A connection alone proves nothing: a stopped process still has its port open."""
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        bootstrap = f"127.0.0.1:{mute.getsockname()[1]}"
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(SinkUnavailable):
                await KafkaSink.connect((bootstrap,), "feedback", client_id="t", timeout_s=0.5)

    await assert_no_more_than(before)


async def test_close_is_bounded_while_every_broker_is_away(
    embedded: EmbeddedKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """aiokafka's own ``stop`` waits for ever here."""
    embedded.create_topic("feedback", PARTITIONS)
    before = asyncio.all_tasks()
    sink = await through_aiokafka(embedded.bootstrap_servers, "feedback").connect()
    await sink.send(batch_of(b"before"))
    embedded.broker_down()
    sends = [sink.send(batch_of(b"x", partition=p)) for p in (0, 0, 1)]
    done, _ = await asyncio.wait(sends, timeout=1.5)  # long enough for a try to fail
    assert not done

    async with asyncio.timeout(WITHIN_S):
        await sink.close()

    answers = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), WITHIN_S)
    assert all(isinstance(answer, SinkUnavailable) for answer in answers), answers
    await assert_no_more_than(before)
    del sink, sends, answers, done
    gc.collect()
    assert "never retrieved" not in caplog.text, "nobody can answer for a closed producer's futures"
    assert "Exception in callback" not in caplog.text


async def test_close_is_bounded_while_a_cancelled_send_is_out(embedded: EmbeddedKafka) -> None:
    embedded.create_topic("feedback", PARTITIONS)
    before = asyncio.all_tasks()
    sink = await through_aiokafka(embedded.bootstrap_servers, "feedback").connect()
    embedded.broker_down()
    send = sink.send(batch_of(b"x"))
    await asyncio.sleep(0.3)
    send.cancel()

    async with asyncio.timeout(WITHIN_S):
        await sink.close()
    await asyncio.gather(send, return_exceptions=True)

    await assert_no_more_than(before)


def test_every_reason_of_a_sink_has_its_counter() -> None:
    assert {*REASONS, "topic_changed", UNANSWERED} == set(SEND_FAILURES)


async def test_close_raises_nothing_though_the_client_broke(
    embedded_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What broke inside one producer must end that producer, not the agent."""
    sink = await embedded_place.connect()
    assert isinstance(sink, KafkaSink)

    async def broken(*_: object) -> bool:
        raise RuntimeError("planted")

    client = sink._producer.client
    monkeypatch.setattr(client, "_metadata_update", broken)
    client.force_metadata_update()
    await turns()
    assert client._sync_task.done()

    await sink.close()
    assert not [c for c in client._conns.values() if c.connected()]


async def test_nothing_overtakes_a_batch_that_waits_to_be_handed_over(
    embedded_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in a task; one that comes after it could be handed over at once."""
    async with connected(embedded_place) as sink:
        with monkeypatch.context() as patch:
            patch.setattr("agent.producer.hand_over", lambda *_: None)
            waits = sink.send(batch_of(b"first"))
        follows = sink.send(batch_of(b"second"))

        assert [0, 1] == [await waits, await follows]


# ---- the outlet


@dataclass(repr=False)
class Node:
    outlet: Outlet
    kafka: FakeKafka
    clock: FakeClock
    registry: CollectorRegistry
    settled: list[bytes] = field(default_factory=list)
    refused: list[tuple[bytes, str]] = field(default_factory=list)

    def admit(self, *values: bytes, partition: int = 0) -> Batch:
        batch = batch_of(*values, partition=partition)
        self.outlet.admit(batch)
        return batch

    async def let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await turns()

    async def until_empty(self) -> None:
        for _ in range(200):
            await turns()
            if self.outlet.empty.is_set():
                return
            due_s = self.outlet.delivery.due_s
            if due_s is not None and self.outlet.delivery.phase is not Phase.LIVE:
                self.clock.now = max(self.clock.now, due_s)
        raise AssertionError(self.outlet.status())

    def count(self, name: str, **labels: str) -> float | None:
        labels = {"sink": "events", **labels}
        return self.registry.get_sample_value(f"feedback_agent_{name}", labels)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with running(BreakerPolicy()) as found:
        yield found


@asynccontextmanager
async def running(
    breaker: BreakerPolicy, bytes_per_s_max: float | None = None
) -> AsyncIterator[Node]:
    clock, kafka, registry = FakeClock(), FakeKafka(), CollectorRegistry()
    clock.drive()
    metrics = Metrics(registry)
    delivery = delivery_of(
        clock.monotonic, retry=RetryPolicy(), breaker=breaker, bytes_per_s_max=bytes_per_s_max
    )

    def settled(batch: Batch, kafka_offset: int, latency_s: float) -> None:
        values = [record.value for record in wire.records(batch)]
        at = slice(kafka_offset, kafka_offset + len(values))
        assert values == kafka.values(batch.partition)[at]
        found.settled += values
        settle(batch)

    def refused(batch: Batch, reason: str) -> None:
        found.refused += [(record.value, reason) for record in wire.records(batch)]
        settle(batch)

    outlet = Outlet(
        "events",
        delivery,
        kafka.connect,
        settled=settled,
        refused=refused,
        clock=clock,
        metrics=metrics,
    )
    found = Node(outlet, kafka, clock, registry)
    task = asyncio.create_task(outlet.run())
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await outlet.close()
    assert not kafka.living, "a producer was left open"
    current = asyncio.current_task()
    assert current is not None
    await assert_no_more_than({current})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "agent.sink"]


async def test_what_is_admitted_is_settled(node: Node) -> None:
    node.admit(b"a", b"b", partition=0)
    node.admit(b"c", partition=1)
    assert not node.outlet.empty.is_set()

    await node.until_empty()

    assert {b"a", b"b", b"c"} == set(node.settled)
    assert ([b"a", b"b"], [b"c"]) == (node.kafka.values(0), node.kafka.values(1))
    assert node.outlet.problem is None


def counted_ticks(node: Node) -> list[float]:
    """Return when ``run`` looked whether something is due, from now on."""
    ticks: list[float] = []
    tick = node.outlet.delivery.tick

    def counted() -> list[object]:
        ticks.append(node.clock.now)
        return list(tick())

    node.outlet.delivery.tick = counted  # type: ignore[assignment,method-assign]
    return ticks


async def test_waiting_for_something_to_do_lets_others_run(node: Node) -> None:
    """An outlet with nothing due sleeps; one that spins would stop the whole agent."""
    await node.until_empty()
    ticks = counted_ticks(node)
    await turns(200)

    assert len(ticks) <= 1


async def test_what_is_sent_and_acknowledged_wakes_nobody(node: Node) -> None:
    """At low load that is most of what happens, and it only puts off what is due."""
    node.admit(b"first")
    await node.until_empty()
    await node.let_pass(0.1)
    ticks = counted_ticks(node)
    for number in range(20):
        node.admit(b"%d" % number, partition=number % 12)
        await node.until_empty()

    assert not ticks


async def test_what_is_due_before_the_next_look_is_not_late() -> None:
    """The first batch after a rest sets a time that nobody waits for yet."""
    async with running(BreakerPolicy(ack_age_max_s=0.5)) as node:
        node.admit(b"first")
        await node.until_empty()
        await node.let_pass(LOOK_S)
        node.kafka.hold()
        node.admit(b"a")
        await turns()

        await node.let_pass(0.51)
        assert UNANSWERED == node.outlet.problem
        assert 0.0 == node.count("sink_up")

        node.kafka.release()
        await node.until_empty()
        await turns()
        assert 1.0 == node.count("sink_up"), "that answers come again is said at once"


async def test_what_waits_for_the_rate_after_an_acknowledgement_goes_when_it_is_due() -> None:
    """Until then it had waited for its partition's first batch, and nobody for the rate."""
    async with running(BreakerPolicy(), bytes_per_s_max=1000) as node:
        await asyncio.wait_for(node.outlet.described.wait(), WITHIN_S)
        await turns()
        for value in (b"a", b"b", b"c"):
            node.admit(value * 800)
        await turns()
        assert [b"a" * 800, b"b" * 800] == node.kafka.values()

        await node.let_pass(1.0)
        assert [b"a" * 800, b"b" * 800, b"c" * 800] == node.kafka.values()


async def test_the_topic_is_known_once_connected(node: Node) -> None:
    await asyncio.wait_for(node.outlet.described.wait(), WITHIN_S)

    assert node.outlet.topic is not None
    assert 12 == node.outlet.topic.partitions


async def test_batches_that_stay_unanswered_are_a_problem_that_goes_away(node: Node) -> None:
    """With every broker away nothing fails; an operator must be told all the same."""
    node.admit(b"first")
    await node.until_empty()
    node.kafka.hold()
    node.admit(b"a")
    await turns()
    assert node.outlet.problem is None

    await node.let_pass(30.1)
    assert "unanswered" == node.outlet.problem
    assert State.OPEN is node.outlet.delivery.breaker.state
    assert 0.0 == node.count("sink_up")

    node.kafka.release()
    await node.until_empty()
    assert node.outlet.problem is None
    assert node.outlet.delivery.breaker.allow()
    await node.let_pass(5.0)
    assert 1.0 == node.count("sink_up")


async def test_a_failure_retires_once_and_sends_again_in_order(node: Node) -> None:
    node.admit(b"first")
    await node.until_empty()
    node.kafka.fail("timeout")
    for n in range(6):
        node.admit(b"%d" % n)
        node.admit(b"%d'" % n, partition=1)

    await node.until_empty()

    assert [b"first", *(b"%d" % n for n in range(6))] == node.kafka.values(0)
    assert [b"%d'" % n for n in range(6)] == node.kafka.values(1)
    assert 1.0 == node.count("producer_retirements_total")
    assert 13 == len(node.settled) == len(set(node.settled))


async def test_a_lost_answer_costs_a_copy_and_no_order(node: Node) -> None:
    node.kafka.fail("timeout", appended=True)
    node.admit(b"a")
    node.admit(b"b")

    await node.until_empty()

    assert [b"a", b"a", b"b"] == node.kafka.values(0)
    assert [b"a", b"b"] == node.settled


async def test_an_outage_is_said_once_and_so_is_its_end(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.kafka.down = "unreachable"
    with caplog.at_level(logging.INFO):
        node.admit(b"a")
        for _ in range(10):
            await node.let_pass(60.0)
        assert ["sink.down"] == said(caplog)
        assert 0.0 == node.count("sink_up")
        assert "unreachable" == node.outlet.problem
        failures = node.count("send_failures_total", reason="unreachable")
        assert failures is not None
        assert failures >= 10

        node.kafka.down = None
        await node.let_pass(60.0)
        await node.until_empty()

    assert ["sink.down", "sink.up"] == said(caplog)
    assert 1.0 == node.count("sink_up")
    assert [b"a"] == node.kafka.values(0)


async def test_a_topic_that_may_be_described_and_not_written_to_is_said_once(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """To be connected is no sign that a send will do."""
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            node.kafka.fail("topic_denied")
        node.admit(b"a")
        for _ in range(4):
            await node.let_pass(60.0)
        await node.until_empty()

    assert ["sink.up", "sink.down", "sink.up"] == said(caplog)
    assert [b"a"] == node.kafka.values(0)


async def test_another_reason_is_said_anew(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    for reason in ("unreachable", "unreachable", "authentication"):
        node.kafka.down = reason
        await node.let_pass(60.0)

    assert ["sink.down", "sink.down"] == said(caplog)


async def test_a_refused_record_is_isolated_and_the_others_arrive(node: Node) -> None:
    """Bisected: the one bad record of a batch is refused, its neighbours keep their order."""
    node.kafka.refuses = lambda record: record.value == b"5"
    ledger = Ledger(0, b"")
    (chunk,) = chunks_of(ledger, 100)
    batch = batch_of(*(b"%d" % n for n in range(10)), chunks=[chunk])
    ledger.reserve(chunk)
    node.outlet.admit(batch)
    node.admit(b"behind")

    await node.until_empty()

    assert [(b"5", "refused_invalid")] == node.refused
    assert [b"%d" % n for n in range(10) if n != 5] + [b"behind"] == node.kafka.values(0)
    assert (100, 0) == (ledger.watermark, chunk.open_batches)
    assert 0.0 == node.clock.now, "isolating needs no backoff: Kafka answers"


async def test_a_hanging_producer_is_replaced_and_its_batches_go_again(node: Node) -> None:
    """One partition fails and another says nothing: the retirement is bounded."""
    node.admit(b"first", partition=1)
    await node.until_empty()
    node.kafka.fail("not_enough_replicas")
    node.admit(b"failing", partition=0)
    await turns()
    assert Phase.DOWN is node.outlet.delivery.phase
    await node.let_pass(1.0)
    assert [b"failing"] == node.kafka.values(0)

    node.kafka.hold()
    node.admit(b"stuck", partition=1)
    await turns()
    node.outlet._carry_out(node.outlet.delivery._retire("timeout"))
    await node.let_pass(10.0)
    node.kafka.release()
    await node.until_empty()

    assert [b"first", b"stuck"] == node.kafka.values(1)


async def test_a_smaller_topic_gets_what_was_bound_beyond_its_end(node: Node) -> None:
    await node.until_empty()
    await node.outlet.described.wait()
    node.kafka.partitions = 4
    node.admit(b"moved", partition=11)

    await node.until_empty()

    assert [b"moved"] == node.kafka.values(3)
    assert node.outlet.topic is not None
    assert 4 == node.outlet.topic.partitions


async def test_what_a_retired_producer_was_given_is_counted_as_sent_again(node: Node) -> None:
    """What waited behind it goes for the first time, and is no retry."""
    node.kafka.fail("timeout")
    for n in range(6):
        node.admit(b"%d" % n)
    await node.until_empty()

    assert 1.0 == node.count("retries_total")  # to a partition that proved nothing, one goes alone


async def test_the_state_of_the_breaker_is_the_one_that_is_1(node: Node) -> None:
    states = {state: node.count("breaker_state", state=state.value) for state in State}
    assert {State.CLOSED: 1, State.OPEN: 0, State.HALF_OPEN: 0} == states

    node.kafka.hold()
    node.admit(b"a")
    await turns()
    await node.let_pass(30.1)

    states = {state: node.count("breaker_state", state=state.value) for state in State}
    assert {State.CLOSED: 0, State.OPEN: 1, State.HALF_OPEN: 0} == states


async def test_a_renewal_loses_nothing_and_sends_nothing_twice(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """The old producer goes on until all that it has is answered; it has not failed."""
    node.admit(b"a")
    await node.until_empty()
    (old,) = node.kafka.living
    caplog.clear()
    with caplog.at_level(logging.INFO):
        node.kafka.hold()
        node.admit(b"b")
        node.outlet.renew()
        await turns()
        assert 2 == len(node.kafka.living)
        node.admit(b"c")
        await turns()
        node.kafka.release()
        await node.until_empty()
    assert [b"a", b"b", b"c"] == node.kafka.values() == node.settled
    assert old not in node.kafka.living
    assert 1 == len(node.kafka.living)
    assert 0 == node.count("producer_retirements_total")
    assert ["sink.renewed"] == said(caplog)


async def test_a_producer_stays_while_brokers_do_not_let_in_the_next_one(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.admit(b"a")
    await node.until_empty()
    living = set(node.kafka.living)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        node.kafka.down = "authentication"
        node.outlet.renew()
        node.admit(b"b")
        await node.until_empty()
        assert living == node.kafka.living
        assert node.outlet.problem is None
        node.kafka.down = None
        await node.let_pass(RENEW_AGAIN_S)
        await node.let_pass(0)
    assert not living & node.kafka.living
    assert ["sink.not_renewed", "sink.renewed"] == said(caplog)


async def test_a_renewal_that_another_overtakes_leaves_what_came_last(node: Node) -> None:
    """The first one waits for an answer, and is connected with what was there before."""
    node.admit(b"a")
    await node.until_empty()
    node.kafka.hold()
    node.admit(b"b")
    for message_bytes_max in (1000, 2000):
        node.kafka.message_bytes_max = message_bytes_max
        node.outlet.renew()
        await turns()
    node.kafka.release()
    await node.until_empty()
    await node.let_pass(RENEW_AGAIN_S)
    await node.let_pass(0)
    assert node.outlet.topic is not None
    assert 2000 == node.outlet.topic.message_bytes_max
    assert 1 == len(node.kafka.living)
    assert [b"a", b"b"] == node.kafka.values() == node.settled


async def test_a_renewal_that_failed_is_not_tried_again_once_another_came(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.admit(b"a")
    await node.until_empty()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        node.kafka.down = "authentication"
        node.outlet.renew()
        await turns()
        node.kafka.down = None
        node.outlet.renew()
        await turns()
        await node.let_pass(RENEW_AGAIN_S)
        await node.let_pass(RENEW_AGAIN_S)
    assert ["sink.not_renewed", "sink.renewed"] == said(caplog)


async def test_a_renewal_in_an_outage_waits_for_the_next_producer(node: Node) -> None:
    node.kafka.down = "unreachable"
    node.admit(b"a")
    await turns()
    node.outlet.renew()
    await turns()
    assert not node.kafka.living
    node.kafka.down = None
    await node.until_empty()
    assert 1 == len(node.kafka.living)


async def test_close_lets_go_of_what_is_pending(node: Node) -> None:
    """What has no answer is neither settled nor refused: it stays above the watermark."""
    await node.outlet.described.wait()
    node.kafka.hold()
    node.admit(b"a")
    await turns()

    await node.outlet.close()

    assert ([], []) == (node.settled, node.refused)
    assert 1 == node.outlet.delivery.queued


async def test_close_in_a_retirement_still_closes_the_producer(node: Node) -> None:
    """The producer of a retirement is nobody's any more but the closing task's."""
    await node.outlet.described.wait()
    node.kafka.fail("timeout")
    node.admit(b"a")
    while node.outlet.delivery.phase is not Phase.CLOSING:
        await turns(1)
    await turns(2)

    await node.outlet.close()

    assert not node.kafka.living


async def test_a_broken_invariant_in_a_send_ends_run() -> None:
    """An AssertionError must end the process, not vanish with the task it happened in."""
    clock, kafka = FakeClock(), FakeKafka()

    def broken(batch: Batch, kafka_offset: int, latency_s: float) -> None:
        raise AssertionError("settled twice")

    delivery = delivery_of(clock.monotonic, retry=RetryPolicy())
    outlet = Outlet(
        "events",
        delivery,
        kafka.connect,
        settled=broken,
        refused=lambda batch, reason: None,
        clock=clock,
        metrics=Metrics(CollectorRegistry()),
    )
    outlet.admit(batch_of(b"a"))

    with pytest.raises(AssertionError, match="settled twice"):
        await asyncio.wait_for(outlet.run(), WITHIN_S)
    await outlet.close()
