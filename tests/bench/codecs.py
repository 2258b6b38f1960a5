"""What each codec and level costs, and how much of what was read it puts on the wire.

The record batches are those of the hot path, in which a line has its id again as the key, its
headers and the agent's own metadata. Beside them the same lines compressed as they are, in pieces
of one batch: what any shipper would send at least.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import click

from agent import codecs
from agent.core.policy import BatchPolicy
from agent.wire import HEADER_BYTES
from tests.bench import corpus
from tests.bench.stages import Stages
from tests.bench.table import Column, Report, console

CASES: list[tuple[str, int | None]] = [
    ("none", None),
    *(("gzip", level) for level in (0, 1, 2, 3, 4, 6, 9)),
    *(("zstd", level) for level in (1, 2, 3, 6, 9, 15)),
    *(("lz4", level) for level in (1, 3, 6, 9, 12)),
    ("snappy", None),
]
WIRE, RAW, OVER = "on the wire, % of read", "raw lines, % of read", "points over raw"
MAKE, OPEN = "us a line", "us a line to open"


class Sections:
    """The batches that lines become, before compression, and those lines in as large pieces."""

    def __init__(self, lines: int) -> None:
        self.content = b"".join(corpus.lines(lines))
        size = BatchPolicy().bytes_max
        batches = Stages("none").run(self.content)
        self.lines = sum(batch.count for batch in batches)
        self.records = [batch.payload for batch in batches]
        self.raw = [self.content[at : at + size] for at in range(0, len(self.content), size)]

    def share(self, packed: list[bytes]) -> float:
        return 100 * sum(map(len, packed)) / len(self.content)


def report_on(lines: int, rounds: int) -> Report:
    sections = Sections(lines)
    columns = [Column(WIRE), Column(RAW), Column(OVER), Column(MAKE, 2), Column(OPEN, 2)]
    title = f"codecs, {lines:,} lines of {len(sections.content) / lines:.0f} bytes, {rounds} rounds"
    report = Report(title, columns, {})
    report.lost += abs(lines - sections.lines)
    for _ in range(rounds):
        for name, level in CASES:
            row = name if level is None else f"{name} {level}"
            report.add(row, **_figures(codecs.codec(name, level), sections))
    return report


def _figures(codec: codecs.Codec, sections: Sections) -> dict[str, float]:
    packed, there_us = _timed(codec.compress, sections.records)
    opened, back_us = _timed(partial(codecs.decompress, codec.number), packed)
    assert opened == sections.records, "what was compressed comes out again"
    wire = sections.share(packed) + 100 * HEADER_BYTES * len(packed) / len(sections.content)
    raw = sections.share([*map(codec.compress, sections.raw)])
    there_us, back_us = there_us / sections.lines, back_us / sections.lines
    return {WIRE: wire, RAW: raw, OVER: wire - raw, MAKE: there_us, OPEN: back_us}


def _timed(work: Callable[[bytes], bytes], given: list[bytes]) -> tuple[list[bytes], float]:
    """Return what ``work`` makes of each, and the CPU time in us."""
    began_ns = time.thread_time_ns()
    made = [*map(work, given)]
    return made, (time.thread_time_ns() - began_ns) / 1e3


@click.command()
@click.option("--lines", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="One round, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(*, lines: int, rounds: int, quick: bool, as_json: bool) -> None:
    """Measure each value that kafka.compression may have, with its levels."""
    report = report_on(lines, 1 if quick else rounds)
    if as_json:
        click.echo(report.to_json())
    else:
        report.show(console(as_json=False))
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
