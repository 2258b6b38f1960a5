"""Phases over one agent: the quiet clients alone, or beside the one that floods."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import quantiles
from typing import Any, NamedTuple

from agent.demo.scene import Topics
from tests.fair.apps import Written, flood, write_little
from tests.fair.reader import Arrived, Ask, Sample, read
from tests.running import Agent

PARTITIONS = 12
ALL_READ_WITHIN_S = 300.0

_spawn = multiprocessing.get_context("spawn")


class Plan(NamedTuple):
    """Of each phase; rates are lines a second.

    Args:
        warm_s: At the begin nothing is measured: a batch size has to be found first.
    """

    clients: int = 20
    client_per_s: float = 100.0
    flood_per_s: float = 50_000.0
    seconds: float = 8.0
    warm_s: float = 2.0


class Phase(NamedTuple):
    """What came of one phase.

    Args:
        p50_ms, p99_ms: From append to the consumer, of lines of quiet clients.
        taken_in_p99_ms: From append until the agent read them: what turns can do something about.
        flood_written_per_s: By the one that floods; 0 where it did not run.
        read_per_s: All lines that reached the consumer while it was written.
        drained_s: From the last append until the consumer had every line.
        lost: Lines that it did not get at all.
    """

    p50_ms: float
    p99_ms: float
    taken_in_p99_ms: float
    flood_written_per_s: float
    read_per_s: float
    drained_s: float
    lines: int
    lost: int
    copies: int


class Reader:
    """The consumer's process; in a ``with`` block of ``reading``."""

    def __init__(self, tell: Connection) -> None:
        self._tell = tell

    def arrived(self) -> Arrived:
        found = self._ask("count")
        assert isinstance(found, Arrived)
        return found

    def take(self) -> list[Sample]:
        """Return what was measured since the last call."""
        samples: list[Sample] = self._ask("take")
        return samples

    def _ask(self, ask: Ask) -> Any:  # unpickled
        self._tell.send(ask)
        return self._tell.recv()


@contextmanager
def reading(topics: Topics) -> Iterator[Reader]:
    ours, its = _spawn.Pipe()
    process = _spawn.Process(
        target=read, args=(topics.bootstrap_servers, topics.events, PARTITIONS, its), daemon=True
    )
    process.start()
    its.close()  # so that its end is seen here, if it ends
    try:
        yield Reader(ours)
        ours.send("end")
        process.join(10)
    finally:
        process.kill()


def run(agent: Agent, reader: Reader, plan: Plan, *, number: int, beside: bool) -> Phase:
    """Run one phase to its end: the consumer has all of it, or time is up."""
    files = [agent.root / f"quiet-{n:02}" / "a.jsonl" for n in range(plan.clients)]
    flooded = agent.root / "flood" / f"{number}.jsonl"
    for path in (*files, flooded):
        path.parent.mkdir(exist_ok=True)
    seconds = plan.warm_s + plan.seconds
    measured_ns = time.time_ns() + int(plan.warm_s * 1e9)
    apps = [_start(write_little, files, plan.client_per_s, seconds)]
    if beside:
        apps.append(_start(flood, flooded, plan.flood_per_s, seconds))
    written: list[Written] = [app.recv() for app in apps]
    ended_s, lines = time.monotonic(), sum(one.lines for one in written)
    read_per_s = reader.arrived().lines / max(one.took_s for one in written)
    arrived = _all_read(reader, lines)
    drained_s = time.monotonic() - ended_s
    samples = [sample for sample in reader.take() if sample.written_ns >= measured_ns]
    took_ms = quantiles([(one.arrived_ns - one.written_ns) / 1e6 for one in samples], n=100)
    taken_in_ms = quantiles([(one.taken_in_ns - one.written_ns) / 1e6 for one in samples], n=100)
    flooded.unlink(missing_ok=True)
    return Phase(
        p50_ms=took_ms[49],
        p99_ms=took_ms[98],
        taken_in_p99_ms=taken_in_ms[98],
        flood_written_per_s=written[1].lines / written[1].took_s if beside else 0.0,
        read_per_s=read_per_s,
        drained_s=drained_s,
        lines=lines,
        lost=lines - arrived.lines,
        copies=arrived.copies,
    )


def _start(app: Callable[..., None], *arguments: object) -> Connection:
    ours, its = _spawn.Pipe()
    _spawn.Process(target=app, args=(*arguments, its), daemon=True).start()
    its.close()
    return ours


def _all_read(reader: Reader, lines: int) -> Arrived:
    deadline_s = time.monotonic() + ALL_READ_WITHIN_S
    while (arrived := reader.arrived()).lines < lines and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return arrived
