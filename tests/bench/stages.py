"""What each step of the hot path costs, in ns a line, so that a regression has an address.

The steps of ``agent.chunk`` one after the other, as it takes them, over lines in memory: no disk,
no broker, no other thread. CPU time of this thread. On a machine that does other things too the
least of several rounds tells most.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import click

from agent import wire
from agent.builders import Builders
from agent.chunk import strides
from agent.clock import SystemClock
from agent.core import lines as splitter
from agent.core.batch import Batch, Pace
from agent.core.decode import Decoder
from agent.core.diagnosis import Rejection
from agent.core.ledger import Chunk, Ledger
from agent.core.policy import BatchPolicy, SchemaPolicy
from agent.core.record import Origin, Recorder, RecordPolicy
from agent.core.redact import Redaction, Redactor
from agent.core.redaction_rules import VERSION
from agent.core.writing import Found, Written, write, write_all
from agent.steps import Lines
from tests.bench import corpus
from tests.bench.table import Column, Report, console

COLUMN = "ns a line"
LINE_BYTES_MAX = 768 << 10
ORIGIN = Origin(
    node="node-1",
    client="checkout",
    source_id="0123456789abcdef",
    generation=0,
    inode=1,
    birth_ns=2,
    inode_generation=3,
)
STEPS = {
    "split": "split: core.lines",
    "decode": "decode, validate: core.decode, core.plain",
    "write": "complete, write: core.record, core.writing",
    "redact": "redact: core.redact, core.suspicion",
    "record": "enrich, headers: core.record",
    "append": "partition, append: builders, wire",
    "compress": "compress: wire",
}

T = TypeVar("T")


class Topic:
    partitions = 12
    message_bytes_max = 1 << 20


class Stages:
    """One pass over lines. ``took_ns`` says for how long each step was at work."""

    def __init__(self, compression: str = "gzip") -> None:
        self.took_ns: Counter[str] = Counter()
        codec, batch = wire.codec(compression, None), BatchPolicy()
        timed = wire.Codec(codec.number, lambda raw: self._took("compress", codec.compress, raw))
        self._builders = Builders(
            Topic, timed, Pace(batch), bytes_max=batch.bytes_max, partitioner="crc32"
        )
        self._redactor = Redactor(Redaction(version=VERSION))
        self._decoder = Decoder(SchemaPolicy())
        self._recorder = Recorder(RecordPolicy(version="1", hostname="h"), ORIGIN, self._redactor)
        self._now_s = SystemClock().wall()

    def run(self, content: bytes) -> list[Batch]:
        """Take each line through each step. Return the sealed batches."""
        ledger, cursor = Ledger(0, b""), splitter.Cursor(0, b"", LINE_BYTES_MAX)
        self._builders.begin()
        while cursor.at < len(content):
            read = content[cursor.at - len(cursor.tail) : cursor.at + cursor.want]
            piece = self._took("split", cursor.feed, read)
            assert piece is not None, "no line is longer than a read"
            chunk = Chunk(ledger, piece.start, piece.end, b"", len(piece.lines))
            run = wire.Run(0, [], [])
            for lines in self._took("split", lambda: [*strides(piece.lines, piece)]):  # noqa: B023
                made, bodies = self._stride(lines)
                run.keys.extend(made)
                run.bodies.extend(bodies)
            self._took("append", self._builders.add, chunk, run, 0.0)
        self._took("append", self._builders.seal_all)
        self.took_ns["append"] -= self.took_ns["compress"]  # whoever appends seals what is full
        return self._builders.take()

    def _stride(self, lines: Lines) -> tuple[list[bytes | None], list[bytes]]:
        found = self._took("decode", self._decoder.decode_all, lines.bodies, self._now_s)
        assert not any(isinstance(one, Rejection) for one in found)
        self._took("write", self._recorder.complete, found, *lines, "")
        written = self._took("write", write_all, found)
        self._took("redact", self._redact, found, written)
        return self._took("record", self._recorder.records, found, written, lines.places)

    def _redact(self, found: list[Found], written: list[Written]) -> None:
        for at in self._redactor.events(found, [text for _, text in written]):
            written[at] = write(found[at])

    def _took(self, step: str, work: Callable[..., T], *given: object) -> T:
        began_ns = time.thread_time_ns()
        made = work(*given)
        self.took_ns[step] += time.thread_time_ns() - began_ns
        return made


def report_on(lines: int, rounds: int, *, event_ids: bool, extras: bool) -> Report:
    content = b"".join(corpus.lines(lines, event_ids=event_ids, extras=extras))
    title = f"steps of the hot path, {lines:,} lines of {len(content) / lines:.0f} bytes"
    report = Report(f"{title}, {rounds} rounds", [Column(COLUMN, 0)], {})
    for _ in range(rounds):
        stages = Stages()
        arrived = sum(len(wire.records(batch)) for batch in stages.run(content))
        report.lost += abs(lines - arrived)
        costs = {step: stages.took_ns[step] / lines for step in STEPS}
        for step, name in STEPS.items():
            report.add(name, **{COLUMN: costs[step]})
        report.add("all of them", **{COLUMN: sum(costs.values())})
    return report


@click.command()
@click.option("--lines", default=50_000, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--without-ids", is_flag=True, help="Lines without event_id: the agent derives one.")
@click.option("--extras", is_flag=True, help="Lines with fields that their type does not know.")
@click.option("--quick", is_flag=True, help="A second of it, to see that it works.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    *, lines: int, rounds: int, without_ids: bool, extras: bool, quick: bool, as_json: bool
) -> None:
    """Measure each step of the hot path."""
    if quick:
        lines, rounds = 2_000, 2
    report = report_on(lines, rounds, event_ids=not without_ids, extras=extras)
    if as_json:
        click.echo(report.to_json())
    else:
        report.show(console(as_json=False))
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
