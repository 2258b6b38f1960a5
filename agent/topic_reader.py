"""Reads a topic from beginning to end as it is now, for commands. No group, nothing is committed.

The principal needs ``Describe`` and ``Read`` on the topic; a node's own may only write.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition, errors

import agent.producer  # noqa: F401 - a consumer, too, would create the topic that it asks for
from agent import answers
from agent.answers import HandshakeFailed
from agent.config import Config
from agent.errors import SinkUnavailable

FETCH_S = 1.0
STALL_S = 30.0
"""Without a record for so long, a partition's leader is away."""


class Read(NamedTuple):
    """One record, as far as commands look at it."""

    partition: int
    kafka_offset: int
    timestamp_ms: int
    value: bytes
    headers: dict[str, bytes]


class Security(Protocol):
    async def current(self) -> Mapping[str, object]: ...


class Range(NamedTuple):
    """What to read: from the first record at or after ``since_ms``, or only one record."""

    since_ms: int | None = None
    only: tuple[int, int] | None = None
    """Partition and kafka_offset."""


async def read(
    config: Config, topic: str, security: Security, wanted: Range
) -> AsyncGenerator[Read, None]:
    """Yield what ``topic`` holds, partition by partition as it comes.

    Raises ``SinkUnavailable``.
    """
    try:
        async with _consumer(config, security) as consumer:
            ends = await _begin(consumer, topic, wanted)
            async with aclosing(_records(consumer, ends)) as records:
                async for record in records:
                    yield record
                    if wanted.only is not None:
                        return
    except HandshakeFailed as failed:
        raise SinkUnavailable(failed.reason, failed.detail) from None
    except (TimeoutError, OSError, errors.KafkaError) as error:
        raise answers.unavailable(error) from error


@asynccontextmanager
async def _consumer(config: Config, security: Security) -> AsyncIterator[AIOKafkaConsumer]:
    timeout_s = config.kafka.request_timeout_s
    consumer = AIOKafkaConsumer(
        bootstrap_servers=list(config.kafka.bootstrap_servers),
        client_id=config.kafka.client_id,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        request_timeout_ms=int(timeout_s * 1000),
        **await security.current(),
    )
    try:
        async with asyncio.timeout(2 * timeout_s):
            await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def _begin(
    consumer: AIOKafkaConsumer, topic: str, wanted: Range
) -> dict[TopicPartition, int]:
    """Stand where reading begins; return where each partition that has something ends."""
    client = consumer._client  # noqa: SLF001 - a topic that is asked for by name may be created
    client.add_topic(topic)
    await client.force_metadata_update()
    known = client.cluster.partitions_for_topic(topic)
    if not known:
        denied = topic in client.cluster.unauthorized_topics
        raise SinkUnavailable("topic_denied" if denied else "topic_missing", topic)
    assigned = [TopicPartition(topic, number) for number in sorted(known)]
    if wanted.only is not None:
        assigned = [tp for tp in assigned if tp.partition == wanted.only[0]]
    if not assigned:
        return {}
    consumer.assign(assigned)
    ends = await consumer.end_offsets(assigned)
    begins = await consumer.beginning_offsets(assigned)
    starts = dict(begins)
    if wanted.only is not None:
        starts = {tp: max(begins[tp], wanted.only[1]) for tp in assigned}
    elif wanted.since_ms is not None:
        found = await consumer.offsets_for_times(dict.fromkeys(assigned, wanted.since_ms))
        starts = {tp: ends[tp] if at is None else at.offset for tp, at in found.items()}
    for tp, start in starts.items():
        consumer.seek(tp, start)
    return {tp: end for tp, end in ends.items() if starts[tp] < end}


async def _records(
    consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]
) -> AsyncGenerator[Read, None]:
    behind, silent_s = {*ends}, 0.0
    while behind:
        fetched = await consumer.getmany(*behind, timeout_ms=int(FETCH_S * 1000))
        silent_s = 0.0 if fetched else silent_s + FETCH_S
        if silent_s >= STALL_S:
            raise SinkUnavailable("timeout", f"no answer of {len(behind)} partitions")
        for tp, records in fetched.items():
            for record in records:
                if record.offset < ends[tp]:
                    headers = {name: value or b"" for name, value in record.headers}
                    yield Read(tp.partition, record.offset, record.timestamp,
                               record.value or b"", headers)  # fmt: skip
        # The position, not the last record: a transaction's marker takes an offset, too.
        behind = {tp for tp in behind if await consumer.position(tp) < ends[tp]}
