"""aiokafka's producer, made so that it keeps what a sink promises.

What aiokafka does that shapes this room (versions 0.14.x, read in its source):

* defaults are acks=1 without idempotence, and metadata requests that let a broker create topics;
* while a partition has no leader it asks for metadata again as soon as it is answered;
* it never acts on, nor tells of, the time that a broker asks to be left alone;
* with every broker away nothing fails: futures stay pending and ``stop()`` waits for them;
* a cancelled sender waits for requests that wait for metadata, so every step of the end is
  bounded here.
"""

import asyncio
import contextlib
import functools
import random
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

import aiokafka.client
from aiokafka import AIOKafkaProducer, errors
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.structs import RecordMetadata, TopicPartition

from agent import answers, connections
from agent.answers import HandshakeFailed, TopicShrunk
from agent.connections import Connections, Security

# A metadata request with no wish of its own lets the broker create the topic; a topic that is
# deleted under us would come back with one partition and nobody's settings.
aiokafka.client.MetadataRequest = functools.partial(
    MetadataRequest, allow_auto_topic_creation=False
)

_of: "weakref.WeakKeyDictionary[AIOKafkaProducer, Connections]" = weakref.WeakKeyDictionary()

Requests = weakref.WeakSet[asyncio.Task[None]]

_CLOSE_S = 2.0


def made(
    bootstrap_servers: tuple[str, ...],
    topic: str,
    *,
    client_id: str,
    timeout_s: float,
    security: Security | None,
) -> AIOKafkaProducer:
    """Return a producer that is not started yet; to be started in the same context."""
    ours = connections.begin(security)
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
    producer._message_accumulator._pending_batches = _Pending()  # noqa: SLF001
    _watch_metadata(producer, topic)
    _say_why(producer, ours)
    _of[producer] = ours
    return producer


def hand_over(
    producer: AIOKafkaProducer, sealed: object, topic: str, partition: int
) -> asyncio.Future[RecordMetadata] | None:
    """Do what ``send_batch`` does where there is nothing to wait for, without a task; None: there
    is. Whoever cancels what is returned leaves the batch's fate unknown."""
    accumulator, known = producer._message_accumulator, producer.client.cluster._partitions  # noqa: SLF001
    place = TopicPartition(topic, partition)
    closed = accumulator._closed or accumulator._exception is not None  # noqa: SLF001
    if closed or accumulator._batches.get(place) or partition not in known.get(topic, ()):  # noqa: SLF001
        return None
    handed: asyncio.Future[RecordMetadata] = accumulator._append_batch(sealed, place).future  # noqa: SLF001
    return handed


def handshake_failure(producer: AIOKafkaProducer) -> HandshakeFailed | None:
    """Return why a broker could not be connected to, where it was over who is who."""
    return _of[producer].failure()


def _say_why(producer: AIOKafkaProducer, ours: Connections) -> None:
    """Fail what is sent to a broker that refuses us: aiokafka would try the same without end."""
    client = producer.client
    send = client.send

    async def saying(node_id: int, request: object, **named: Any) -> Any:
        try:
            return await send(node_id, request, **named)
        except errors.NodeNotReadyError:
            broker = client.cluster.broker_metadata(node_id)
            failed = ours.failure((broker.host, broker.port)) if broker else None
            if failed is None:
                raise
            if isinstance(request, InitProducerIdRequest):  # no KafkaError ends its loop
                raise answers.unavailable(failed) from None
            error = HandshakeFailed(failed.reason, failed.detail)
            _give_up(producer, error)  # what waits behind it would be out of sequence
            raise error from None

    client.send = saying


class _Pending(set[Any]):
    """Batches on the wire. One that waits to be tried again is not among them when it is failed."""

    def remove(self, batch: Any) -> None:
        self.discard(batch)


def ease(producer: AIOKafkaProducer, backoff_s: float) -> None:
    """Wait ``backoff_s`` between two tries to reach a broker or a leader."""
    producer._sender._retry_backoff = backoff_s  # noqa: SLF001 - read at each request
    producer.client._retry_backoff = backoff_s  # noqa: SLF001


def hear_of_throttling(producer: AIOKafkaProducer, heard: Callable[[float], None]) -> None:
    """Call ``heard`` with the seconds for which a broker asks to be left alone (KIP-219)."""
    client = producer.client
    send = client.send

    async def listening(*args: Any, **kwargs: Any) -> Any:
        response = await send(*args, **kwargs)
        heard(getattr(response, "throttle_time_ms", 0) / 1000)
        return response

    client.send = listening


def _watch_metadata(producer: AIOKafkaProducer, topic: str) -> None:
    """Let a backoff pass between two metadata requests, and give up when ``topic`` has shrunk.

    The first request goes at once. A topic that was made again with fewer partitions would get
    what waits for some of them, before we put all of it in order for the ones that are left.
    """
    client = producer.client
    update = client._metadata_update  # noqa: SLF001
    loop = asyncio.get_running_loop()
    next_s, known = 0.0, 0

    async def watched(*arguments: object) -> bool:
        nonlocal next_s, known
        await asyncio.sleep(max(0.0, next_s - loop.time()))
        try:
            updated = bool(await update(*arguments))
        finally:
            next_s = loop.time() + client._retry_backoff  # noqa: SLF001
        partitions = len(client.cluster.partitions_for_topic(topic) or ())
        if 0 < partitions < known:
            _give_up(producer, TopicShrunk(f"{known} partitions became {partitions}"))
        known = max(known, partitions)
        return updated

    client._metadata_update = watched  # noqa: SLF001


def _give_up(producer: AIOKafkaProducer, error: Exception) -> None:
    """Fail what waits to be sent, before the sender can look at it again."""
    accumulator = producer._message_accumulator  # noqa: SLF001
    waiting = accumulator._batches  # noqa: SLF001
    accumulator._exception = error  # noqa: SLF001 - for what waits for its metadata elsewhere
    for batch in chain(*waiting.values()):
        batch.failure(exception=error)
        batch._drain_waiter.exception()  # noqa: SLF001 - who waits behind it is told, if anybody
    waiting.clear()


def record_requests(producer: AIOKafkaProducer) -> Requests:
    """Keep the sender's request tasks in sight: it awaits them when cancelled, without bound."""
    tasks: Requests = weakref.WeakSet()
    sender = producer._sender  # noqa: SLF001
    send = sender._send_produce_req  # noqa: SLF001

    async def recorded(node_id: int, batches: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await send(node_id, batches)

    sender._send_produce_req = recorded  # noqa: SLF001
    return tasks


async def end(producer: AIOKafkaProducer, requests: Requests) -> None:
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
    _of[producer].close()
    # Futures of batches that were never answered: nobody may wait on them, or be warned of them.
    accumulator = producer._message_accumulator  # noqa: SLF001
    accumulator.fail_all(errors.ProducerClosed())
    for batch in (*accumulator._pending_batches, *chain(*accumulator._batches.values())):  # noqa: SLF001
        for future in (batch.future, batch._drain_waiter):  # noqa: SLF001
            if not future.cancelled():
                future.exception()
