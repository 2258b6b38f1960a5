"""Wires the rooms of one run: who tells whom, and in which thread. Nothing runs here.

What happens between the rooms stands here too: what an acknowledgement, a refusal or a commit means
to the others. ``pipeline`` has the life of a run: who starts, stops and drains when.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry

from agent import __version__
from agent.admin import Admin
from agent.assembly import InForce, Parts, config_hash
from agent.checkpoints import Checkpointer
from agent.clock import Clock, SystemClock
from agent.config import Config
from agent.control import Control
from agent.core.batch import Batch
from agent.core.quota import InFlight
from agent.heartbeat import Heartbeat
from agent.intake import Intake
from agent.lately import Lately
from agent.receipts import Receipts
from agent.reloading import Reloading, Watched
from agent.report import Report
from agent.requests import Requests
from agent.rounds import Rounds
from agent.spool import Spool
from agent.spooler import Spooler
from agent.status_page import History
from agent.store import Store
from agent.telemetry import Metrics
from agent.worker import Worker

T = TypeVar("T")

MakeParts = Callable[[Config, InForce, Clock, Metrics], Parts]


class Threads(NamedTuple):
    """One thread each: what is blocking never waits for another kind of it."""

    worker: ThreadPoolExecutor
    store: ThreadPoolExecutor
    scan: ThreadPoolExecutor


class Wiring:
    """The rooms of one run over an open store.

    Args:
        make_parts: Makes the rooms from the configuration; others than ``Parts`` read other files,
            or read them otherwise.
    """

    def __init__(
        self,
        config: Config,
        rules: InForce,
        store: Store,
        spool: Spool,
        threads: Threads,
        *,
        make_parts: MakeParts = Parts,
    ) -> None:
        self.config = config
        self.clock: Clock = SystemClock()
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.in_flight = InFlight(config.in_flight)
        self.parts = make_parts(config, rules, self.clock, self.metrics)
        self.note = self.parts.audit.note
        self.audit_topic = self.parts.audit_topic()
        # Before the rooms are made: they note what they find.
        self.note("agent.started", version=__version__, node=config.node,
                  config_hash=config_hash(config))  # fmt: skip
        self._store = store
        self._spool = spool
        self._threads = threads
        self._acked = 0  # batches
        self.checkpointer = self._checkpoint(store)
        self.receipts = Receipts(
            config.agent.state_dir,
            config.receipts,
            {"events": config.kafka.topic, "dead_letters": config.dlq.topic},
            clock=self.clock,
            metrics=self.metrics,
        )
        self.events = self._way("events", config.kafka.topic)
        self.dead_letters = self._way("dead_letters", config.dlq.topic)
        self.ways = self.events, self.dead_letters
        chunker = self.parts.chunker(
            lambda: self.events.outlet.topic, lambda: self.dead_letters.outlet.topic
        )
        self.worker = Worker(self.parts.sources(store.load()), chunker, self.parts.pace)
        self.intake = self._take_in()
        self.rounds = self._look_round()
        self.watched = self._watch()
        self.reloading = Reloading(self.watched, threads.scan, note=self.note, metrics=self.metrics)
        self.history = History(self.metrics, self.clock)
        self.heartbeat = self._listen()
        self.lately = Lately(self.parts.shown)
        self._measure()

    def admin(self) -> Admin:
        """Make the face of the run, not listening yet."""
        report = Report(
            self.config.node,
            self.ways,
            self.rounds,
            self.in_flight,
            self.worker.sources,
            reloaded=[watched.reloaded for watched in self.watched],
            heartbeat=self.heartbeat,
            history=self.history,
            lately=self.lately,
            registry=self.registry,
            clock=self.clock,
            audit=None if self.audit_topic is None else self.audit_topic.outlet,
            shown=self.parts.shown,
        )
        return Admin(
            self.config.http.host,
            self.config.http.port,
            registry=self.registry,
            health=report.health,
            ready=report.ready,
            status=report.status,
            page=report.page,
        )

    def control(self) -> Control:
        """Make what answers on the control socket, not listening yet."""
        requests = Requests(
            self.config,
            intake=self.intake,
            in_worker=self.in_worker,
            sources=self.worker.sources,
            ways=self.ways,
            in_flight=self.in_flight,
            in_store=self.in_store,
            checkpoints=self._store.load,
            write=self._write,
            codec=self.parts.codec,
            note=self.note,
            clock=self.clock,
        )
        return Control(self.config.agent.state_dir, requests.answers)

    def settled_batches(self) -> int:
        """Return how many batches were acknowledged or put by, to see whether a drain gets on."""
        return self._acked + sum(way.stored_batches for way in self.ways)

    async def in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.worker, work)

    async def in_store(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._threads.store, work)
        return await asyncio.shield(running)

    async def _write(self) -> None:
        await self.checkpointer.flush()
        await self.receipts.write()

    # ---- what happens between the rooms

    def _settled(self, outlet: str, batch: Batch, kafka_offset: int, latency_s: float) -> None:
        self._acked += 1
        self.metrics.acked(outlet, batch, latency_s, self.clock.monotonic())
        if outlet == "events":
            self.parts.pace.acked(latency_s)
        self.receipts.acked(outlet, batch, kafka_offset)
        if batch.span is not None:
            batch.span.acked(kafka_offset)
        self.checkpointer.settle(batch.chunks)
        batch.end_span("acknowledged")

    def _refused(self, outlet: str, batch: Batch, reason: str) -> None:
        """Kafka will never take this one record: it goes on as a dead letter, in its place."""
        dead_letter = self.worker.chunker.rejects.of_record(batch, reason)
        if outlet != "dead_letters":
            self.metrics.lines_rejected.labels(reason).inc()
        self.dead_letters.admit(dead_letter)

    def _committed(self) -> None:
        self.intake.room()

    # ---- the rooms

    def _checkpoint(self, store: Store) -> Checkpointer:
        return Checkpointer(
            lambda rows, forgotten: store.save(rows, forgotten, self._spool.bounds()),
            self._threads.store,
            self.in_flight,
            committed=self._committed,
            clock=self.clock,
            metrics=self.metrics,
        )

    def _way(self, name: str, topic: str) -> Spooler:
        outlet = self.parts.outlet(
            name,
            topic,
            spooled=self._spool.queues[name].records > 0,
            quiet=lambda: self.intake.quiet(),  # noqa: PLW0108 - it is made after this
            settled=partial(self._settled, name),
            refused=partial(self._refused, name),
        )
        way = Spooler(
            outlet,
            self._spool.queues[name],
            self.in_store,
            self.parts.spool_rules(name),
            in_flight=InFlight(self.config.in_flight),
            settle=self.checkpointer.settle,
            changed=lambda: self.intake.wake(),  # noqa: PLW0108 - it is made after this
            stored=partial(self.receipts.spooled, name),
            note=self.note,
            metrics=self.metrics,
        )
        self.checkpointer.tell(way.ledger, way.moved)
        return way

    def _take_in(self) -> Intake:
        return Intake(
            self.worker,
            self.in_worker,
            ways=self.ways,
            checkpointer=self.checkpointer,
            in_flight=self.in_flight,
        )

    def _look_round(self) -> Rounds:
        source = self.config.source
        return Rounds(
            source.root,
            self.parts.scanner(),
            self.intake,
            self._threads.scan,
            interval_s=source.scan_s,
            clock=self.clock,
        )

    def _watch(self) -> list[Watched]:
        """Return what is reloaded, and what then becomes of it."""
        parts, chunker = self.parts, self.worker.chunker

        async def redact() -> None:
            await self.in_worker(lambda: chunker.redact(parts.rules.redaction.value))

        async def decode() -> None:
            await self.in_worker(lambda: chunker.decode_by(parts.rules.schemas.value))

        async def renew() -> None:
            outlets = [way.outlet for way in self.ways]
            if self.audit_topic is not None:
                outlets.append(self.audit_topic.outlet)
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

    def _listen(self) -> Heartbeat:
        return Heartbeat(
            self._threads._asdict(),
            hang_s=self.config.agent.hang_s,
            each=self.history.sample,
            clock=self.clock,
        )

    def _measure(self) -> None:
        """Let metrics that are read where they stand know where."""
        metrics, counts = self.metrics, [self.in_flight, *(way.in_flight for way in self.ways)]
        metrics.in_flight_events.set_function(lambda: sum(c.events for c in counts))
        metrics.in_flight_bytes.set_function(lambda: sum(c.bytes for c in counts))
        use = metrics.buffer_use_ratio
        use.labels("in_flight").set_function(lambda: max(c.use for c in counts))
        use.labels("spool").set_function(lambda: self.events.use)
        use.labels("dead_letters").set_function(lambda: self.dead_letters.use)
        metrics.config_info.labels(config_hash(self.config)).set(1)
