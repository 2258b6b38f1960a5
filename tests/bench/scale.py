"""How costs grow: with the number of files, and with the number of lines."""

from typing import Any

import click

from tests.bench import corpus, usage
from tests.bench.command import Bench, finish, judge, judge_checked, options
from tests.bench.resting import resting
from tests.bench.runs import Finished, OurAgent, run
from tests.bench.table import Column, Report

FILES = (1, 100, 1_000, 10_000, 50_000)
LINES = (100_000, 1_000_000, 10_000_000)
QUICK_FILES = (2, 50)
QUICK_LINES = (1_000, 5_000)
IDLE_S = 30.0

COLUMNS = (
    Column("start to first s", 2),
    Column("start to all s", 2),
    Column("restart to first s", 2),
    Column("idle CPU % of a core", 2),
    Column("RSS MB"),
    Column("CPU s", 2),
    Column("CPU s per million lines", 2),
    Column("per million more", 2),
    Column("k lines/s", 0),
)


def report_on(bench: Bench, *, files_max: int, lines_max: int) -> Report:
    report = Report("as work grows", COLUMNS, {"broker": bench.brokers.name})
    report.notes.append("restart to first: over its checkpoints, to a line written meanwhile")
    report.notes.append("per million more: what the lines beyond those of the row above cost")
    for files in QUICK_FILES if bench.quick else FILES:
        if files <= files_max:
            of_files(bench, report, files)
    before: Finished | None = None
    for lines in QUICK_LINES if bench.quick else LINES:
        if lines <= lines_max:
            before = of_lines(bench, report, lines, before)
    return report


def of_files(bench: Bench, report: Report, files: int) -> None:
    """Add the row of ``files`` files with a line each."""
    row = f"files: {files:,}"
    with resting(bench, bench.work / row, files) as found:
        values: dict[str, Any] = {
            "start to first s": found.first_s,
            "start to all s": found.all_s,
            "idle CPU % of a core": found.idle_percent(1.0 if bench.quick else IDLE_S),
            "RSS MB": usage.rss_mb(found.pid),
            "CPU s": found.cpu_s,
            "restart to first s": found.restarted_s(),
        }
        judge_checked(report, row, files + 1, found.check(more=1))
    report.add(row, **values)
    bench.say(row)


def of_lines(bench: Bench, report: Report, lines: int, before: Finished | None) -> Finished:
    """Add the row of ``lines`` lines in one file, after that of ``before``."""
    row, path = f"lines: {lines:,}", bench.work / "corpus.jsonl"
    corpus.write(path, lines)
    done = run(
        OurAgent(bench.more),
        bench.brokers,
        bench.work / row,
        path,
        lines,
        plant=bench.plant,
    )
    path.unlink()
    judge(report, row, done)
    values: dict[str, Any] = {
        "start to first s": done.start_s,
        "start to all s": done.start_s + done.took_s,
        "RSS MB": done.rss_mb,
        "CPU s": done.cpu_s,
        "CPU s per million lines": done.cpu_s_per_million,
        "k lines/s": done.k_lines_per_s,
    }
    if before is not None:
        more = (done.cpu_s - before.cpu_s) / (done.lines - before.lines)
        values["per million more"] = more * 1e6
    report.add(row, **values)
    bench.say(row)
    return done


@click.command()
@click.option("--files", "files_max", default=FILES[-1], show_default=True, help="At most.")
@click.option("--lines", "lines_max", default=LINES[-1], show_default=True, help="At most.")
@options
def main(*, files_max: int, lines_max: int, quick: bool, **common: Any) -> None:
    """Measure how costs grow with files and with lines."""
    finish(
        lambda bench: report_on(bench, files_max=files_max, lines_max=lines_max),
        quick=quick,
        **common,
    )


if __name__ == "__main__":
    main()
