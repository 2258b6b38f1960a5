"""The hot path: from the lines of one read to sealed batches, in one synchronous pass.

    split (core.lines)  ->  decode and validate (core.decode)  ->  redact (core.redact)
        ->  enrich and encode (core.record)  ->  partition (builders)
        ->  append (wire.Builder)  ->  seal: compress (wire)

Each step takes the lines of a read together, as far as it can: what is done line by line in Python
is what costs: ``scripts/bench/stages`` says how much, step by step.

Runs in the worker thread; nothing here waits or logs.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from msgspec.structs import replace

from agent import wire
from agent.builders import UNPARTITIONED, Builders, Stream
from agent.clock import Clock
from agent.core.batch import Batch
from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import Event
from agent.core.formats import epoch_s
from agent.core.identity import Checkpoint
from agent.core.ledger import Chunk, Row
from agent.core.lines import NUL, Piece
from agent.core.places import Place, hulls, parse_place
from agent.core.policy import SchemaPolicy
from agent.core.record import Origin, Recorder, RecordPolicy
from agent.core.redact import Redaction, Redactor
from agent.core.schemas import Schemas
from agent.core.tracing import ChunkSpan, Tracer
from agent.core.window import Window
from agent.rejects import OVERSIZE, Bad, Rejects, Source
from agent.telemetry import Metrics
from agent.wire import PlainRecord

RECORDERS_MAX = 1024
STRIDE = 32
"""Lines taken through all steps together. More would not stay in a core's cache: ten times as many
cost half as much again."""
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
        self._redactor: Redactor | None = None
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
        self._decoder = Decoder(policy.schema)
        self._recorders: dict[tuple[str, int, str], Recorder] = {}
        self.window: Window | None = None
        """Which events are wanted; None: all. What is not is passed over, as if it were blank."""

    def redact(self, redaction: Redaction | None) -> None:
        """Redact by this from the next chunk on; None: nothing."""
        self._redactor = None if redaction is None else Redactor(redaction)
        self._metrics.name_rules(rule.kind for rule in (redaction.custom if redaction else ()))
        hash_key = (redaction and redaction.hash_key) or b""
        record = replace(self._policy.record, hash_key=hash_key)
        self._policy = self._policy._replace(record=record)
        self.rejects.hash_key = hash_key
        self._recorders.clear()  # they have the old one

    def decode_by(self, schemas: Schemas | None) -> None:
        """Take custom types from these, from the next chunk on; None: there are none."""
        self._decoder = Decoder(self._policy.schema, schemas)

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
        now_s, wall_s = self._clock.monotonic(), self._clock.wall()
        now_ms, now_text = int(wall_s * 1000), _rfc3339(wall_s)
        chunk, recorder = source.chunk(piece), self._recorder(source.base)
        self.events.begin(span)
        self.dead_letters.begin(span)
        tally: Counter[str] = Counter()
        if piece.skipped_to > piece.start:
            self.rejects.skipped(source, chunk, recorder, piece, tally)
        lines = self._lines(piece, tally)
        record, event_time, window = recorder.record, self._policy.event_time, self.window
        start = piece.skipped_to
        for first in range(0, len(lines), STRIDE):
            stride = lines[first : first + STRIDE]
            records: list[PlainRecord] = []
            for at, decoded in enumerate(self._decode(stride, wall_s, span), first):
                line, end = lines[at], start + len(piece.lines[at]) + 1
                if isinstance(decoded, Rejection):
                    bad = Bad(decoded, start, end, line, len(line))
                    self.rejects.line(chunk, recorder, bad, tally)
                elif window is not None and not window.takes(decoded):
                    pass
                else:
                    if type(decoded) is Decoded:
                        tally["removed"] += decoded.removed
                    at_ms = event_ms(decoded, now_ms) if event_time else now_ms
                    records.append((at_ms, *record(decoded, line, start, end, now_text)))
                start = end
            self.events.lines.add(chunk, records, now_s)
            if span is not None:
                span.lap("encode")
        self._count(chunk, tally, recorder)
        if span is not None:
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
            stream.kafka.add(row, [(at_ms, record.key, record.value, record.headers)], now_s)
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
        if any(line[:1] == NUL for line in lines):
            left = [line.lstrip(NUL) for line in lines]
            tally["hole_bytes"] += sum(map(len, lines)) - sum(map(len, left))
            return left
        return lines

    def _decode(
        self, lines: list[bytes], wall_s: float, span: ChunkSpan | None
    ) -> list[Event | Decoded | Rejection]:
        """Decode and redact."""
        found: list[Event | Decoded | Rejection] = [*self._decoder.decode_all(lines, wall_s)]
        if max(map(len, lines), default=0) > self._policy.line_bytes_max:
            for at, line in enumerate(lines):
                if len(line) > self._policy.line_bytes_max:
                    found[at] = OVERSIZE
        if span is not None:
            span.lap("decode")
        if self._redactor is not None:
            self._redactor.events(found)
            if span is not None:
                span.lap("redact")
        return found

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
            recorder = Recorder(self._policy.record, origin, self._redactor)
            self._recorders[key] = recorder
        return recorder

    def _client(self, client: str) -> str:
        return client if self._redactor is None else self._redactor.shown(client)

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
        if self._redactor is not None and self._redactor.counts:
            for kind, count in self._redactor.counts.items():
                metrics.redacted(kind, count)
            self._redactor.counts.clear()
            metrics.events_cut.inc(self._redactor.events_cut)
            self._redactor.events_cut = 0
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


def event_ms(decoded: Event | Decoded, now_ms: int) -> int:
    """Return the event's own time, or the time of reading where that is missing or suspect."""
    suspect = isinstance(decoded, Decoded) and decoded.suspect
    timestamp = decoded.event.timestamp if isinstance(decoded, Decoded) else decoded.timestamp
    at_s = None if suspect or timestamp is None else epoch_s(timestamp)
    return now_ms if at_s is None or at_s < 0 else int(at_s * 1000)


def _rfc3339(wall_s: float) -> str:
    at = datetime.fromtimestamp(wall_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
