"""Wires the rooms: who runs when, in which order they start and drain. Nothing else.

Start: store, Kafka (waited for at most ``kafka.start_s``), then reading. Stop: one more scan, read
to the end of each file, seal, wait for the acknowledgements, checkpoint; what does not fit into
``agent.drain_s`` stays where its checkpoint says.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry

from agent import __version__, logs
from agent.admin import Admin
from agent.assembly import InForce, Parts, config_hash
from agent.checkpoints import Checkpointer
from agent.clock import Clock, SystemClock, wait_event
from agent.config import Config
from agent.core.batch import Batch
from agent.core.quota import InFlight
from agent.core.seam import Mode
from agent.heartbeat import Heartbeat
from agent.intake import Intake, Worker
from agent.lately import Lately
from agent.reloading import Reloading, Watched
from agent.report import Report
from agent.rounds import Rounds
from agent.signals import hanging_up, stopping
from agent.spool import Spool
from agent.spooler import Spooler
from agent.status_page import History
from agent.store import Store
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

DRAIN_STALL_S = 6.0
"""A stop gives up when nothing was acknowledged for so long: Kafka is away, and waiting is vain."""
SWITCH_S = 0.0005
"""The interpreter's switch interval; its default of 5 ms is what the loop waits for the worker."""


T = TypeVar("T")


def run(config: Config, rules: InForce) -> int:
    """Run until SIGTERM or SIGINT. Return the exit code. Raises ``AgentError``."""
    sys.setswitchinterval(SWITCH_S)
    with (
        contextlib.closing(Store.open(config.agent.state_dir, config.node)) as store,
        contextlib.closing(Spool(config.agent.state_dir / "spool.db", store.spooled())) as spool,
        ThreadPoolExecutor(1, "worker") as worker,
        ThreadPoolExecutor(1, "store") as writer,
        ThreadPoolExecutor(1, "scan") as scans,
    ):
        threads = _Threads(worker, writer, scans)
        pipeline = _Pipeline(config, rules, store, spool, threads)
        with pipeline.exporting():
            return asyncio.run(pipeline.run())


class _Threads(NamedTuple):
    """One thread each: what is blocking never waits for another kind of it."""

    worker: ThreadPoolExecutor
    store: ThreadPoolExecutor
    scan: ThreadPoolExecutor


class _Pipeline:
    """One run of the agent over an open store."""

    def __init__(
        self,
        config: Config,
        rules: InForce,
        store: Store,
        spool: Spool,
        threads: _Threads,
    ) -> None:
        self._config = config
        self._clock: Clock = SystemClock()
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._in_flight = InFlight(config.in_flight)
        self._parts = Parts(config, rules, self._clock, self._metrics)
        self._note = self._parts.audit.note
        self._audit_topic = self._parts.audit_topic()
        # Before the rooms are made: they note what they find.
        self._note("agent.started", version=__version__, node=config.node,
                   config_hash=config_hash(config))  # fmt: skip
        self._spool = spool
        self._reader = threads.worker
        self._writer = threads.store
        self._checkpointer = Checkpointer(
            lambda rows, forgotten: store.save(rows, forgotten, spool.bounds()),
            threads.store,
            self._in_flight,
            committed=self._committed,
            clock=self._clock,
            metrics=self._metrics,
        )
        self._events = self._way("events", config.kafka.topic)
        self._dead_letters = self._way("dead_letters", config.dlq.topic)
        self._ways = self._events, self._dead_letters
        chunker = self._parts.chunker(
            lambda: self._events.outlet.topic, lambda: self._dead_letters.outlet.topic
        )
        self._worker = Worker(self._parts.sources(store.load()), chunker)
        self._intake = Intake(
            self._worker,
            self._in_worker,
            ways=self._ways,
            checkpointer=self._checkpointer,
            in_flight=self._in_flight,
        )
        self._rounds = Rounds(
            config.source.root,
            self._parts.scanner(),
            self._intake,
            threads.scan,
            interval_s=config.source.scan_s,
            clock=self._clock,
        )
        self._watched = self._watch()
        self._reloading = Reloading(
            self._watched, threads.scan, note=self._note, metrics=self._metrics
        )
        self._history = History(self._metrics, self._clock)
        self._heartbeat = Heartbeat(
            threads._asdict(),
            hang_s=config.agent.hang_s,
            each=self._history.sample,
            clock=self._clock,
        )
        self._lately = Lately(self._parts.shown)
        self._measure()
        self._stop = asyncio.Event()
        self._acked = 0  # batches, to see whether a drain still gets anywhere
        self._ends_s: float | None = None  # when a stop gives up; None: nobody has asked for one

    # ---- the life of one run

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """Export metrics, and log lines if wanted, where there is somebody to get them."""
        wanted = self._config.otlp
        if wanted.endpoint is None:
            yield
            return
        from agent.otlp import Exporter  # 15 MB that others need not pay

        exporter = Exporter(
            wanted, self._config.node, self._registry, clock=self._clock, metrics=self._metrics
        )
        with exporter:
            logs.copy_to(exporter.take if wanted.logs else None)
            try:
                yield
            finally:
                logs.copy_to(None)

    async def run(self) -> int:
        """Run, with the audit log around everything else."""
        copy = self._audit_topic
        self._parts.audit.start()
        if copy is not None:
            copy.start()
        try:
            return await self._run()
        finally:
            self._note("agent.stopped", unsettled_events=self._in_flight.events)
            await self._parts.audit.close()
            if copy is not None:
                ends_s = self._ends_s
                await copy.finish(0.0 if ends_s is None else ends_s - self._clock.monotonic())

    async def _run(self) -> int:
        admin, running = self._admin(), asyncio.current_task()
        assert running is not None
        abandoned = False

        def abandon() -> None:  # the checkpoints are true anyway
            nonlocal abandoned
            abandoned, self._ends_s = True, None
            running.cancel()

        await admin.start()
        try:
            with (
                stopping(self._begin_stop, abandon),
                hanging_up(self._reloading.ask),
                self._lately.listening(),
            ):
                event(log, logging.INFO, "agent.started", version=__version__, pid=os.getpid(),
                      node=self._config.node, http_port=admin.port)  # fmt: skip
                async with asyncio.TaskGroup() as tasks:
                    keep = [tasks.create_task(work) for work in self._keeping()]
                    await self._read()
                    await self._drain()
                    for task in keep:
                        task.cancel()
        except asyncio.CancelledError:
            if not abandoned:
                raise
        finally:
            self._rounds.close()
            await asyncio.gather(*(way.outlet.close() for way in self._ways), admin.close())
        event(log, logging.INFO, "agent.stopped", unsettled_events=self._in_flight.events)
        return 0

    def _keeping(self) -> list[Coroutine[None, None, None]]:
        """What goes on while a stop drains."""
        outlets = [way.outlet.run() for way in self._ways]
        aside = [self._checkpointer.run(), self._reloading.run(), self._heartbeat.run()]
        if self._audit_topic is not None:
            aside.append(self._audit_topic.watch())
        return [*outlets, *(way.run() for way in self._ways), *aside]

    async def _read(self) -> None:
        """Read until the first signal."""
        async with asyncio.TaskGroup() as tasks:
            aside = [tasks.create_task(w) for w in (self._rounds.run(), self._await_kafka())]
            reading = tasks.create_task(self._intake.run())
            await self._stop.wait()
            self._intake.stop()  # never cancelled: its last turn must be taken over
            await reading
            for task in aside:
                task.cancel()

    async def _await_kafka(self) -> None:
        """Let reading begin when the partitions are known; say so when that takes long."""
        described, start_s = self._events.outlet.described, self._config.kafka.start_s
        if not await wait_event(described, start_s):
            event(log, logging.WARNING, "kafka.absent_at_start", waited_s=start_s,
                  spooling=self._events.mode is Mode.SPOOLING)  # fmt: skip
            await described.wait()
        self._intake.wake()

    async def _drain(self) -> None:
        """Finish what can be finished, as long as Kafka still acknowledges something."""
        finishing = asyncio.ensure_future(self._finish())
        self._ends_s = ends_s = self._clock.monotonic() + self._config.agent.drain_s
        try:
            while not finishing.done():
                before, left_s = self._settled_batches(), ends_s - self._clock.monotonic()
                await asyncio.wait({finishing}, timeout=max(0.0, min(left_s, DRAIN_STALL_S)))
                if left_s <= 0 or before == self._settled_batches():
                    break
        finally:
            if not finishing.done():
                finishing.cancel()
                event(log, logging.WARNING, "drain.cut_short",
                      unsettled_events=self._in_flight.events, kafka=self._events.outlet.problem,
                      effect="they are read again at the next start")  # fmt: skip
        await asyncio.wait({finishing})
        for way in self._ways:
            await way.flush()
        await self._checkpointer.flush()
        if not finishing.cancelled():
            finishing.result()  # what broke must not end with 0

    async def _finish(self) -> None:
        events = self._events.outlet
        if events.topic is None and events.delivery.reason is None:
            await events.described.wait()  # stopped while still connecting
        for way in self._ways:
            way.rest()
        await self._rounds.scan()
        await self._intake.finish()
        for way in self._ways:  # what is refused as an event becomes a dead letter
            await way.finish()

    def _settled_batches(self) -> int:
        return self._acked + sum(way.stored_batches for way in self._ways)

    def _begin_stop(self) -> None:
        event(log, logging.INFO, "agent.stopping", drain_s=self._config.agent.drain_s)
        self._stop.set()

    # ---- what happens between the rooms

    def _measure(self) -> None:
        """Let metrics that are read where they stand know where."""
        metrics, counts = self._metrics, [self._in_flight, *(way.in_flight for way in self._ways)]
        metrics.in_flight_events.set_function(lambda: sum(c.events for c in counts))
        metrics.in_flight_bytes.set_function(lambda: sum(c.bytes for c in counts))
        use = metrics.buffer_use_ratio
        use.labels("in_flight").set_function(lambda: max(c.use for c in counts))
        use.labels("spool").set_function(lambda: self._events.use)
        use.labels("dead_letters").set_function(lambda: self._dead_letters.use)
        metrics.config_info.labels(config_hash(self._config)).set(1)

    def _watch(self) -> list[Watched]:
        """Return what is reloaded, and what then becomes of it."""
        parts, chunker = self._parts, self._worker.chunker

        async def redact() -> None:
            await self._in_worker(lambda: chunker.redact(parts.rules.redaction.value))

        async def decode() -> None:
            await self._in_worker(lambda: chunker.decode_by(parts.rules.schemas.value))

        async def renew() -> None:
            outlets = [way.outlet for way in self._ways]
            if self._audit_topic is not None:
                outlets.append(self._audit_topic.outlet)
            for outlet in outlets:
                outlet.renew()

        async def wait() -> None:
            """The next session begins with it."""

        return [
            Watched(parts.rules.redaction, redact),
            Watched(parts.rules.schemas, decode),
            Watched(parts.credentials.secrets(), renew),
            Watched(parts.credentials.tokens(), wait),
        ]

    def _settled(self, outlet: str, batch: Batch, kafka_offset: int, latency_s: float) -> None:
        self._acked += 1
        self._metrics.acked(outlet, batch, latency_s, self._clock.monotonic())
        if outlet == "events":
            self._parts.pace.acked(latency_s)
        self._checkpointer.settle(batch.chunks)

    def _refused(self, outlet: str, batch: Batch, reason: str) -> None:
        """Kafka will never take this one record: it goes on as a dead letter, in its place."""
        dead_letter = self._worker.chunker.rejects.of_record(batch, reason)
        if outlet != "dead_letters":
            self._metrics.lines_rejected.labels(reason).inc()
        self._dead_letters.admit(dead_letter)

    def _committed(self) -> None:
        self._intake.room()

    def _way(self, name: str, topic: str) -> Spooler:
        outlet = self._parts.outlet(
            name,
            topic,
            spooled=self._spool.queues[name].records > 0,
            quiet=lambda: self._intake.quiet(),  # noqa: PLW0108 - it is made after this
            settled=partial(self._settled, name),
            refused=partial(self._refused, name),
        )
        way = Spooler(
            outlet,
            self._spool.queues[name],
            self._in_store,
            self._parts.spool_rules(name),
            in_flight=InFlight(self._config.in_flight),
            settle=self._checkpointer.settle,
            changed=lambda: self._intake.wake(),  # noqa: PLW0108 - it is made after this
            note=self._note,
            metrics=self._metrics,
        )
        self._checkpointer.tell(way.ledger, way.moved)
        return way

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)

    async def _in_store(self, work: Callable[[], T]) -> T:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, work))

    def _admin(self) -> Admin:
        sources = self._worker.sources
        report = Report(
            self._config.node,
            self._ways,
            self._rounds,
            self._in_flight,
            sources,
            reloaded=[watched.reloaded for watched in self._watched],
            heartbeat=self._heartbeat,
            history=self._history,
            lately=self._lately,
            registry=self._registry,
            clock=self._clock,
            audit=None if self._audit_topic is None else self._audit_topic.outlet,
            shown=self._parts.shown,
        )
        return Admin(
            self._config.http.host,
            self._config.http.port,
            registry=self._registry,
            health=report.health,
            ready=report.ready,
            status=report.status,
            page=report.page,
        )
