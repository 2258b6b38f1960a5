"""What telemetry costs an agent at full speed: with OTLP and without, pair after pair.

CPU of the agent from the moment at which a file with all lines appears to the last acknowledgement;
what it takes to start, and to import what exports need, is over by then. Off still counts and
answers ``/metrics``: that cannot be switched off.
"""

import time
from itertools import islice
from math import comb
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

from tests.bench import corpus, usage
from tests.bench.command import Bench, finish, judge, merged, options
from tests.bench.reader import reading
from tests.bench.runs import Finished, as_running, await_all
from tests.bench.table import Column, Report
from tests.collector import collecting
from tests.running import Agent, append

LINES, QUICK_LINES = 600_000, 20_000
WARM_LINES = 2_000
"""Shipped before, so that all is imported and each sink has a producer."""
PAIRS = 10
CONFIDENCE = 0.95
OFF, ON = "off", "on: metrics, traces, logs"

COLUMNS = (
    Column("CPU s per million lines", 2),
    Column("of the CPU without", 3),
    Column("k lines/s", 0),
    Column("RSS MB"),
    Column("spans", 0),
)


class Lines(NamedTuple):
    """Args:
    warm: The first ones, without their newlines.
    rest: A file of all others; agents get it one after the other.
    total: How many there are in both.
    """

    warm: list[bytes]
    rest: Path
    total: int

    @classmethod
    def write(cls, work: Path, count: int) -> "Lines":
        found = corpus.lines(count)
        warm = [line.removesuffix(b"\n") for line in islice(found, WARM_LINES)]
        rest = work / "rest.jsonl"
        with rest.open("wb") as file:
            file.writelines(found)
        return cls(warm, rest, count)


def interval(values: list[float]) -> tuple[float, float]:
    """Return bounds of the median with ``CONFIDENCE``, or all of the values where they are few.

    Order statistics, whatever the distribution: how many values are below it is binomial.
    """
    ordered, n = sorted(values), len(values)
    outside = [2 * sum(comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    left_out = max((k for k, share in enumerate(outside) if share <= 1 - CONFIDENCE), default=0)
    return ordered[left_out], ordered[n - 1 - left_out]


def report_on(bench: Bench, *, count: int, pairs: int) -> Report:
    title = f"telemetry on and off, {count:,} lines at full speed, {pairs} pairs"
    report = Report(title, COLUMNS, {"broker": bench.brokers.name})
    report.notes.append(
        "on: as by default, metrics each 10 s and a tenth of what is read traced; and log lines"
    )
    lines, ratios = Lines.write(bench.work, count), []
    for number in range(pairs):
        # the other way round in each second pair: who is first meets another machine
        rows = (OFF, ON) if number % 2 == 0 else (ON, OFF)
        found = {row: _run(bench, f"{number} {row[:3]}", lines, on=row == ON) for row in rows}
        ratios.append(found[ON].run.cpu_s / found[OFF].run.cpu_s)
        for row in rows:
            judge(report, row, found[row].run)
            report.add(row, **_values(found[row]))
        report.add(ON, **{"of the CPU without": ratios[-1]})
        bench.say(f"pair {number + 1}: {ratios[-1]:.3f} of the CPU without")
    low, high = interval(ratios)
    report.notes.append(
        f"telemetry costs {100 * (median(ratios) - 1):+.1f} % of the CPU without it, "
        f"{100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} % with {CONFIDENCE:.0%} confidence"
    )
    return report


class Measured(NamedTuple):
    run: Finished
    spans: int


def _run(bench: Bench, name: str, lines: Lines, *, on: bool) -> Measured:
    work = bench.work / name
    work.mkdir()
    with (
        collecting() as collector,
        bench.brokers.topics() as topics,
        reading(bench.brokers, topics, work, plant=bench.plant) as reader,
    ):
        wanted = {"endpoint": collector.endpoint, "logs": True}
        with Agent(work, topics, **merged(bench.more, otlp=wanted if on else {})) as agent:
            append(agent.root / "app" / "warm.jsonl", lines.warm)
            running = as_running(agent.start())
            await_all(running, reader, len(lines.warm))
            agent.until(lambda: not on or bool(collector.metrics), "an export")
            before_s, began_ns = usage.cpu_s(running.pid), time.time_ns()
            rest = lines.rest.rename(agent.root / "app" / "rest.jsonl")
            try:
                arrived = await_all(running, reader, lines.total)
                cpu_s = usage.cpu_s(running.pid) - before_s
                rss_mb, peak_mb = usage.rss_mb(running.pid), usage.peak_rss_mb(running.pid)
                assert 0 == agent.stop(), agent.tail()
            finally:
                rest.rename(lines.rest)
        checked = None if arrived.dropped else reader.check(lines.total)
        took_s = (arrived.last_ns - began_ns) / 1e9
        done = Finished(lines.total, cpu_s, 0.0, took_s, rss_mb, peak_mb, arrived, checked)
        return Measured(done, len(collector.spans()))


def _values(found: Measured) -> dict[str, Any]:
    return {
        "CPU s per million lines": found.run.cpu_s_per_million,
        "k lines/s": found.run.k_lines_per_s,
        "RSS MB": found.run.rss_mb,
        "spans": found.spans,
    }


@click.command()
@click.option(
    "--lines", "count", type=click.IntRange(2 * WARM_LINES), help=f"{LINES:,} by default."
)
@click.option("--pairs", default=PAIRS, show_default=True, type=click.IntRange(1))
@options
def main(*, count: int | None, pairs: int, quick: bool, **common: Any) -> None:
    """Measure what telemetry costs an agent at full speed."""
    count = count or (QUICK_LINES if quick else LINES)
    pairs = 1 if quick else pairs
    finish(lambda bench: report_on(bench, count=count, pairs=pairs), quick=quick, **common)


if __name__ == "__main__":
    main()
