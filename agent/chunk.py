"""The hot path: from the lines of one read to sealed batches, in one synchronous pass.

    split (core.lines)  ->  decode, redact, record (steps)  ->  partition, append (builders, wire)
        ->  seal: compress (wire)

Each step takes the lines of a read together, as far as it can: what is done line by line in Python
is what costs: ``scripts/bench/stages`` says how much, step by step.

Runs in the worker thread; nothing here waits or logs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate, count, pairwise
from operator import add
from typing import NamedTuple

from msgspec.structs import replace

from agent import wire
from agent.builders import UNPARTITIONED, Builders, Stream
from agent.clock import Clock
from agent.core.batch import Batch
from agent.core.decode import Decoder
from agent.core.identity import Checkpoint
from agent.core.ledger import Chunk, Row
from agent.core.lines import NUL, Piece
from agent.core.places import Place, hulls, parse_place
from agent.core.policy import SchemaPolicy
from agent.core.record import Origin, Recorder, RecordPolicy
from agent.core.redact import Redaction, Redactor
from agent.core.schemas import Schemas
from agent.core.tracing import ChunkSpan, Tracer
from agent.rejects import Rejects, Source
from agent.steps import Lines, Moment, Steps
from agent.telemetry import Metrics
from agent.wire import Run

RECORDERS_MAX = 1024
STRIDE = 96
"""Lines taken through all steps together. Fewer cost more each, and of many more what was made
would not stay in a core's cache."""
_BOM = b"\xef\xbb\xbf"


class Sealed(NamedTuple):
    """Batches ready to be sent, in the order in which they must be."""

    events: list[Batch]
    dead_letters: list[Batch]


class ChunkPolicy(NamedTuple):
    """What steers the hot path, gathered from the configuration's sections."""

    node: str
    schema: SchemaPolicy
    record: RecordPolicy
    line_bytes_max: int
    event_time: bool


class Chunker:
    """Fill batches from pieces. One thread only, but for ``rejects.of_record``."""

    def __init__(
        self,
        policy: ChunkPolicy,
        events: Stream,
        dead_letters: Stream,
        *,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._policy = policy
        self.steps = Steps(
            Decoder(policy.schema),
            line_bytes_max=policy.line_bytes_max,
            event_time=policy.event_time,
        )
        self.events = events
        self.dead_letters = dead_letters
        self.rejects = Rejects(
            dead_letters,
            line_bytes_max=policy.line_bytes_max,
            shown_bytes_max=policy.record.dead_letter_bytes_max,
            clock=clock,
        )
        self._clock = clock
        self._metrics = metrics
        self._tracer: Tracer | None = None
        self._recorders: dict[tuple[str, int, str], Recorder] = {}

    def redact(self, redaction: Redaction | None) -> None:
        """Redact by this from the next chunk on; None: nothing."""
        self.steps.redactor = None if redaction is None else Redactor(redaction)
        self._metrics.name_rules(rule.kind for rule in (redaction.custom if redaction else ()))
        hash_key = (redaction and redaction.hash_key) or b""
        record = replace(self._policy.record, hash_key=hash_key)
        self._policy = self._policy._replace(record=record)
        self.rejects.hash_key = hash_key
        self._recorders.clear()  # they have the old one

    def decode_by(self, schemas: Schemas | None) -> None:
        """Take custom types from these, from the next chunk on; None: there are none."""
        self.steps.decoder = Decoder(self._policy.schema, schemas)

    def trace(self, tracer: Tracer | None) -> None:
        """Let ``tracer`` draw which chunks are traced; None: none are. Before the first one."""
        self._tracer = tracer

    def traced(self) -> ChunkSpan | None:
        """Draw whether the next chunk is traced; its span begins with reading it."""
        return None if self._tracer is None else self._tracer.chunk()

    def fill(self, source: Source, piece: Piece, span: ChunkSpan | None = None) -> Chunk:
        """Turn each line of ``piece`` into a record in an open batch; return what was read."""
        if span is not None:
            span.read(source.base)
        now_s, moment = self._clock.monotonic(), self._moment()
        chunk, recorder = source.chunk(piece), self._recorder(source.base)
        self.events.begin(span)
        self.dead_letters.begin(span)
        tally: Counter[str] = Counter()
        if piece.skipped_to > piece.start:
            self.rejects.skipped(source, chunk, recorder, piece, tally)
        lines = self._lines(piece, tally)
        runs: list[Run] = []
        for stride in strides(lines, piece):
            made = self.steps.take(stride, recorder, moment, span)
            for run in made.runs:
                wire.append(runs, run)
            tally["removed"] += made.removed
            for bad in made.bad:
                self.rejects.line(chunk, recorder, bad, tally)
        for run in runs:
            self.events.lines.add(chunk, run, now_s)
        self._count(chunk, tally, recorder)
        if span is not None:
            span.lap("encode")
            span.filled(chunk.start, chunk.end, chunk.lines, chunk.rejected)
        return chunk

    def refill(self, stream: Stream, rows: Sequence[tuple[Row, Batch | None]]) -> None:
        """Turn what was spooled into batches for Kafka again: it is partitioned now.

        Rows that hold partitions come from before the outage, and were written down partition after
        partition: read together, they are put in file order first, since the topic may have fewer
        partitions by now.
        """
        now_s, now_ms = self._clock.monotonic(), int(self._clock.wall() * 1000)
        span = self.traced() if rows else None
        if span is not None:
            span.of_spool()
        stream.begin(span)
        records = [
            (row, r) for row, batch in rows if batch is not None for r in wire.records(batch)
        ]
        if any(batch is not None and batch.partition != UNPARTITIONED for _, batch in rows):
            records = wire.in_file_order(records)
        if span is not None:
            span.lap("decode")
        _say_whose(records)
        for row, record in records:
            at_ms = record.timestamp_ms if self._policy.event_time else now_ms
            (run,) = wire.runs([record._replace(timestamp_ms=at_ms)])
            stream.kafka.add(row, run, now_s)
        if span is not None:
            span.lap("encode")
            span.filled(rows[0][0].start, rows[-1][0].end, len(records))

    def now_s(self) -> float:
        return self._clock.monotonic()

    def seal_due(self, now_s: float, *, quiet: bool) -> Sealed:
        """Return what is full, or had waited long enough at ``now_s``, since the last call.

        ``quiet``: nothing more is there to be read, so nothing is sure to join what is open.
        """
        self.events.seal_due(now_s, quiet=quiet)
        self.dead_letters.seal_due(now_s, quiet=quiet)
        return self._take()

    def seal_all(self) -> Sealed:
        """Return every batch there is, full or not."""
        self.events.seal_all()
        self.dead_letters.seal_all()
        return self._take()

    def due_in_s(self, idle_s: float) -> float:
        """Return how long until a batch is due, ``idle_s`` if none is open."""
        now_s = self._clock.monotonic()
        due = [stream.due_in_s(now_s) for stream in (self.events, self.dead_letters)]
        return min((s for s in due if s is not None), default=idle_s)

    def rest_in_s(self) -> float:
        """Return how long lines that are read from now on would have to wait for others to leave
        with, after those that left last."""
        return self.events.lines.rest_in_s(self._clock.monotonic())

    def _take(self) -> Sealed:
        """Collect what was sealed; what its topic would refuse for its size goes another way."""
        fitting, dead_letters = [], self.dead_letters.take()
        for batch in self.events.take():
            if _fits(self.events.kafka, batch):
                fitting.append(batch)
            else:
                self._metrics.lines_rejected.labels("refused_too_large").inc()
                dead_letters.append(self.rejects.of_record(batch, "refused_too_large"))
        shrunk = [
            b if _fits(self.dead_letters.kafka, b) else self.rejects.of_record(b, "")
            for b in dead_letters
        ]
        return Sealed(fitting, shrunk)

    def _lines(self, piece: Piece, tally: Counter[str]) -> list[bytes]:
        """Return the lines as an app meant them: without a byte order mark, or NULs before them."""
        lines = piece.lines
        if piece.skipped_to == 0 and lines and lines[0].startswith(_BOM):
            lines = [lines[0].removeprefix(_BOM), *lines[1:]]
        if piece.hollow and any(line[:1] == NUL for line in lines):
            left = [line.lstrip(NUL) for line in lines]
            tally["hole_bytes"] += sum(map(len, lines)) - sum(map(len, left))
            return left
        return lines

    def _moment(self) -> Moment:
        wall_s = self._clock.wall()
        at = datetime.fromtimestamp(wall_s, UTC)
        text = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Moment(wall_s, int(wall_s * 1000), text)

    def _recorder(self, of: Checkpoint) -> Recorder:
        key = of.source_id, of.generation, of.client
        recorder = self._recorders.get(key)
        if recorder is None:
            if len(self._recorders) >= RECORDERS_MAX:
                self._recorders.clear()
            origin = Origin(
                node=self._policy.node,
                client=self._client(of.client),
                source_id=of.source_id,
                generation=of.generation,
                inode=of.birth.inode,
                birth_ns=of.birth.born_ns,
                inode_generation=of.birth.inode_generation,
            )
            recorder = Recorder(self._policy.record, origin, self.steps.redactor)
            self._recorders[key] = recorder
        return recorder

    def _client(self, client: str) -> str:
        redactor = self.steps.redactor
        return client if redactor is None else redactor.shown(client)

    def _count(self, chunk: Chunk, tally: Counter[str], recorder: Recorder) -> None:
        metrics = self._metrics
        metrics.lines_read.inc(chunk.lines)
        hole_bytes = tally.pop("hole_bytes", 0)
        metrics.hole_bytes.inc(hole_bytes)
        metrics.read_bytes.inc(chunk.bytes - hole_bytes)
        metrics.lines_blank.inc(tally.pop("blank", 0))
        metrics.control_characters_removed.inc(tally.pop("removed", 0))
        metrics.metadata_overwritten.inc(recorder.overwritten)
        recorder.overwritten = 0
        redactor = self.steps.redactor
        if redactor is not None and redactor.counts:
            for kind, count in redactor.counts.items():
                metrics.redacted(kind, count)
            redactor.counts.clear()
            metrics.events_cut.inc(redactor.events_cut)
            redactor.events_cut = 0
        chunk.rejected = tally.total()
        for reason, lines in tally.items():
            metrics.lines_rejected.labels(reason).inc(lines)


def _say_whose(records: Sequence[tuple[Row, wire.Record]]) -> None:
    """Let rows say of which files they hold lines: a restart knows it from the records alone."""
    found: dict[Row, list[Place]] = {}
    for row, record in records:
        place = parse_place(dict(record.headers).get("source", b""))
        if place is not None:
            found.setdefault(row, []).append(place)
    for row, places in found.items():
        row.lines_of = hulls(places)


def _fits(builders: Builders, batch: Batch) -> bool:
    """Return whether the topic takes ``batch``, or it can still be cut; the spool takes any."""
    return batch.count > 1 or batch.partition == UNPARTITIONED or builders.fits(batch)


def strides(lines: list[bytes], piece: Piece) -> Iterator[Lines]:
    """Yield ``lines``, which those of ``piece`` became, in parts."""
    bodies = accumulate(map(len, piece.lines), initial=piece.skipped_to)
    places = [*pairwise(map(add, bodies, count()))]  # a newline behind each
    for first in range(0, len(lines), STRIDE):
        part = slice(first, first + STRIDE)
        yield Lines(lines[part], places[part])
