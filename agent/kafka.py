"""One producer's life: aiokafka held so that it keeps the promises of ``core.delivery``.

What aiokafka does that shapes this room (versions 0.14.x, read in its source):

* defaults are acks=1 without idempotence, and metadata requests that let a broker create topics;
* with every broker away nothing fails: futures stay pending and ``stop()`` waits for them;
* ``start()`` and ``stop()`` have no bound of their own, and a cancelled sender waits for
  requests that wait for metadata, so every step of the end is bounded here;
* cancelling a future does not unsend its batch.
"""

import asyncio
import contextlib
import functools
import random
import weakref
from itertools import chain
from typing import NamedTuple

import aiokafka.client
from aiokafka import AIOKafkaProducer, errors
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest

from agent import wire
from agent.core.batch import Batch
from agent.errors import RecordRefused, SinkUnavailable

# A metadata request with no wish of its own lets the broker create the topic; a topic that is
# deleted under us would come back with one partition and nobody's settings.
aiokafka.client.MetadataRequest = functools.partial(
    MetadataRequest, allow_auto_topic_creation=False
)

MESSAGE_BYTES_MAX = 1_048_588
"""Kafka's default ``max.message.bytes``, used where we may not describe the topic."""

_CLOSE_S = 2.0
_TOPIC_RESOURCE = 2
_DESCRIBED = ["max.message.bytes", "min.insync.replicas"]

_REFUSED: dict[type[Exception], str] = {
    errors.MessageSizeTooLargeError: "refused_too_large",
    errors.RecordListTooLargeError: "refused_too_large",
    errors.RecordTooLargeError: "refused_too_large",
    errors.InvalidTimestampError: "refused_invalid",
}
"""The closed list of errors that are about a record. Anything else is never a reason to drop."""

_UNAVAILABLE: dict[type[BaseException], str] = {
    errors.TopicAuthorizationFailedError: "topic_denied",
    errors.ClusterAuthorizationFailedError: "cluster_denied",
    errors.UnknownTopicOrPartitionError: "topic_missing",
    errors.InvalidTopicError: "topic_missing",
    errors.AuthenticationFailedError: "authentication",
    errors.AuthenticationMethodNotSupported: "authentication",
    errors.SaslAuthenticationFailed: "authentication",
    errors.UnsupportedSaslMechanismError: "authentication",
    errors.KafkaConnectionError: "unreachable",
    errors.NodeNotReadyError: "unreachable",
    errors.NoBrokersAvailable: "unreachable",
    errors.NotLeaderForPartitionError: "no_leader",
    errors.LeaderNotAvailableError: "no_leader",
    errors.NotEnoughReplicasError: "not_enough_replicas",
    errors.NotEnoughReplicasAfterAppendError: "not_enough_replicas",
    errors.RequestTimedOutError: "timeout",
    errors.KafkaTimeoutError: "timeout",
    errors.OutOfOrderSequenceNumber: "sequence",
    errors.UnknownProducerId: "sequence",
    errors.InvalidProducerEpoch: "sequence",
    errors.ProducerFenced: "sequence",
    errors.KafkaStorageError: "broker_storage",
    TimeoutError: "timeout",
    OSError: "unreachable",
}

REASONS = (*sorted(set(_UNAVAILABLE.values())), "kafka_error")


class Topic(NamedTuple):
    """What was described before the first send. None: we may not ask."""

    name: str
    partitions: int
    replication: int
    min_insync_replicas: int | None
    message_bytes_max: int


class KafkaSink:
    """A living producer for one topic. Made by ``connect``, ended by ``close``, never reused."""

    def __init__(self, producer: AIOKafkaProducer, topic: Topic) -> None:
        self._producer = producer
        self.topic = topic
        self._requests = _record_requests(producer)

    @classmethod
    async def connect(
        cls, bootstrap_servers: tuple[str, ...], topic: str, *, client_id: str, timeout_s: float
    ) -> "KafkaSink":
        """Start a producer and describe the topic, within about ``2 * timeout_s``.

        Raises ``SinkUnavailable``, with everything closed again.
        """
        producer = AIOKafkaProducer(
            bootstrap_servers=list(bootstrap_servers),
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=int(timeout_s * 1000),
            # One in five minutes, spread, or ten thousand nodes ask in the same second.
            metadata_max_age_ms=int(300_000 * random.uniform(0.8, 1.2)),  # noqa: S311
            retry_backoff_ms=int(random.uniform(500, 1000)),  # noqa: S311
            max_request_size=1 << 30,  # the topic's own limit is checked on the sealed batch
        )
        producer.client._topics.add(topic)  # noqa: SLF001 - with none, it asks for all topics
        try:
            async with asyncio.timeout(2 * timeout_s):
                await producer.start()
                return cls(producer, await _describe(producer, topic))
        except (TimeoutError, OSError, errors.KafkaError) as error:
            await _end(producer, weakref.WeakSet())
            raise _unavailable(error) from error
        except BaseException:
            await _end(producer, weakref.WeakSet())
            raise

    async def send(self, batch: Batch) -> int:
        """Send and wait for every replica. Return the first record's ``kafka_offset``, or -1.

        Raises ``RecordRefused`` or ``SinkUnavailable``; after either the producer is of no more
        use. Cancelling leaves the batch's fate unknown.
        """
        try:
            future = await self._producer.send_batch(
                _Stamped(batch), self.topic.name, partition=batch.partition
            )
            return int((await future).offset)
        except AssertionError:  # "Unrecognized partition": the topic has fewer than before
            raise SinkUnavailable("topic_changed", f"no partition {batch.partition}") from None
        except (TimeoutError, OSError, errors.KafkaError) as error:
            refused = _REFUSED.get(type(error))
            if refused is not None:
                raise RecordRefused(refused, type(error).__name__) from error
            raise _unavailable(error) from error

    async def close(self) -> None:
        """End the producer without waiting for what is pending; takes a few seconds at most."""
        await _end(self._producer, self._requests)


class _Stamped:
    """What aiokafka's accumulator takes for its own ``BatchBuilder``, around a sealed batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._buffer: bytearray | None = None

    def _set_producer_state(self, producer_id: int, epoch: int, base_sequence: int) -> None:
        self._buffer = wire.stamp(self._batch, producer_id, epoch, base_sequence)

    def _build(self) -> bytearray:
        assert self._buffer is not None, "sent without a producer state: not idempotent"
        return self._buffer

    def record_count(self) -> int:
        return self._batch.count

    def closed(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _record_requests(producer: AIOKafkaProducer) -> "weakref.WeakSet[asyncio.Task[None]]":
    """Keep the sender's request tasks in sight: it awaits them when cancelled, without bound."""
    tasks: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
    sender = producer._sender  # noqa: SLF001
    send = sender._send_produce_req  # noqa: SLF001

    async def recorded(node_id: int, batches: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await send(node_id, batches)

    sender._send_produce_req = recorded  # noqa: SLF001
    return tasks


async def _end(producer: AIOKafkaProducer, requests: "weakref.WeakSet[asyncio.Task[None]]") -> None:
    producer._closed = True  # noqa: SLF001 - or it warns that nobody called its endless stop()
    syncing = producer.client._sync_task  # noqa: SLF001
    if syncing is not None and syncing.done() and not syncing.cancelled():
        syncing.exception()
        producer.client._sync_task = None  # noqa: SLF001 - close() would raise what broke it
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await producer.client.close()
    sender = producer._sender.sender_task  # noqa: SLF001
    ending = {task for task in (sender, *requests) if task is not None and not task.done()}
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending, timeout=_CLOSE_S)
    # Futures of batches that were never answered: nobody may wait on them, or be warned of them.
    accumulator = producer._message_accumulator  # noqa: SLF001
    accumulator.fail_all(errors.ProducerClosed())
    for batch in (*accumulator._pending_batches, *chain(*accumulator._batches.values())):  # noqa: SLF001
        for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
            if not future.cancelled():
                future.exception()


async def _describe(producer: AIOKafkaProducer, name: str) -> Topic:
    client = producer.client
    await client.force_metadata_update()
    partitions = client.cluster.partitions_for_topic(name)
    if not partitions:
        if name in client.cluster.unauthorized_topics:
            raise SinkUnavailable("topic_denied", name)
        raise SinkUnavailable("topic_missing", name)
    replicas = client.cluster._partitions[name][min(partitions)].replicas  # noqa: SLF001
    settings = await _settings(producer, name)
    insync = settings.get("min.insync.replicas")
    return Topic(
        name=name,
        partitions=len(partitions),
        replication=len(replicas),
        min_insync_replicas=None if insync is None else int(insync),
        message_bytes_max=int(settings.get("max.message.bytes") or MESSAGE_BYTES_MAX),
    )


async def _settings(producer: AIOKafkaProducer, name: str) -> dict[str, str | None]:
    """Return the topic's settings, or nothing where the ACL or the broker does not allow it."""
    node = producer.client.get_random_node()
    request = DescribeConfigsRequest([(_TOPIC_RESOURCE, name, _DESCRIBED)])
    try:
        response = await producer.client.send(node, request)
    except errors.KafkaError:
        return {}
    return {entry[0]: entry[1] for resource in response.resources for entry in resource[4]}


def _unavailable(error: BaseException) -> SinkUnavailable:
    for kind in type(error).__mro__:
        if kind in _UNAVAILABLE:
            return SinkUnavailable(_UNAVAILABLE[kind], f"{type(error).__name__}: {error}")
    return SinkUnavailable("kafka_error", f"{type(error).__name__}: {error}")
