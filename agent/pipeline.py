"""The life of a run: who runs when, in which order rooms start and drain. ``wiring`` has the rooms.

Start: store, Kafka (waited for at most ``kafka.start_s``), then reading. Stop: one more scan, read
to the end of each file, seal, wait for the acknowledgements, checkpoint; what does not fit into
``agent.drain_s`` stays where its checkpoint says.

A run with an errand (a backfill) ends by itself, and a stop reads nothing more: what is left stays
where its checkpoint says.
"""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from agent import __version__, logs
from agent.assembly import InForce, Parts
from agent.clock import Clock, wait_event
from agent.config import Config
from agent.control import Control
from agent.core.seam import Mode
from agent.signals import hanging_up, stopping
from agent.spool import Spool
from agent.store import Store
from agent.telemetry import Metrics, event
from agent.wiring import Threads, Wiring

log = logging.getLogger(__name__)

DRAIN_STALL_S = 6.0
"""A stop gives up when nothing was acknowledged for so long: Kafka is away, and waiting is vain."""
SWITCH_S = 0.0005
"""The interpreter's switch interval; its default of 5 ms is what the loop waits for the worker."""


class Errand(Protocol):
    """What a run is for that does not follow files for good."""

    def parts(self, config: Config, rules: InForce, clock: Clock, metrics: Metrics) -> Parts:
        """Make the rooms that read; called once, before ``run``."""

    async def run(self, wiring: Wiring) -> None:
        """Bring files to the intake; return when all is done. Cancelled by a stop."""


def run(config: Config, rules: InForce, errand: Errand | None = None) -> int:
    """Run until SIGTERM or SIGINT, or until ``errand`` is done. Return the exit code.

    Raises ``AgentError``.
    """
    sys.setswitchinterval(SWITCH_S)
    with (
        contextlib.closing(Store.open(config.agent.state_dir, config.node)) as store,
        contextlib.closing(Spool(config.agent.state_dir / "spool.db", store.spooled())) as spool,
        ThreadPoolExecutor(1, "worker") as worker,
        ThreadPoolExecutor(1, "store") as writer,
        ThreadPoolExecutor(1, "scan") as scans,
    ):
        threads = Threads(worker, writer, scans)
        parts = Parts if errand is None else errand.parts
        wiring = Wiring(config, rules, store, spool, threads, make_parts=parts)
        life = Life(wiring, errand)
        with life.exporting():
            return asyncio.run(life.run())


class Life:
    """One run of what is wired, from its start to its end."""

    def __init__(self, wiring: Wiring, errand: Errand | None = None) -> None:
        self._wiring = wiring
        self._errand = errand
        self._config = wiring.config
        self._clock = wiring.clock
        self._stop = asyncio.Event()
        self._ends_s: float | None = None  # when a stop gives up; None: nobody has asked for one

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """Export metrics, traces and log lines as wanted, where there is somebody to get them."""
        wanted, wiring = self._config.otlp, self._wiring
        if wanted.endpoint is None:
            yield
            return
        from agent.otlp import Exporter  # 15 MB that others need not pay

        exporter = Exporter(
            wanted,
            self._config.node,
            wiring.registry,
            shown=wiring.parts.shown,
            clock=self._clock,
            metrics=wiring.metrics,
        )
        wiring.worker.chunker.trace(wiring.parts.tracer(exporter.take_span))
        with exporter:
            logs.copy_to(exporter.take if wanted.logs else None)
            try:
                yield
            finally:
                logs.copy_to(None)

    async def run(self) -> int:
        """Run, with the audit log around everything else."""
        wiring, copy = self._wiring, self._wiring.audit_topic
        wiring.parts.audit.start()
        if copy is not None:
            copy.start()
        try:
            return await self._run()
        finally:
            wiring.note("agent.stopped", unsettled_events=wiring.in_flight.events)
            await wiring.receipts.close()
            await wiring.parts.audit.close()
            if copy is not None:
                ends_s = self._ends_s
                await copy.finish(0.0 if ends_s is None else ends_s - self._clock.monotonic())

    async def _run(self) -> int:
        wiring, running = self._wiring, asyncio.current_task()
        admin = wiring.admin() if self._errand is None else None
        control = wiring.control() if self._errand is None else None
        assert running is not None
        abandoned = False

        def abandon() -> None:  # the checkpoints are true anyway
            nonlocal abandoned
            abandoned, self._ends_s = True, None
            running.cancel()

        if admin is not None:
            await admin.start()
        try:
            with (
                stopping(self._begin_stop, abandon),
                hanging_up(wiring.reloading.ask),
                wiring.lately.listening(),
                contextlib.nullcontext() if control is None else control.listening(),
            ):
                event(log, logging.INFO, "agent.started", version=__version__, pid=os.getpid(),
                      node=self._config.node,
                      http_port=None if admin is None else admin.port)  # fmt: skip
                async with asyncio.TaskGroup() as tasks:
                    keep = [tasks.create_task(work) for work in self._keeping(control)]
                    await self._read()
                    await self._drain()
                    for task in keep:
                        task.cancel()
        except asyncio.CancelledError:
            if not abandoned:
                raise
        finally:
            wiring.rounds.close()
            faces = [] if admin is None else [admin.close()]
            await asyncio.gather(*(way.outlet.close() for way in wiring.ways), *faces)
        event(log, logging.INFO, "agent.stopped", unsettled_events=wiring.in_flight.events)
        return 0

    def _keeping(self, control: Control | None) -> list[Coroutine[None, None, None]]:
        """What goes on while a stop drains."""
        wiring = self._wiring
        outlets = [way.outlet.run() for way in wiring.ways]
        aside = [wiring.checkpointer.run(), wiring.reloading.run(), wiring.heartbeat.run()]
        aside.append(wiring.receipts.run())
        if wiring.audit_topic is not None:
            aside.append(wiring.audit_topic.watch())
        if control is not None:
            aside.append(control.run())
        return [*outlets, *(way.run() for way in wiring.ways), *aside]

    async def _read(self) -> None:
        """Read until the first signal, or until there is nothing left to do."""
        intake = self._wiring.intake
        async with asyncio.TaskGroup() as tasks:
            aside = [tasks.create_task(w) for w in (self._look(), self._await_kafka())]
            reading = tasks.create_task(intake.run())
            await self._stop.wait()
            intake.stop()  # never cancelled: its last turn must be taken over
            await reading
            for task in aside:
                task.cancel()

    async def _look(self) -> None:
        """Keep the intake informed of which files there are."""
        if self._errand is None:
            await self._wiring.rounds.run()
        else:
            await self._errand.run(self._wiring)
            self._begin_stop()

    async def _await_kafka(self) -> None:
        """Let reading begin when the partitions are known; say so when that takes long."""
        events, start_s = self._wiring.events, self._config.kafka.start_s
        if not await wait_event(events.outlet.described, start_s):
            event(log, logging.WARNING, "kafka.absent_at_start", waited_s=start_s,
                  spooling=events.mode is Mode.SPOOLING)  # fmt: skip
            await events.outlet.described.wait()
        self._wiring.intake.wake()
        await wait_event(self._wiring.dead_letters.outlet.described, start_s)
        self._wiring.intake.wake()

    async def _drain(self) -> None:
        """Finish what can be finished, as long as Kafka still acknowledges something."""
        wiring = self._wiring
        finishing = asyncio.ensure_future(self._finish())
        self._ends_s = ends_s = self._clock.monotonic() + self._config.agent.drain_s
        try:
            while not finishing.done():
                before, left_s = wiring.settled_batches(), ends_s - self._clock.monotonic()
                await asyncio.wait({finishing}, timeout=max(0.0, min(left_s, DRAIN_STALL_S)))
                if left_s <= 0 or before == wiring.settled_batches():
                    break
        finally:
            if not finishing.done():
                finishing.cancel()
                event(log, logging.WARNING, "drain.cut_short",
                      unsettled_events=wiring.in_flight.events,
                      spooled_records=sum(way.spooled_records for way in wiring.ways),
                      kafka=wiring.events.outlet.problem,
                      effect="the next start goes on with them")  # fmt: skip
        await asyncio.wait({finishing})
        for way in wiring.ways:
            await way.flush()
        await wiring.checkpointer.flush()
        if not finishing.cancelled():
            finishing.result()  # what broke must not end with 0

    async def _finish(self) -> None:
        wiring, events = self._wiring, self._wiring.events.outlet
        if events.topic is None and events.delivery.reason is None and self._errand is None:
            await events.described.wait()  # stopped while still connecting
        for way in wiring.ways:
            way.rest()
        if self._errand is None:
            await wiring.rounds.scan()
            await wiring.intake.finish()
        else:
            await wiring.intake.seal()
        for way in wiring.ways:  # what is refused as an event becomes a dead letter
            await way.finish()

    def _begin_stop(self) -> None:
        event(log, logging.INFO, "agent.stopping", drain_s=self._config.agent.drain_s)
        self._stop.set()
