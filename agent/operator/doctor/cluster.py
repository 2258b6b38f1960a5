"""What Kafka tells of itself, asked over the very connections that the agent makes.

Nothing is written and no topic is made. Who we may be is asked by KIP-430 (the operations that a
topic allows us, Kafka 2.3), whether we get a producer id by asking for one, as each producer does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from aiokafka import errors
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from msgspec import Struct

from agent import connections
from agent.answers import HandshakeFailed
from agent.config.sections import Kafka
from agent.connections import Security
from agent.operator.doctor.metadata import NOT_TOLD, Metadata

TOPIC = 2
SETTINGS = [
    "max.message.bytes",
    "min.insync.replicas",
    "retention.ms",
    "retention.bytes",
    "cleanup.policy",
    "message.timestamp.type",
    "message.timestamp.before.max.ms",
]
LOADING = 14
"""The brokers are not ready to give producer ids: COORDINATOR_LOAD_IN_PROGRESS."""
AGAIN_S = 0.2
CLOSE_S = 1.0


class Broker(Struct, frozen=True):
    """One that metadata names. ``problem``: why it cannot be spoken to, None if it can."""

    node: int
    address: str
    problem: str | None


class Partition(Struct, frozen=True):
    number: int
    leader: int
    replicas: int
    insync: int


class TopicSeen(Struct, frozen=True, kw_only=True):
    """One topic as the brokers have it.

    Attributes:
        error: Of ``aiokafka.errors``; 0 is none.
        operations: Bits of what we may do, by the numbers of Kafka's ``AclOperation``; None where
            the brokers do not tell.
        settings: None where we may not ask.
        newer: Whether it has a record of the time that was asked for, or later; None: not told.
    """

    name: str
    error: int
    partitions: tuple[Partition, ...]
    operations: int | None
    settings: Mapping[str, str] | None
    newer: bool | None


class Handshake(Struct, frozen=True):
    """How a connection came to be. ``expires``: of the broker's certificate, as OpenSSL says it."""

    tls: str | None
    expires: str | None


class Reached(Struct, frozen=True):
    """What came of connecting to one bootstrap server: ``made`` or ``failed``."""

    address: str
    made: Handshake | None = None
    failed: HandshakeFailed | None = None
    problem: str = ""


class Cluster(Struct, frozen=True, kw_only=True):
    """All that was seen. ``brokers`` and ``topics`` are empty where nothing was reached."""

    bootstrap: tuple[Reached, ...]
    brokers: tuple[Broker, ...] = ()
    producer_id_error: int | None = None
    topics: tuple[TopicSeen, ...] = ()


async def look(
    kafka: Kafka, topics: Iterable[str], security: Security | None, newer_than_ms: int
) -> Cluster:
    """Ask everything once; each step takes ``kafka.request_timeout_s`` at most. Raises nothing."""
    async with _Asking.of(kafka, security) as asking:
        servers = [address.rpartition(":") for address in kafka.bootstrap_servers]
        reached = await asyncio.gather(*(asking.reach(h, int(p)) for h, _, p in servers))
        first = next((connection for _, connection in reached if connection is not None), None)
        bootstrap = tuple(one for one, _ in reached)
        if first is None:
            return Cluster(bootstrap=bootstrap)
        metadata = await asking.ask(first, Metadata(list(topics)))
        if metadata is None:
            return Cluster(bootstrap=bootstrap)
        told = [asking.broker(*broker[:3]) for broker in metadata.brokers]
        brokers = tuple(await asyncio.gather(*told))
        seen = [await asking.topic(first, topic, newer_than_ms) for topic in metadata.topics]
        return Cluster(
            bootstrap=bootstrap,
            brokers=brokers,
            producer_id_error=await asking.producer_id_error(first),
            topics=tuple(seen),
        )


class _Asking:
    """The connections of one look, closed at its end."""

    def __init__(self, kafka: Kafka, security: Security | None) -> None:
        self._kafka = kafka
        self._connections = connections.begin(security)
        self._ending: list[asyncio.Future[None]] = []  # of connections that were closed
        self._brokers: dict[int, Any] = {}

    @classmethod
    @asynccontextmanager
    async def of(cls, kafka: Kafka, security: Security | None) -> AsyncIterator[Self]:
        asking = cls(kafka, security)
        try:
            yield asking
        finally:
            asking._connections.close()
            if asking._ending:
                await asyncio.wait(asking._ending, timeout=CLOSE_S)

    async def reach(self, host: str, port: int) -> tuple[Reached, Any]:
        address = f"{host}:{port}"
        try:
            async with asyncio.timeout(self._kafka.request_timeout_s):
                connection = await self._connections.make(
                    host.strip("[]"),
                    port,
                    client_id=self._kafka.client_id,
                    request_timeout_ms=int(self._kafka.request_timeout_s * 1000),
                    on_close=self._closed,
                )
        except HandshakeFailed as failed:
            return Reached(address, failed=failed), None
        except TimeoutError:
            return Reached(address, problem="no answer"), None
        except (OSError, errors.KafkaError) as error:
            return Reached(address, problem=_said(error)), None
        return Reached(address, made=_handshake(connection)), connection

    def _closed(self, connection: Any, _reason: object) -> None:
        self._ending.append(connection.close())  # closed by now: it returns when it has ended

    async def broker(self, node: int, host: str, port: int) -> Broker:
        reached, connection = await self.reach(host, port)
        if connection is not None:
            self._brokers[node] = connection
        problem = str(reached.failed) if reached.failed else reached.problem or None
        return Broker(node, f"{host}:{port}", problem)

    async def ask(self, connection: Any, request: Any) -> Any:
        """Return the answer, None where there is none."""
        with contextlib.suppress(TimeoutError, OSError, errors.KafkaError, NotImplementedError):
            async with asyncio.timeout(self._kafka.request_timeout_s):
                return await connection.send(request)
        return None

    async def producer_id_error(self, connection: Any) -> int | None:
        """Ask for a producer id, for as long as the brokers are only getting ready to give one."""
        answer = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._kafka.request_timeout_s):
                while answer is None or answer.error_code == LOADING:
                    await asyncio.sleep(0.0 if answer is None else AGAIN_S)
                    answer = await self.ask(connection, InitProducerIdRequest(None, 60_000))
                    if answer is None:
                        break
        return None if answer is None else int(answer.error_code)

    async def topic(self, first: Any, told: Any, newer_than_ms: int) -> TopicSeen:
        error, name, _, partitions, *operations = told
        found = tuple(
            Partition(p[1], p[2], len(p[-3]), len(p[-2])) for p in sorted(partitions, key=_number)
        )
        return TopicSeen(
            name=name,
            error=error,
            partitions=found,
            operations=next((o for o in operations if o != NOT_TOLD), None),
            settings=await self._settings(first, name) if error == 0 else None,
            newer=await self._newer(found, name, newer_than_ms),
        )

    async def _settings(self, connection: Any, name: str) -> dict[str, str] | None:
        answer = await self.ask(connection, DescribeConfigsRequest([(TOPIC, name, SETTINGS)]))
        if answer is None or any(resource[0] for resource in answer.resources):
            return None
        return {entry[0]: entry[1] for resource in answer.resources for entry in resource[4]}

    async def _newer(self, partitions: Iterable[Partition], name: str, at_ms: int) -> bool | None:
        """Ask the leaders whether they have a record of ``at_ms`` or later; takes ``Describe``."""
        told = False
        for partition in partitions:
            leader = self._brokers.get(partition.leader)
            wanted = [(name, [(partition.number, at_ms)])]
            answer = leader and await self.ask(leader, OffsetRequest(-1, 0, wanted))
            for _, found in answer.topics if answer else ():
                for _, error, _, kafka_offset, *_ in found:
                    if error == 0 and kafka_offset >= 0:
                        return True
                    told |= error == 0
        return False if told else None


def _number(partition: Any) -> int:
    return int(partition[1])


def _handshake(connection: Any) -> Handshake:
    tls = connection._writer.get_extra_info("ssl_object")  # noqa: SLF001 - aiokafka keeps it to itself
    if tls is None:
        return Handshake(None, None)
    return Handshake(tls.version(), (tls.getpeercert() or {}).get("notAfter"))


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
