"""The sink port, and the outlet that carries out what ``core.delivery`` decides.

An outlet has one topic and at most one producer that sends. Events and dead letters have an outlet
each, so that neither can stop the other (invariant 6).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import NamedTuple, Protocol

from agent.clock import Clock, wait_event
from agent.core.auditing import Note, unheard
from agent.core.batch import Batch
from agent.core.breaker import State
from agent.core.delivery import (
    UNANSWERED,
    Action,
    Close,
    Connect,
    Delivery,
    Phase,
    Refuse,
    Send,
)
from agent.errors import RecordRefused, SinkUnavailable
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)


LOOK_S = 5.0
"""Between two looks at whether Kafka still answers, when nothing else is due."""
RENEW_AGAIN_S = 60.0
"""Between two tries to replace a producer by one that brokers let in; the old one goes on."""


class Topic(Protocol):
    """What a sink learned of its topic before the first send."""

    @property
    def partitions(self) -> int: ...
    @property
    def message_bytes_max(self) -> int: ...


class Sink(Protocol):
    """A living producer for one topic.

    ``send`` may be called again before it is answered, at most ``core.lanes.WINDOW`` times for one
    partition, and then keeps that partition's order. The answer is the first record's
    ``kafka_offset`` once every replica has the batch, however long that takes; or ``RecordRefused``
    or ``SinkUnavailable``, after which only ``close`` may be called. To cancel an answer unsends
    nothing. ``close`` never raises and is bounded in time.
    """

    @property
    def topic(self) -> Topic: ...
    @property
    def throttled_s(self) -> float:
        """Return how long brokers have asked to be left alone, in all."""

    def ease(self, backoff_s: float) -> None:
        """Let ``backoff_s`` pass between tries of its own, while nobody answers."""

    def send(self, batch: Batch) -> asyncio.Future[int]: ...
    async def close(self) -> None: ...


class _Out(NamedTuple):
    """A batch that a sink was given, when, and what that had been throttled by then."""

    sink: Sink
    batch: Batch
    since_s: float
    throttled_s: float


class Outlet:
    """Where batches of one topic leave the node.

    Lifetime: ``admit`` at any time; ``run`` until cancelled; then ``close``. Whatever was
    admitted and not handed to ``settled`` or ``refused`` by then stays above the watermark.

    Args:
        name: ``events`` or ``dead_letters``; a label in metrics and logs.
        connect: Make a sink. Raises ``SinkUnavailable``.
        quiet: While the topic changes its number of partitions: what is sealed for the old one has
            been admitted, and nothing more is sealed, until the end of the block.
        settled: Called once for each batch that Kafka has, with its first ``kafka_offset`` and
            the seconds from being handed over to the acknowledgement.
        refused: Called once for a single record that Kafka will never take, with the reason.
        note: Of the audit log.
    """

    def __init__(
        self,
        name: str,
        delivery: Delivery,
        connect: Callable[[], Awaitable[Sink]],
        *,
        quiet: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        settled: Callable[[Batch, int, float], None],
        refused: Callable[[Batch, str], None],
        note: Note = unheard,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.delivery = delivery
        self.topic: Topic | None = None  # as last described
        self.described = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()
        self._connect = connect
        self._quiet = quiet
        self._settled = settled
        self._refused = refused
        self._note = note
        self._clock = clock
        self._metrics = metrics
        self._sink: Sink | None = None
        self._next: Sink | None = None  # is to take its place
        self._renewal: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()  # each alone still knows its producer
        self._broken: BaseException | None = None
        self._wake = asyncio.Event()
        self._looks_at_s = float("-inf")  # when ``run`` wakes by itself
        self._said: str | None = "not connected yet"
        self._doubted = False  # a send has failed: only an acknowledgement says it is up again
        self._noted = State.CLOSED
        metrics.zero(name)
        self._count_breaker()

    def admit(self, *batches: Batch) -> None:
        alone = self.empty.is_set()
        self.empty.clear()
        actions = [action for batch in batches for action in self.delivery.admit(batch)]
        self._carry_out(actions)
        if alone or len(actions) < len(batches):  # else they are due after others, waited for
            self._heed()

    async def run(self) -> None:
        """Let time pass for the machine: connect, retire and try again when it is due."""
        while True:
            if self._broken is not None:
                raise self._broken
            self._carry_out(self.delivery.tick())
            self._look()
            self._wake.clear()  # after: carrying out wakes too, and the tick was for this turn
            now_s, due_s = self._clock.monotonic(), self.delivery.due_s
            self._looks_at_s = now_s + LOOK_S if due_s is None else min(due_s, now_s + LOOK_S)
            await wait_event(self._wake, max(0.0, self._looks_at_s - now_s))

    def renew(self) -> None:
        """Replace a living producer: what it was connected with, its secrets, has changed.

        Nothing is lost, and nothing goes twice. The new one is connected first, so one that brokers
        do not let in replaces nothing.
        """
        if self._renewal is not None:
            self._renewal.cancel()  # it may have been connected with what was before
        self._renewal = asyncio.create_task(self._renew())
        self._keep(self._renewal)

    def hasten(self) -> None:
        """Try again now, and not when the backoff or the breaker's cooldown is over."""
        self.delivery.hasten()
        self._wake.set()

    async def close(self) -> None:
        """Let go of the producer and of what is on its way."""
        for task in self._tasks - self._closing:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        sinks, self._sink, self._next = (self._sink, self._next), None, None
        for sink in sinks:
            if sink is not None:
                await sink.close()

    @property
    def problem(self) -> str | None:
        """Return why nothing can be delivered just now, or None."""
        if self.delivery.phase is not Phase.LIVE and not self.delivery.renewing:
            return self.delivery.reason or "connecting"
        return self.delivery.outage

    def status(self) -> dict[str, object]:
        """Return what an operator asks first; plain values only."""
        delivery = self.delivery
        return {
            "phase": delivery.phase.value,
            "problem": self.problem,
            "breaker": delivery.breaker.state.value,
            "batches_queued": delivery.queued,
            "unanswered_s": round(delivery.silence_s(), 3),
        }

    def _look(self) -> None:
        """Say when answers stay away, and when they come again: no send tells of that."""
        if self._sink is not None and self.delivery.silence_s() > 0:
            self._sink.ease(self.delivery.client_backoff_s())
        if self.delivery.phase is not Phase.LIVE:
            return
        if self.problem == UNANSWERED:
            self._say(UNANSWERED)
        elif self._said == UNANSWERED and self.problem is None:
            self._say(None)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(batch):
                    assert self._sink is not None
                    self._send(self._sink, batch)
                case Refuse(batch, reason):
                    self._refused(batch, reason)
                case Connect():
                    self._spawn(self._make_sink())
                case Close():
                    self._spawn(self._drop_sink())
        if not self.delivery.queued:
            self.empty.set()
        self._note_breaker()

    def _heed(self) -> None:
        """Wake ``run`` if something is due before it would wake by itself: most that happens only
        puts off what was due."""
        due_s = self.delivery.due_s
        if due_s is not None and due_s < self._looks_at_s:
            self._wake.set()

    def _spawn(self, work: Awaitable[None]) -> None:
        self._keep(asyncio.ensure_future(work))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nobody awaits these tasks: what broke in one must end ``run``, and so the process."""
        self._tasks.discard(task)
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error
            self._wake.set()

    async def _renew(self) -> None:
        while self.delivery.phase in (Phase.LIVE, Phase.CONNECTING):
            try:
                sink = await self._connect()
            except SinkUnavailable as unavailable:
                event(log, logging.WARNING, "sink.not_renewed", sink=self.name,
                      reason=unavailable.reason, detail=str(unavailable),
                      effect="the old connections stay")  # fmt: skip
            else:
                if self.delivery.well and self._next is None:
                    self._next = sink
                    self._carry_out(self.delivery.renew())
                    self._wake.set()
                    return
                closing = asyncio.ensure_future(sink.close())
                self._closing.add(closing)
                self._keep(closing)
            await self._clock.sleep(RENEW_AGAIN_S)

    async def _make_sink(self) -> None:
        ready, self._next = self._next, None
        try:
            sink = await self._connect() if ready is None else ready
        except SinkUnavailable as unavailable:
            self._say(unavailable.reason, str(unavailable))
            self._carry_out(self.delivery.connect_failed(unavailable.reason))
            self._wake.set()
            return
        self._sink = sink
        fewer = self.topic is not None and self.topic.partitions > sink.topic.partitions
        async with self._quiet() if fewer else nullcontext():
            self.topic = sink.topic
        self.described.set()
        if not self._doubted:
            self._say(None)
        if ready is not None:
            event(log, logging.INFO, "sink.renewed", sink=self.name)
        self._carry_out(self.delivery.connected(sink.topic.partitions))
        self._wake.set()

    async def _drop_sink(self) -> None:
        sink, self._sink = self._sink, None
        assert sink is not None
        if not self.delivery.renewing:
            self._metrics.producer_retirements.labels(self.name).inc()
            self._metrics.retries.labels(self.name).inc(self.delivery.given)
            self._note("producer.retired", sink=self.name, reason=self.delivery.reason)
        dropping = asyncio.current_task()
        assert dropping is not None
        self._closing.add(dropping)
        await sink.close()
        self._carry_out(self.delivery.closed())
        self._wake.set()

    def _send(self, sink: Sink, batch: Batch) -> None:
        out = _Out(sink, batch, self._clock.monotonic(), sink.throttled_s)
        if batch.span is not None:
            batch.span.sent(batch.partition)
        sink.send(batch).add_done_callback(partial(self._answered, out))

    def _answered(self, out: _Out, answer: asyncio.Future[int]) -> None:
        """Nobody awaits an answer: what breaks over one must end ``run``, and so the process."""
        error = None if answer.cancelled() else answer.exception()
        if out.sink is not self._sink or answer.cancelled():
            return  # of a producer that was given up: what it was given is unknown
        try:
            if isinstance(error, RecordRefused | SinkUnavailable):
                self._failed(out.batch, error)
            else:
                self._acked(out, answer.result())
        except BaseException as broken:  # noqa: BLE001 - ``run`` raises it
            self._broken = broken
            self._wake.set()

    def _acked(self, out: _Out, kafka_offset: int) -> None:
        throttled_s = out.sink.throttled_s - out.throttled_s
        if throttled_s:
            self._metrics.throttled_seconds.labels(self.name).inc(throttled_s)
        if self._doubted:
            self._doubted = False
            self._say(None)
        actions = self.delivery.acked(out.batch, throttled=throttled_s > 0)
        self._settled(out.batch, kafka_offset, self._clock.monotonic() - out.since_s)
        self._carry_out(actions)
        if self._said is not None:
            self._wake.set()  # it may be said that answers come again
        elif self.delivery.held_back:
            self._heed()

    def _failed(self, batch: Batch, error: RecordRefused | SinkUnavailable) -> None:
        if isinstance(error, RecordRefused):
            event(log, logging.WARNING, "batch.refused", sink=self.name, detail=str(error))
            actions = self.delivery.refused(batch, error.reason)
        else:
            self._doubted = True
            if batch.span is not None:
                batch.span.failed(error.reason)
            self._say(error.reason, str(error))
            actions = self.delivery.failed(batch, error.reason)
        self._carry_out(actions)
        self._wake.set()

    def _say(self, reason: str | None, detail: str = "") -> None:
        """Log a change of state once, however often the same failure comes back."""
        self._metrics.sink_up.labels(self.name).set(reason is None)
        if reason is not None:
            self._metrics.send_failures.labels(self.name, reason).inc()
        if reason == self._said:
            return
        self._said = reason
        if reason is None:
            event(log, logging.INFO, "sink.up", sink=self.name)
        else:
            event(log, logging.WARNING, "sink.down", sink=self.name, reason=reason, detail=detail)

    def _note_breaker(self) -> None:
        state = self.delivery.breaker.state
        if state is not self._noted:
            self._noted = state
            self._count_breaker()
            reason = self.delivery.reason
            self._note("breaker.changed", sink=self.name, state=state.value, reason=reason)

    def _count_breaker(self) -> None:
        for state in State:
            gauge = self._metrics.breaker_state.labels(self.name, state.value)
            gauge.set(state is self._noted)
