"""Lines that are on disk already, and what it costs to ship them all: the agent beside peers.

In rounds, one after the other in each: what changes on the machine meets all of them.
"""

from pathlib import Path
from typing import Any, NamedTuple

import click

from tests.bench import corpus, peers
from tests.bench.command import Bench, finish, judge, options
from tests.bench.runs import Finished, OurAgent, Subject, run
from tests.bench.table import Column, Report

LINES = 1_000_000
QUICK_LINES = 20_000
OURS = "agent"

COLUMNS = (
    Column("CPU s per million lines", 2),
    Column("of the agent's CPU", 2),
    Column("k lines/s", 0),
    Column("peak RSS MB", 0),
    Column("start to first s", 2),
)


class Entry(NamedTuple):
    """A row: who ships which lines."""

    subject: Subject
    lines: Path

    @property
    def name(self) -> str:
        return self.subject.name


def entries(bench: Bench, count: int, found: peers.Found, asked: str) -> list[Entry]:
    """Write the lines and return all rows, the agent first."""
    kinds: dict[str, dict[str, bool]] = {
        "corpus": {},
        "without event_id": {"event_ids": False},
        "with unknown fields": {"extras": True},
    }
    files = {kind: bench.work / f"{kind}.jsonl" for kind in kinds}
    for kind, path in files.items():
        size = corpus.write(path, count, **kinds[kind])
        bench.say(f"wrote {count:,} lines, {kind}: {size / count:.0f} bytes each")
    rows = [
        Entry(OurAgent(bench.more, OURS), files["corpus"]),
        Entry(OurAgent(bench.more, "agent, lines without event_id"), files["without event_id"]),
        Entry(
            OurAgent(bench.more, "agent, lines with unknown fields"),
            files["with unknown fields"],
        ),
        *(Entry(peer, files["corpus"]) for peer in found.peers),
    ]
    return [entry for entry in rows if entry.name == OURS or asked in entry.name]


def report_on(bench: Bench, *, count: int, pairs: int, only: str) -> Report:
    found = peers.find()
    versions = {"broker": bench.brokers.name, **found.versions}
    report = Report(f"catch-up of {count:,} lines, {pairs} rounds", COLUMNS, versions)
    report.notes += found.missing
    report.notes.append(
        "the agent validates, redacts, enriches and compresses (gzip); raw: line to message; "
        "json: parse, add a field, write again"
    )
    rows = entries(bench, count, found, only)
    for number in range(pairs):
        # the other way round in each second round: who is first meets another machine
        ordered = rows if number % 2 == 0 else rows[::-1]
        runs = {entry.name: _run(bench, entry, number, count) for entry in ordered}
        for entry in rows:
            done = runs[entry.name]
            judge(report, entry.name, done)
            _add(report, entry.name, done, runs[OURS])
    return report


def _run(bench: Bench, entry: Entry, number: int, count: int) -> Finished:
    place = bench.work / f"round-{number}-{entry.name.replace(' ', '-').replace(':', '')}"
    done = run(
        entry.subject,
        bench.brokers,
        place,
        entry.lines,
        count,
        plant=bench.plant,
    )
    bench.say(f"round {number + 1}, {entry.name}: {done.cpu_s_per_million:.2f} CPU s per million")
    return done


def _add(report: Report, name: str, done: Finished, ours: Finished) -> None:
    values: dict[str, Any] = {
        "CPU s per million lines": done.cpu_s_per_million,
        "of the agent's CPU": done.cpu_s / ours.cpu_s,
        "k lines/s": done.k_lines_per_s,
        "peak RSS MB": done.peak_rss_mb,
        "start to first s": done.start_s,
    }
    report.add(name, **values)


@click.command()
@click.option("--lines", "count", type=click.IntRange(1), help=f"{LINES:,} by default.")
@click.option("--pairs", default=3, show_default=True, type=click.IntRange(1), help="Rounds.")
@click.option("--only", default="", help="Beside the agent, rows whose name has this in it.")
@options
def main(*, count: int | None, pairs: int, only: str, quick: bool, **common: Any) -> None:
    """Ship lines that are on disk, with the agent and with its peers, in turns."""
    count = count or (QUICK_LINES if quick else LINES)
    pairs = 1 if quick else pairs
    finish(
        lambda bench: report_on(bench, count=count, pairs=pairs, only=only), quick=quick, **common
    )


if __name__ == "__main__":
    main()
