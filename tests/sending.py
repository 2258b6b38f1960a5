"""An outlet over real sockets, in the running loop: what it is given, what became of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from agent import wire
from agent.clock import SystemClock
from agent.connections import Security
from agent.core.batch import Batch
from agent.core.policy import BreakerPolicy, RetryPolicy
from agent.errors import RecordRefused, SinkUnavailable
from agent.kafka import KafkaSink
from agent.sink import Outlet
from agent.telemetry import Metrics
from tests import real_kafka
from tests.fakes import batch_of, delivery_of

BACKOFF_S = 0.01

Heard = SinkUnavailable | RecordRefused


@dataclass
class Sending:
    """One outlet and its ledger; made by ``sending``, in whose block it runs.

    Attributes:
        heard: What connecting and sending raised, in order.
    """

    bootstrap: str
    topic: str
    timeout_s: float
    ack_age_max_s: float
    security: Security | None = None
    outlet: Outlet = field(init=False)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    admitted: dict[int, list[bytes]] = field(default_factory=dict)
    settled: list[bytes] = field(default_factory=list)
    refused: list[tuple[bytes, str]] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)

    def admit(self, *values: bytes, partition: int = 0, key: bytes | None = None) -> None:
        self.admitted.setdefault(partition, []).extend(values)
        self.outlet.admit(batch_of(*values, partition=partition, key=key))

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        """Raises ``AssertionError`` when time is up; nothing may hang."""
        try:
            async with asyncio.timeout(within_s):
                while not holds():  # noqa: ASYNC110 - the outlet tells only of being empty
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError((self.outlet.status(), self.settled, self.heard)) from None

    async def until_empty(self, within_s: float) -> None:
        """Wait until everything is settled or refused, once each."""
        await self.until(self.outlet.empty.is_set, within_s)
        fates = [*self.settled, *(value for value, _ in self.refused)]
        assert sorted(v for values in self.admitted.values() for v in values) == sorted(fates)

    def cut(self) -> None:
        """Cut the producer's connections, as a broker may at any time."""
        assert isinstance(self.outlet._sink, KafkaSink)
        for connection in self.outlet._sink._producer.client._conns.values():
            connection.close()

    @property
    def retirements(self) -> int:
        name = "feedback_agent_producer_retirements_total"
        return int(self.registry.get_sample_value(name, {"sink": "events"}) or 0)

    async def connect(self) -> KafkaSink:
        try:
            sink = await _Overheard.connect(
                tuple(self.bootstrap.split(",")),
                self.topic,
                client_id="test",
                timeout_s=self.timeout_s,
                security=self.security,
            )
        except SinkUnavailable as unavailable:
            self.heard.append(unavailable)
            raise
        assert isinstance(sink, _Overheard)
        sink.heard = self.heard
        sink._producer._sender._retry_backoff = BACKOFF_S
        return sink


class _Overheard(KafkaSink):
    heard: list[Heard]

    def send(self, batch: Batch) -> asyncio.Future[int]:
        answer = super().send(batch)
        answer.add_done_callback(self._hear)
        return answer

    def _hear(self, answer: asyncio.Future[int]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, SinkUnavailable | RecordRefused):
            self.heard.append(error)


@asynccontextmanager
async def sending(
    bootstrap: str,
    topic: str,
    *,
    timeout_s: float,
    ack_age_max_s: float = 30.0,
    security: Security | None = None,
) -> AsyncIterator[Sending]:
    """Run an outlet for ``topic`` that tries again almost at once."""
    found = Sending(bootstrap, topic, timeout_s, ack_age_max_s, security)
    clock = SystemClock()

    def settled(batch: Batch, *_: object) -> None:
        found.settled += [record.value for record in wire.records(batch)]

    def refused(batch: Batch, reason: str) -> None:
        found.refused += [(record.value, reason) for record in wire.records(batch)]

    found.outlet = _outlet(found, clock, settled, refused)
    running = asyncio.create_task(found.outlet.run())
    try:
        yield found
        assert not running.done(), running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await found.outlet.close()


def _outlet(
    found: Sending,
    clock: SystemClock,
    settled: Callable[..., None],
    refused: Callable[[Batch, str], None],
) -> Outlet:
    delivery = delivery_of(
        clock.monotonic,
        retry=RetryPolicy(backoff_s=BACKOFF_S, backoff_max_s=BACKOFF_S),
        breaker=BreakerPolicy(cooldown_s=BACKOFF_S, ack_age_max_s=found.ack_age_max_s),
        retire_s=2 * found.timeout_s,
    )
    return Outlet(
        "events",
        delivery,
        found.connect,
        settled=settled,
        refused=refused,
        clock=clock,
        metrics=Metrics(found.registry),
    )


async def arrived(bootstrap: str, topic: str) -> dict[int, list[bytes]]:
    """Return the values that ``topic`` holds, by partition, in the order of their offsets."""
    found: dict[int, list[bytes]] = {}
    for record in await real_kafka.read_all(bootstrap, topic):
        found.setdefault(record.partition, []).append(record.value)
    return found
