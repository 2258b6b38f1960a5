"""What an agent with nothing to do costs, over one file and over many."""

from typing import Any

import click

from tests.bench import usage
from tests.bench.command import Bench, finish, judge_checked, options
from tests.bench.resting import resting
from tests.bench.table import Column, Report

FILES = (1, 1_000)
QUICK_FILES = (2, 50)

COLUMNS = (
    Column("idle CPU % of a core", 2),
    Column("RSS MB"),
    Column("CPU s until then", 2),
)


def report_on(bench: Bench, *, seconds: float, rounds: int) -> Report:
    title = f"idle over {seconds:g} s, {rounds} rounds"
    report = Report(title, COLUMNS, {"broker": bench.brokers.name})
    for number in range(rounds):
        for files in QUICK_FILES if bench.quick else FILES:
            row = f"files: {files:,}"
            with resting(bench, bench.work / f"{number} {files}", files) as found:
                values: dict[str, Any] = {
                    "idle CPU % of a core": found.idle_percent(seconds),
                    "RSS MB": usage.rss_mb(found.pid),
                    "CPU s until then": found.cpu_s,
                }
                judge_checked(report, row, files, found.check())
            report.add(row, **values)
            bench.say(f"round {number + 1}: {row}")
    return report


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Measured, of each row.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@options
def main(*, seconds: float, rounds: int, quick: bool, **common: Any) -> None:
    """Measure what an agent with nothing to do costs."""
    if quick:
        seconds, rounds = 1.0, 1
    finish(lambda bench: report_on(bench, seconds=seconds, rounds=rounds), quick=quick, **common)


if __name__ == "__main__":
    main()
