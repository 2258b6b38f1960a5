"""What the tests stand on: both brokers keep Kafka's contract, and faults can be injected."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordTooLargeError

from agent.demo.broker import EmbeddedKafka, EmbeddedKafkaError
from tests import real_kafka
from tests.conftest import Topics
from tests.patience import WITHIN_S

PARTITIONS = 3
PRODUCE = 0
NOT_LEADER = 6
MESSAGE_TOO_LARGE = 10


@dataclass
class Place:
    bootstrap: str
    topic: str


@pytest.fixture
def embedded_place(embedded: EmbeddedKafka) -> Place:
    embedded.create_topic("feedback", PARTITIONS)
    return Place(embedded.bootstrap_servers, "feedback")


@pytest.fixture
async def kafka_place(kafka: str, topics: Topics) -> Place:
    return Place(kafka, await topics(partitions=PARTITIONS))


@pytest.fixture(
    params=["embedded_place", pytest.param("kafka_place", marks=pytest.mark.kafka)],
    ids=["embedded", "kafka"],
)
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


@asynccontextmanager
async def producing(bootstrap: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        enable_idempotence=True,
        retry_backoff_ms=50,
        **options,
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def test_records_come_back_with_key_headers_and_order(place: Place) -> None:
    """What one producer sends to a partition is read from it once each and in that order."""
    headers = [("event_id", b"\x00\xff"), ("empty", b"")]
    async with producing(place.bootstrap) as producer:
        for n in range(300):
            await producer.send(
                place.topic, b"%d" % n, key=b"k%d" % n, partition=n % PARTITIONS, headers=headers
            )
        await producer.flush()

    records = await real_kafka.read_all(place.bootstrap, place.topic)

    assert [(p, b"%d" % n, b"k%d" % n) for p in range(PARTITIONS) for n in range(p, 300, 3)] == [
        (record.partition, record.value, record.key) for record in records
    ]
    assert {tuple(headers)} == {record.headers for record in records}


async def test_end_offsets_count_what_was_acknowledged(place: Place) -> None:
    async with producing(place.bootstrap) as producer:
        for partition in (0, 1, 1):
            await producer.send_and_wait(place.topic, b"x", partition=partition)

    assert {0: 1, 1: 2, 2: 0} == await real_kafka.end_offsets(place.bootstrap, place.topic)


async def test_reading_an_empty_topic_returns_at_once(place: Place) -> None:
    assert [] == await real_kafka.read_all(place.bootstrap, place.topic, idle_s=10 * WITHIN_S)


async def test_reading_creates_no_topic(place: Place) -> None:
    """Both brokers create a topic that is asked for by name: our reader must not."""
    for _ in range(2):
        with pytest.raises(LookupError, match="no topic absent"):
            await real_kafka.read_all(place.bootstrap, "absent")


@pytest.mark.kafka
async def test_topic_configs_reach_kafka(kafka: str, topics: Topics) -> None:
    topic = await topics(partitions=1, max_message_bytes=1000)

    async with producing(kafka) as producer:
        with pytest.raises((MessageSizeTooLargeError, RecordTooLargeError)):
            await producer.send_and_wait(topic, b"x" * 2000)


async def test_a_send_waits_while_brokers_are_down_and_arrives_when_they_are_up(
    embedded: EmbeddedKafka,
) -> None:
    embedded.create_topic("feedback", 1)
    async with producing(embedded.bootstrap_servers) as producer:
        await producer.send_and_wait("feedback", b"before", partition=0)

        embedded.broker_down()
        sent = await producer.send("feedback", b"during", partition=0)
        done, _ = await asyncio.wait({sent}, timeout=1.0)
        assert not done

        embedded.broker_up()
        await asyncio.wait_for(sent, WITHIN_S)

    records = await real_kafka.read_all(embedded.bootstrap_servers, "feedback")
    assert [b"before", b"during"] == [record.value for record in records]


async def test_one_broker_down_leaves_the_others_serving(embedded: EmbeddedKafka) -> None:
    embedded.create_topic("feedback", 2)
    embedded.leader("feedback", 0, 1)
    embedded.leader("feedback", 1, 2)
    async with producing(embedded.bootstrap_servers) as producer:
        embedded.broker_down(1)
        stuck = await producer.send("feedback", b"0", partition=0)
        await asyncio.wait_for(producer.send_and_wait("feedback", b"1", partition=1), WITHIN_S)
        assert not stuck.done()

        embedded.broker_up(1)
        await asyncio.wait_for(stuck, WITHIN_S)


async def test_a_partition_without_a_leader_waits_for_one(embedded: EmbeddedKafka) -> None:
    embedded.create_topic("feedback", 1)
    async with producing(embedded.bootstrap_servers) as producer:
        await producer.send_and_wait("feedback", b"before", partition=0)

        embedded.leader("feedback", 0, None)
        sent = await producer.send("feedback", b"during", partition=0)
        done, _ = await asyncio.wait({sent}, timeout=0.5)
        assert not done

        embedded.leader("feedback", 0, 2)
        await asyncio.wait_for(sent, WITHIN_S)


async def test_an_injected_error_reaches_the_client_once(embedded: EmbeddedKafka) -> None:
    """A retriable code is retried out of sight; one about the record fails its future."""
    embedded.create_topic("feedback", 1)
    async with producing(embedded.bootstrap_servers) as producer:
        embedded.fail(PRODUCE, NOT_LEADER)
        await producer.send_and_wait("feedback", b"retried", partition=0)

        embedded.fail(PRODUCE, MESSAGE_TOO_LARGE)
        with pytest.raises(MessageSizeTooLargeError):
            await producer.send_and_wait("feedback", b"refused", partition=0)

        await producer.send_and_wait("feedback", b"after", partition=0)

    records = await real_kafka.read_all(embedded.bootstrap_servers, "feedback")
    assert [b"retried", b"after"] == [record.value for record in records]


async def test_a_slow_broker_answers_late(embedded: EmbeddedKafka) -> None:
    embedded.create_topic("feedback", 1)
    embedded.leader("feedback", 0, 1)
    async with producing(embedded.bootstrap_servers) as producer:
        await producer.send_and_wait("feedback", b"quick", partition=0)

        embedded.rtt(1, 400)
        began = time.monotonic()
        await producer.send_and_wait("feedback", b"slow", partition=0)
        assert time.monotonic() - began >= 0.4
        embedded.rtt(1, 0)


def test_a_refused_call_names_itself(embedded: EmbeddedKafka) -> None:
    with pytest.raises(EmbeddedKafkaError, match="set_down"):
        embedded.broker_down(99)


def test_two_clusters_live_side_by_side(embedded: EmbeddedKafka) -> None:
    with EmbeddedKafka(brokers=1) as other:
        assert other.bootstrap_servers.count(":") == 1
        assert not set(other.bootstrap_servers.split(",")) & set(
            embedded.bootstrap_servers.split(",")
        )


def test_outside_of_its_block_it_is_not_usable() -> None:
    cluster = EmbeddedKafka()
    with contextlib.ExitStack() as block:
        block.enter_context(cluster)
        assert cluster.bootstrap_servers

    with pytest.raises(AssertionError, match="with block"):
        cluster.create_topic("feedback", 1)
