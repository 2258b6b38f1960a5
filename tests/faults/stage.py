"""Where a fault is played: apps that write, an agent that runs, and the oracle at the end."""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Self
from uuid import uuid4

from agent.clock import SystemClock
from agent.demo.app import defect
from agent.demo.oracle import Arrival, Arrivals, compare, sources_below
from agent.demo.scene import App, Topics
from tests import real_kafka
from tests.faults.cluster import Kafka
from tests.faults.large import Large
from tests.faults.outcome import Outcome
from tests.faults.scale import Scale
from tests.kills.siege import chunk_lines_max
from tests.running import Agent, append

CLIENTS = ("checkout", "search")
BAD_SHARE = 0.1
FLOWING_EVENTS = 50
EVENTS_MAX = 500
"""In flight; small, so that the bound on copies means something and backpressure takes part."""
SETTINGS = {"message.timestamp.type": "LogAppendTime"}
"""Of both topics: a record's time is when Kafka took it."""
STOP_AWAY_S = 10.0
"""docs/delivery.md: a stop without Kafka ends within this."""


class CalledOff(Exception):
    """Nobody wants to know how it ends."""


class Stage:
    """One agent, its apps and its topics, for one run of one fault; in a ``with`` block.

    Attributes:
        agent: Not started.
        draw: Every random choice comes from here.

    Args:
        called_off: Once it is set, whatever waits here raises ``CalledOff``.
    """

    def __init__(
        self,
        work: Path,
        kafka: Kafka,
        scale: Scale,
        fault: str,
        seed: str,
        *,
        called_off: Event | None = None,
    ) -> None:
        work.mkdir(parents=True)
        self.kafka = kafka
        self.scale = scale
        self.fault = fault
        self.seed = seed
        self.draw = random.Random(seed)  # noqa: S311  to be repeated, not to be secret
        self.client_id = f"{fault}-{uuid4().hex[:8]}"  # quotas go by it
        self.topics = Topics(kafka.bootstrap_servers, self.client_id, f"{self.client_id}-dlq")
        self.agent = Agent(work, self.topics, obedient=False, **self._sections())
        self._apps = [App(self.agent.root, work, client) for client in CLIENTS]
        self._called_off = called_off or Event()
        self._loop = asyncio.Runner()  # of the apps
        self._arrivals = Arrivals()
        self._ends = 0
        self._over_ms: float | None = None
        self._large = Large(self.draw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:
            closing.callback(self._loop.close)
            closing.enter_context(self.agent)
            for app in self._apps:
                closing.callback(app.close)

    # ---- topics

    def create_topics(self, partitions: int = 6, replication: int = 3, **configs: object) -> None:
        self.create_events(partitions, replication, **configs)
        self.create_dead_letters()

    def create_events(self, partitions: int = 6, replication: int = 3, **configs: object) -> None:
        """Create the topic of events; ``min_insync_replicas=2`` sets ``min.insync.replicas``."""
        dotted = {name.replace("_", "."): str(value) for name, value in configs.items()}
        replication = min(replication, len(self.kafka.nodes))
        self.kafka.create(self.topics.events, partitions, replication, {**SETTINGS, **dotted})

    def create_dead_letters(self) -> None:
        replication = len(self.kafka.nodes)
        self.kafka.create(self.topics.dead_letters, 1, replication, SETTINGS)

    def delete_events(self) -> None:
        """Delete the topic of events, everything written so far being in it and read."""
        self.pause_apps(True)
        self.settled()
        self._read(self.topics.events)
        self.kafka.delete(self.topics.events)
        self.pause_apps(False)

    # ---- apps

    def write(self) -> None:
        """Let all apps write until the end."""
        for app in self._apps:
            self._loop.run(
                app.start(
                    self.draw.randrange(1 << 32),
                    rate=self.scale.rate,
                    rotate_bytes=self.scale.rotate_bytes,
                    bad_share=BAD_SHARE,
                )
            )

    def pause_apps(self, paused: bool) -> None:
        for app in self._apps:
            app.pause(paused)

    def write_large(self, count: int, *, refused: bool) -> None:
        """Write long lines, short ones among them, to a file of their own.

        From the first that is ``refused`` on, the topic refuses them all.
        """
        if refused and self._large.refused_from is None:
            self._large.refused_from = self._large.written
        append(self.agent.root / "large" / "feedback.jsonl", self._large.lines(count))

    # ---- the agent

    def begin(self) -> None:
        """Write, start the agent and wait until events arrive."""
        self.write()
        self.agent.start()
        self.flowing()

    def flowing(self) -> None:
        """Wait until this life of the agent delivers more than it has."""
        wanted = self.agent.metric("events_delivered_total") + FLOWING_EVENTS
        self.until(lambda: self.agent.metric("events_delivered_total") >= wanted, "events arrive")

    def noticed(self, sink: str = "events") -> None:
        """Wait until /readyz says that Kafka takes nothing for ``sink``."""
        self.until(
            lambda: any(reason.startswith(f"{sink}:") for reason in self.agent.reasons()),
            f"{sink} in trouble",
        )

    def held(self) -> None:
        """Wait until events that cannot go lie in the spool."""
        self.noticed()
        self.until(lambda: self.spooled() > 0, "events are spooled")

    def well(self) -> None:
        """Wait until /readyz remarks nothing."""
        self.until(lambda: not self.agent.reasons(), "all is well")

    def replaying(self) -> None:
        self.until(lambda: self.agent.mode() == "replaying", "it replays")

    def settled(self) -> None:
        """Wait until everything written was read and has arrived."""

        def holds() -> bool:
            metric = self.agent.metric
            return 0 == metric("lag_bytes") == metric("in_flight_events") == metric("spool_records")

        self.until(holds, "all is settled")

    def spooled(self, sink: str = "events") -> float:
        """Return how many records of ``sink`` lie in the spool."""
        return self.agent.metric("spool_records", sink=sink)

    def wait(self, seconds: float) -> None:
        if self._called_off.wait(seconds):
            raise CalledOff

    def kill(self) -> None:
        self._count_retirements()
        self._ends += 1
        self.agent.kill()

    def kill_often(self, apart_s: float) -> None:
        """Kill and start, again and again, at random moments at most ``apart_s`` apart."""
        for _ in range(self.scale.kills):
            self.wait(self.draw.uniform(0, apart_s))
            self.kill()
            self.agent.start()

    def stop_away(self) -> None:
        """SIGTERM while Kafka is away: what has no answer may be there, and goes again."""
        self._ends += 1
        self._stop(STOP_AWAY_S)

    def _stop(self, within_s: float) -> None:
        self._count_retirements()
        assert self.agent.stop(within_s) == 0, self.agent.tail()

    def _count_retirements(self) -> None:
        self._ends += int(self.agent.metric("producer_retirements_total"))

    def until(self, holds: Callable[[], bool], what: str) -> None:
        def wanted() -> bool:
            if self._called_off.is_set():
                raise CalledOff
            return holds()

        self.agent.until(wanted, f"{self.fault}, seed {self.seed}: {what}", self.scale.within_s)

    def _sections(self) -> dict[str, Mapping[str, object]]:
        kafka = {
            "client_id": self.client_id,
            "request_timeout_s": self.scale.request_timeout_s,
            **self.scale.sections.get("kafka", {}),
        }
        return {**self.scale.sections, "kafka": kafka, "in_flight": {"events_max": EVENTS_MAX}}

    # ---- the end

    def over(self, *, start: bool = False) -> None:
        """Note that the fault has ended, and wait until events arrive: this is the recovery.

        ``start`` an agent that was stopped.
        """
        self._over_ms = SystemClock().wall() * 1000  # as Kafka's times
        if start:
            self.agent.start()
        self.flowing()

    def finish(self) -> Outcome:
        """End apps and agent in peace, read back and compare."""
        for app in self._apps:
            self._loop.run(app.stop())
        self.settled()
        self._stop(self.scale.within_s)
        assert not self.agent.log_entries("drain.cut_short"), self.agent.tail()  # all is well
        self._read(self.topics.events)
        self._read(self.topics.dead_letters)
        sources = self._large.among(sources_below(self.agent.root))
        verdict = compare(sources, self._arrivals, defect)
        self._large.count_in(verdict)
        copies_max = self._ends * (EVENTS_MAX + chunk_lines_max(sources)) if self._ends else 0
        self.kafka.delete(self.topics.events, self.topics.dead_letters)
        return Outcome(
            fault=self.fault,
            seed=self.seed,
            verdict=verdict,
            ends=self._ends,
            copies_max=copies_max,
            recovery_s=self._recovery_s(),
        )

    def _read(self, topic: str) -> None:
        dead = topic == self.topics.dead_letters
        servers, timeout_s = self.topics.bootstrap_servers, self.scale.within_s
        for r in self._loop.run(real_kafka.read_all(servers, topic, timeout_s=timeout_s)):
            if dead and self._large.take(r):
                continue
            at_ns = r.timestamp * 1_000_000
            arrival = Arrival(dead, r.partition, r.key, r.value, r.headers, r.timestamp, at_ns)
            self._arrivals.add(arrival)

    def _recovery_s(self) -> float | None:
        if self._over_ms is None:
            return None
        last_ms = self._over_ms
        for rows in self._arrivals.by_source.values():
            seen = set()
            for row in rows:
                written_ms = row.produced_ms - row.latency_us / 1000
                first = row.start not in seen
                seen.add(row.start)
                if first and row.latency_us >= 0 and written_ms <= self._over_ms:
                    last_ms = max(last_ms, row.produced_ms)
        return (last_ms - self._over_ms) / 1000
