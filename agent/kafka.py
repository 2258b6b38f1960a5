"""``agent.sink.Sink`` on Kafka: one producer's life, and what there is to know of its topic."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple
from weakref import WeakSet

from aiokafka import AIOKafkaProducer, errors
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.structs import RecordMetadata

from agent import answers, producer, wire
from agent.connections import Security
from agent.core.batch import Batch
from agent.errors import SinkUnavailable

MESSAGE_BYTES_MAX = 1_048_588
"""Kafka's default ``max.message.bytes``, used where we may not describe the topic."""

LATE_S = 1.0
"""What a closed producer's batches have to say so, where they were not handed over yet."""
UNAVAILABLE = (TimeoutError, OSError, errors.KafkaError)

_TOPIC_RESOURCE = 2
_DESCRIBED = ["max.message.bytes", "min.insync.replicas", "retention.ms", "cleanup.policy"]


class Topic(NamedTuple):
    """What was described before the first send. None: we may not ask."""

    name: str
    partitions: int
    replication: int
    min_insync_replicas: int | None
    message_bytes_max: int
    retention_s: float | None = None
    """After which a record is deleted, by its own time; None: never, or we may not ask."""


class KafkaSink:
    """A living producer for one topic. Made by ``connect``, ended by ``close``, never reused."""

    def __init__(self, started: AIOKafkaProducer, topic: Topic) -> None:
        self.topic = topic
        self.throttled_s = 0.0
        self._late: dict[asyncio.Task[int], int] = {}  # what waits to be handed over -> partition
        self._producer = started
        self._requests = producer.record_requests(started)
        producer.hear_of_throttling(started, self._throttled)

    @classmethod
    async def connect(
        cls,
        bootstrap_servers: tuple[str, ...],
        topic: str,
        *,
        client_id: str,
        timeout_s: float,
        security: Security | None = None,
    ) -> "KafkaSink":
        """Start a producer and describe the topic, within about ``2 * timeout_s``.

        Raises ``SinkUnavailable``, with everything closed again.
        """
        made = producer.made(
            bootstrap_servers, topic, client_id=client_id, timeout_s=timeout_s, security=security
        )
        try:
            async with asyncio.timeout(2 * timeout_s):
                await made.start()
                return cls(made, await _describe(made, topic))
        except (TimeoutError, OSError, errors.KafkaError) as error:
            why = producer.handshake_failure(made) or error  # bootstrap() swallows it
            await producer.end(made, WeakSet())
            raise answers.unavailable(why) from error
        except BaseException:
            await producer.end(made, WeakSet())
            raise

    def send(self, batch: Batch) -> asyncio.Future[int]:
        """Send, and wait for every replica. The answer is the first record's ``kafka_offset``, or
        -1; else ``RecordRefused`` or ``SinkUnavailable``, after which the producer is of no use.

        At low load batches are small and many, so what can be handed over at once is: a task and
        two futures more cost as much as all else that is done here for a batch.
        """
        sent = None
        if batch.partition not in self._late.values():  # none overtakes
            sent = producer.hand_over(
                self._producer, _Stamped(batch), self.topic.name, batch.partition
            )
        if sent is None:
            late = asyncio.ensure_future(self._send_late(batch))
            self._late[late] = batch.partition
            late.add_done_callback(self._late.pop)
            return late
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        sent.add_done_callback(partial(_answer, answer))
        return answer

    async def _send_late(self, batch: Batch) -> int:
        """Wait until no other batch of its partition waits, or the topic is known again."""
        try:
            sent = await self._producer.send_batch(
                _Stamped(batch), self.topic.name, partition=batch.partition
            )
            return int((await sent).offset)
        except AssertionError:  # "Unrecognized partition": the topic has fewer than before
            raise SinkUnavailable("topic_changed", f"no partition {batch.partition}") from None
        except UNAVAILABLE as error:
            raise answers.of_batch(error) from error

    def ease(self, backoff_s: float) -> None:
        """Let ``backoff_s`` pass between two tries to reach a broker or a leader."""
        producer.ease(self._producer, backoff_s)

    async def close(self) -> None:
        """End the producer without waiting for what is pending; takes a few seconds at most."""
        await producer.end(self._producer, self._requests)
        if self._late:
            await asyncio.wait([*self._late], timeout=LATE_S)
        for late in self._late:
            late.cancel()  # it waits for what a closed client does not tell

    def _throttled(self, seconds: float) -> None:
        self.throttled_s += seconds


def _answer(answer: asyncio.Future[int], sent: asyncio.Future[RecordMetadata]) -> None:
    error = sent.exception()
    if answer.done():  # cancelled
        return
    if error is None:
        answer.set_result(int(sent.result().offset))
    elif isinstance(error, UNAVAILABLE):
        ours = answers.of_batch(error)
        ours.__cause__ = error
        answer.set_exception(ours)
    else:
        answer.set_exception(error)


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


async def _describe(started: AIOKafkaProducer, name: str) -> Topic:
    client = started.client
    # Twice: the broker may have ended the session by now, then the second has a new connection.
    if not (await client.force_metadata_update() or await client.force_metadata_update()):
        raise errors.KafkaConnectionError("no broker answers a request for metadata")
    partitions = client.cluster.partitions_for_topic(name)
    if not partitions:
        if name in client.cluster.unauthorized_topics:
            raise SinkUnavailable("topic_denied", name)
        raise SinkUnavailable("topic_missing", name)
    replicas = client.cluster._partitions[name][min(partitions)].replicas  # noqa: SLF001
    settings = await _settings(started, name)
    insync = settings.get("min.insync.replicas")
    return Topic(
        name=name,
        partitions=len(partitions),
        replication=len(replicas),
        min_insync_replicas=None if insync is None else int(insync),
        message_bytes_max=int(settings.get("max.message.bytes") or MESSAGE_BYTES_MAX),
        retention_s=_retention_s(settings),
    )


def _retention_s(settings: Mapping[str, str | None]) -> float | None:
    """Read ``retention.ms``: -1 is for ever, and a topic that is only compacted has none."""
    retention_ms = int(settings.get("retention.ms") or -1)
    deletes = "delete" in (settings.get("cleanup.policy") or "delete")
    return retention_ms / 1000 if deletes and retention_ms >= 0 else None


async def _settings(started: AIOKafkaProducer, name: str) -> dict[str, str | None]:
    """Return the topic's settings, or nothing where the ACL or the broker does not allow it."""
    node = started.client.get_random_node()
    request = DescribeConfigsRequest([(_TOPIC_RESOURCE, name, _DESCRIBED)])
    try:
        response = await started.client.send(node, request)
    except errors.KafkaError:
        return {}
    return {entry[0]: entry[1] for resource in response.resources for entry in resource[4]}
