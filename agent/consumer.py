"""Reads topics for an operator: without a group, from where it is told to where they end now.

It commits nothing and creates nothing, so it needs Read and Describe on the topics and no more. The
one room that consumes: the agent itself only produces.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition, errors
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.record.default_records import DefaultRecordBatch

from agent import answers, codecs, connections
from agent import producer as _quiet  # noqa: F401 - its import keeps metadata from creating topics
from agent.clock import SystemClock
from agent.config.sections import Kafka
from agent.core.receipts import UNTOLD, Partition, Window
from agent.credentials import Credentials
from agent.errors import AgentError, SinkUnavailable

FETCH_MS = 500
CLOSE_S = 2.0
RECORDS_MAX = 5000
"""Handed out at a time."""
_TOPIC_RESOURCE = 2
_RETENTION = ["retention.ms", "retention.bytes"]


def _unpack_zstd() -> None:
    """Let aiokafka unpack zstd with what the agent packs it with; else it wants another package."""
    records: Any = import_module(DefaultRecordBatch.__module__)  # compiled, or not
    if not records.codecs.has_zstd():
        records.codecs.has_zstd = lambda: True
        records.zstd_decode = partial(codecs.decompress, codecs.NUMBERS["zstd"])


_unpack_zstd()


class Bounds(NamedTuple):
    """The first ``kafka_offset`` of a partition, and the one behind its last; as of ``look``."""

    begin: int
    end: int


class Retention(NamedTuple):
    """How long a topic keeps its records, in seconds, and how many bytes. None: without a limit."""

    seconds: float | None
    bytes: int | None


class Reader:
    """A consumer that is connected. Made by ``connected``.

    Attributes:
        bounds: Of every partition of the topics that there are.
        missing: The topics that there are not.
    """

    def __init__(self, consumer: AIOKafkaConsumer, stall_s: float) -> None:
        self.bounds: dict[Partition, Bounds] = {}
        self.missing: list[str] = []
        self._consumer = consumer
        self._stall_s = stall_s
        self._clock = SystemClock()

    async def look(self, topics: Iterable[str]) -> None:
        """Find out where the partitions of ``topics`` begin and end now."""
        names = sorted({*topics})
        client = self._consumer._client  # noqa: SLF001 - the consumer itself asks for all topics
        await client.set_topics(names)
        cluster, found = client.cluster, list[TopicPartition]()
        for topic in names:
            if topic in cluster.unauthorized_topics:
                raise SinkUnavailable("topic_denied", topic)
            numbers = cluster.partitions_for_topic(topic) or ()
            found += [TopicPartition(topic, number) for number in sorted(numbers)]
            if not numbers:
                self.missing.append(topic)
        if not found:
            return
        self._consumer.assign(found)
        begins = await self._consumer.beginning_offsets(found)
        ends = await self._consumer.end_offsets(found)
        for tp in found:
            self.bounds[tp.topic, tp.partition] = Bounds(begins[tp], ends[tp])

    async def since(self, at_s: float) -> dict[Partition, list[Window]]:
        """Return all that was appended since then, by the records' own time."""
        asked = {TopicPartition(*partition): int(at_s * 1000) for partition in self.bounds}
        told = await self._consumer.offsets_for_times(asked)
        if not any(told.values()):  # nothing is that young, or this broker does not tell
            return self.everything()
        return {
            (tp.topic, tp.partition): [(at.offset, self.bounds[tp.topic, tp.partition].end - 1)]
            for tp, at in told.items()
            if at is not None
        }

    def everything(self) -> dict[Partition, list[Window]]:
        return {partition: [UNTOLD] for partition in self.bounds}

    async def retention(self, topic: str) -> Retention | None:
        """Return how long ``topic`` keeps records; None where we may not ask."""
        client = self._consumer._client  # noqa: SLF001
        request = DescribeConfigsRequest([(_TOPIC_RESOURCE, topic, _RETENTION)])
        try:
            response = await client.send(client.get_random_node(), request)
            told = {entry[0]: int(entry[1]) for one in response.resources for entry in one[4]}
        except (errors.KafkaError, TypeError, ValueError):
            return None
        if "retention.ms" not in told:
            return None
        held_ms, held_bytes = told["retention.ms"], told.get("retention.bytes", -1)
        return Retention(
            None if held_ms < 0 else held_ms / 1000, None if held_bytes < 0 else held_bytes
        )

    def count(self, wanted: Mapping[Partition, Sequence[Window]]) -> int:
        """Return how many records ``read`` will yield, at most."""
        clipped = (
            _clipped(found, self.bounds[p]) for p, found in wanted.items() if p in self.bounds
        )
        return sum(last - first + 1 for found in clipped for first, last in found)

    async def read(
        self, wanted: Mapping[Partition, Sequence[Window]]
    ) -> AsyncIterator[list[ConsumerRecord]]:
        """Yield what lies in ``wanted``, of all partitions side by side.

        Raises ``SinkUnavailable`` where nothing is answered for twice ``kafka.request_timeout_s``.
        """
        left = {
            TopicPartition(*partition): clipped
            for partition, found in wanted.items()
            if partition in self.bounds and (clipped := _clipped(found, self.bounds[partition]))
        }
        if not left:
            return
        self._consumer.assign([*left])
        for tp, found in left.items():
            self._consumer.seek(tp, found[-1][0])
        moved_s = self._clock.monotonic()
        while left:
            fetched = await self._consumer.getmany(timeout_ms=FETCH_MS, max_records=RECORDS_MAX)
            inside: list[ConsumerRecord] = []
            for tp, records in fetched.items():
                if tp in left:
                    _, last = left[tp][-1]
                    inside += [record for record in records if record.offset <= last]
            if inside:
                yield inside
            if await self._go_on(left) or fetched:
                moved_s = self._clock.monotonic()
            elif self._clock.monotonic() - moved_s > self._stall_s:
                raise SinkUnavailable(
                    "unanswered", f"{len(left)} partitions are not read to their end"
                )

    async def _go_on(self, left: dict[TopicPartition, list[Window]]) -> bool:
        """Go to the next window where one was read to its end. Return whether any was."""
        moved = False
        for tp in [*left]:
            # The position, not the last record: a transaction's marker takes an offset too.
            if await self._consumer.position(tp) <= left[tp][-1][1]:
                continue
            moved = True
            left[tp].pop()
            if left[tp]:
                self._consumer.seek(tp, left[tp][-1][0])
            else:
                del left[tp]
                self._consumer.pause(tp)
        return moved


def _clipped(windows: Iterable[Window], bounds: Bounds) -> list[Window]:
    """Return what there is of ``windows``, the last one first."""
    whole = bounds.begin, bounds.end - 1
    asked = [whole if window == UNTOLD else window for window in windows]
    clipped = [(max(first, whole[0]), min(last, whole[1])) for first, last in asked]
    return [(first, last) for first, last in reversed(clipped) if first <= last]


@asynccontextmanager
async def connected(kafka: Kafka) -> AsyncIterator[Reader]:
    """Connect by ``kafka``'s addresses, TLS and SASL. Raises ``SinkUnavailable``."""
    ours = connections.begin(Credentials(kafka.tls, kafka.sasl, SystemClock()))
    consumer: Any = AIOKafkaConsumer(
        bootstrap_servers=list(kafka.bootstrap_servers),
        client_id=kafka.client_id,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=int(kafka.request_timeout_s * 1000),
    )
    try:
        async with asyncio.timeout(2 * kafka.request_timeout_s):
            await _started(consumer, kafka)
        yield Reader(consumer, 2 * kafka.request_timeout_s)
    except (errors.UnsupportedCodecError, NotImplementedError) as error:
        raise AgentError(f"records cannot be unpacked: {error}") from None
    except (TimeoutError, OSError, errors.KafkaError) as error:
        raise answers.unavailable(ours.failure() or error) from error
    finally:
        await _stopped(consumer)
        ours.close()


async def _started(consumer: Any, kafka: Kafka) -> None:
    try:
        await consumer.start()
    except errors.KafkaConnectionError as error:  # its text has how sockets name their families
        asked = ", ".join(kafka.bootstrap_servers)
        raise errors.KafkaConnectionError(f"none of {asked} answers") from error


async def _stopped(consumer: Any) -> None:
    """End it, within ``CLOSE_S``: while brokers are away, it takes its own tasks' end for ours."""
    stopping = asyncio.ensure_future(consumer.stop())
    await asyncio.wait({stopping}, timeout=CLOSE_S)
    stopping.cancel()
    await asyncio.wait({stopping}, timeout=CLOSE_S)
    if stopping.done() and not stopping.cancelled():
        stopping.exception()  # nobody may be warned of it
