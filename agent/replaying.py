"""Sends events that were dead letters, by the very way of events: outlet, retries, isolation.

One page at a time: what of it Kafka has is known before the next one is made.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

from agent import wire
from agent.assembly import InForce, Parts
from agent.builders import Builders
from agent.clock import Clock, wait_event
from agent.config import Config
from agent.core.batch import Batch
from agent.core.body import Headers
from agent.core.ledger import Chunk, Ledger
from agent.core.revival import REPLAY_OF
from agent.errors import SinkUnavailable
from agent.telemetry import Metrics
from agent.wire import PlainRecord

STALL_S = 30.0
"""Without an acknowledgement for so long, waiting is vain."""


class Replaying:
    """An outlet to the events' topic, from ``async with`` to its end."""

    def __init__(self, config: Config, rules: InForce, clock: Clock, metrics: Metrics) -> None:
        self._parts = Parts(config, rules, clock, metrics)
        self._clock = clock
        self._outlet = self._parts.outlet(
            "events", config.kafka.topic, spooled=False, quiet=_nothing_to_wait_for,
            settled=self._settled, refused=self._refused,
        )  # fmt: skip
        self._builders = Builders(
            lambda: self._outlet.topic,
            self._parts.codec,
            self._parts.pace,
            bytes_max=config.batch.bytes_max,
            partitioner=config.kafka.partitioner,
        )
        self._arrived = asyncio.Event()
        self._outcomes: dict[bytes, str | None] = {}  # by replay_of: None where Kafka has it
        self._running: asyncio.Task[None] | None = None
        self._patience_s = max(STALL_S, 2 * config.kafka.request_timeout_s)

    async def __aenter__(self) -> Self:
        """Raises ``SinkUnavailable`` where the topic cannot be reached."""
        self._running = asyncio.create_task(self._outlet.run())
        if not await wait_event(self._outlet.described, self._patience_s):
            await self._end()
            raise SinkUnavailable(self._outlet.problem or "unreachable", "nothing was sent")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def send(self, records: Sequence[PlainRecord]) -> list[str | None]:
        """Return for each record None, or why Kafka does not have it: ``refused_...`` or a reason
        that has nothing to do with it. Each has a header ``replay_of`` of its own."""
        self._outcomes = {}
        self._builders.begin()
        page = Chunk(Ledger(0, b""), 0, len(records), b"", len(records))
        for run in wire.runs(records):
            self._builders.add(page, run, self._clock.monotonic())
        self._builders.seal_all()
        for batch in self._builders.take():
            self._outlet.admit(batch)
        while len(self._outcomes) < len(records):
            self._arrived.clear()
            if not await wait_event(self._arrived, self._patience_s):
                break
        away = self._outlet.problem or "timeout"
        return [self._outcomes.get(_name(headers), away) for *_, headers in records]

    async def _end(self) -> None:
        assert self._running is not None
        self._running.cancel()
        with suppress(asyncio.CancelledError):
            await self._running
        await self._outlet.close()

    def _settled(self, batch: Batch, _kafka_offset: int, _latency_s: float) -> None:
        self._note(batch, None)

    def _refused(self, batch: Batch, reason: str) -> None:
        self._note(batch, reason)

    def _note(self, batch: Batch, outcome: str | None) -> None:
        """Batches are cut and put together anew on the way: what is in one, its records say."""
        self._outcomes |= dict.fromkeys((_name(r.headers) for r in wire.records(batch)), outcome)
        self._arrived.set()


def _name(headers: Headers) -> bytes:
    return dict(headers)[REPLAY_OF]


@asynccontextmanager
async def _nothing_to_wait_for() -> AsyncIterator[None]:
    yield
