"""What an agent holds in memory: idle over few and many files, and behind by little and by much."""

from typing import Any

import click

from tests.bench import corpus, usage
from tests.bench.command import Bench, finish, judge, judge_checked, options
from tests.bench.resting import resting
from tests.bench.runs import OurAgent, run
from tests.bench.table import Column, Report

FILES = (1, 10_000)
LINES = 100_000
LINE_BYTES = 423
QUICK_FILES = (2, 50)
QUICK_LINES = (1_000, 5_000)

COLUMNS = (Column("RSS MB"), Column("peak RSS MB"))


def report_on(bench: Bench, *, gigabytes: float, rounds: int) -> Report:
    report = Report(f"memory, {rounds} rounds", COLUMNS, {"broker": bench.brokers.name})
    backlogs = (LINES, int(gigabytes * 1e9 / LINE_BYTES))
    for number in range(rounds):
        for files in QUICK_FILES if bench.quick else FILES:
            idle(bench, report, number, files)
        for lines in QUICK_LINES if bench.quick else backlogs:
            catch_up(bench, report, number, lines)
    return report


def idle(bench: Bench, report: Report, number: int, files: int) -> None:
    row = f"idle, files: {files:,}"
    with resting(bench, bench.work / f"{number} {row}", files) as found:
        values: dict[str, Any] = {
            "RSS MB": usage.rss_mb(found.pid),
            "peak RSS MB": usage.peak_rss_mb(found.pid),
        }
        judge_checked(report, row, files, found.check())
    report.add(row, **values)
    bench.say(f"round {number + 1}: {row}")


def catch_up(bench: Bench, report: Report, number: int, lines: int) -> None:
    path = bench.work / "corpus.jsonl"
    row = f"catch-up, {lines:,} lines, {corpus.write(path, lines) / 1e9:.2f} GB"
    done = run(
        OurAgent(bench.more),
        bench.brokers,
        bench.work / f"{number} {lines}",
        path,
        lines,
        plant=bench.plant,
    )
    path.unlink()
    judge(report, row, done)
    values: dict[str, Any] = {"RSS MB": done.rss_mb, "peak RSS MB": done.peak_rss_mb}
    report.add(row, **values)
    bench.say(f"round {number + 1}: {row}")


@click.command()
@click.option("--gigabytes", default=1.0, show_default=True, help="Of the larger backlog.")
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1))
@options
def main(*, gigabytes: float, rounds: int, quick: bool, **common: Any) -> None:
    """Measure what an agent holds in memory."""
    rounds = 1 if quick else rounds
    finish(
        lambda bench: report_on(bench, gigabytes=gigabytes, rounds=rounds), quick=quick, **common
    )


if __name__ == "__main__":
    main()
