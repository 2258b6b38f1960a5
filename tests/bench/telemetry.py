"""What telemetry costs an agent at full speed: one with OTLP beside one without, pair after pair.

Both live all the while, and get the same lines in turns, a file at a time: start, imports and first
connections are over by then, and what changes on the machine meets both. The CPU is that of the
agent's process from the moment at which a file appears to the last acknowledgement. Off still
counts and answers ``/metrics``: that cannot be switched off.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from tests.bench import corpus, usage
from tests.bench.command import Bench, finish, judge, merged, options
from tests.bench.reader import Reader, reading
from tests.bench.runs import Finished, as_running, await_all
from tests.bench.table import Column, Report
from tests.collector import Collector, collecting
from tests.running import Agent

LINES, QUICK_LINES = 200_000, 5_000
"""Of each pair."""
PAIRS = 12
CONFIDENCE = 0.95
OFF, ON = "off", "on: metrics, traces, logs"

COLUMNS = (
    Column("CPU s per million lines", 2),
    Column("of the CPU without", 3),
    Column("k lines/s", 0),
    Column("RSS MB"),
)


class Shipped(NamedTuple):
    cpu_s: float
    took_s: float


class Side:
    """An agent and its consumer; ``total`` lines came so far."""

    def __init__(self, agent: Agent, reader: Reader) -> None:
        self.total = 0
        self._root = agent.root / "app"
        self._root.mkdir()
        self._reader = reader
        self._running = as_running(agent.start())

    def ship(self, file: Path, lines: int) -> Shipped:
        """Let the agent have ``file``, which is back in its place when all of it arrived."""
        self.total += lines
        before_s, began_ns = usage.threads_cpu_s(self._running.pid), time.time_ns()
        moved = file.rename(self._root / file.name)
        arrived = await_all(self._running, self._reader, self.total)
        cpu_s = usage.threads_cpu_s(self._running.pid) - before_s
        moved.rename(file)
        return Shipped(cpu_s, (arrived.last_ns - began_ns) / 1e9)

    @property
    def rss_mb(self) -> float:
        return usage.rss_mb(self._running.pid)

    def finished(self) -> Finished:
        """Return what arrived of all lines."""
        arrived = self._reader.count()
        checked = None if arrived.dropped else self._reader.check(self.total)
        return Finished(self.total, 0.0, 0.0, 0.0, 0.0, 0.0, arrived, checked)


@contextmanager
def _side(bench: Bench, name: str, collector: Collector | None) -> Iterator[Side]:
    otlp: dict[str, object] = {}
    if collector is not None:
        otlp = {"endpoint": collector.endpoint, "logs": True}
    if collector is not None and bench.quick:  # so few chunks, that perhaps none would be drawn
        otlp["traces_sampled"] = 1.0
    work = bench.work / name
    work.mkdir()
    with (
        bench.brokers.topics() as topics,
        reading(bench.brokers, topics, work, plant=bench.plant) as reader,
        Agent(work, topics, **merged(bench.more, otlp=otlp)) as agent,
    ):
        yield Side(agent, reader)
        assert 0 == agent.stop(), agent.tail()


def interval(values: list[float]) -> tuple[float, float]:
    """Return bounds of the median with ``CONFIDENCE``, or all of the values where they are few.

    Order statistics, whatever the distribution: how many values are below it is binomial.
    """
    ordered, n = sorted(values), len(values)
    outside = [2 * sum(comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    left_out = max((k for k, share in enumerate(outside) if share <= 1 - CONFIDENCE), default=0)
    return ordered[left_out], ordered[n - 1 - left_out]


def report_on(bench: Bench, *, count: int, pairs: int) -> Report:
    title = f"telemetry on and off, {pairs} pairs of {count:,} lines at full speed"
    report = Report(title, COLUMNS, {"broker": bench.brokers.name})
    report.notes.append(
        "on: as by default, metrics each 10 s and a tenth of what is read traced; and log lines"
    )
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        sides = {
            OFF: stack.enter_context(_side(bench, "off", None)),
            ON: stack.enter_context(_side(bench, "on", collector)),
        }
        ratios = _pairs(report, bench, sides, count=count, pairs=pairs)
        for row, side in sides.items():
            judge(report, row, side.finished())
    cost, least, most = (100 * (ratio - 1) for ratio in (median(ratios), *interval(ratios)))
    report.notes.append(
        f"telemetry costs {cost:+.1f} % of the CPU without it, {least:+.1f} to {most:+.1f} % "
        f"with {CONFIDENCE:.0%} confidence"
    )
    exports, spans = len(collector.metrics), len(collector.spans())
    report.notes.append(f"{exports} exports of metrics, {spans} spans")
    if not (collector.metrics and collector.traces and collector.logs):
        report.troubles.append("the collector did not get all of metrics, traces and logs")
    return report


def _pairs(
    report: Report, bench: Bench, sides: dict[str, Side], *, count: int, pairs: int
) -> list[float]:
    lines, ratios = corpus.lines(count * (pairs + 1)), []
    for number in range(pairs + 1):
        file = bench.work / f"{number}.jsonl"
        with file.open("wb") as written:
            written.writelines(islice(lines, count))
        # the other way round in each second pair: who is first meets another machine
        order = (OFF, ON) if number % 2 == 0 else (ON, OFF)
        found = {row: sides[row].ship(file, count) for row in order}
        file.unlink()
        if number == 0:
            continue  # what is new to an agent is over
        ratios.append(found[ON].cpu_s / found[OFF].cpu_s)
        for row, side in sides.items():
            cpu_s, took_s = found[row]
            values: dict[str, Any] = {
                "CPU s per million lines": cpu_s / count * 1e6,
                "k lines/s": count / took_s / 1e3,
                "RSS MB": side.rss_mb,
            }
            report.add(row, **values)
        report.add(ON, **{"of the CPU without": ratios[-1]})
        bench.say(f"pair {number}: {ratios[-1]:.3f} of the CPU without")
    return ratios


@click.command()
@click.option("--lines", "count", type=click.IntRange(1), help=f"{LINES:,} by default.")
@click.option("--pairs", default=PAIRS, show_default=True, type=click.IntRange(1))
@options
def main(*, count: int | None, pairs: int, quick: bool, **common: Any) -> None:
    """Measure what telemetry costs an agent at full speed."""
    count = count or (QUICK_LINES if quick else LINES)
    pairs = 1 if quick else pairs
    finish(lambda bench: report_on(bench, count=count, pairs=pairs), quick=quick, **common)


if __name__ == "__main__":
    main()
