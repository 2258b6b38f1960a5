"""Dead letters: what cannot be an event, and what Kafka will not have as one.

Part of the hot path (``agent.chunk``): what is rejected leaves through a stream of its own.
"""

from collections import Counter
from hashlib import blake2b
from typing import NamedTuple, Protocol

import msgspec

from agent import wire
from agent.builders import Stream
from agent.clock import Clock
from agent.core.batch import Batch
from agent.core.diagnosis import Rejection
from agent.core.identity import Checkpoint
from agent.core.ledger import Chunk
from agent.core.lines import NUL, Piece
from agent.core.record import Recorder

OVERSIZE_SHOWN_BYTES = 64 << 10
"""How much of a line over the limit goes into its dead letter."""
OVERSIZE = Rejection("oversize", "")
UNTERMINATED = Rejection("unterminated", "the file is gone, and its last line has no end")

KEPT = ("source", "event_type", "redaction", "cut", wire.TRACEPARENT)
"""Headers of an event that its dead letter has too."""


class Source(Protocol):
    """Where a piece was read; a harvester is one."""

    @property
    def base(self) -> Checkpoint: ...
    def chunk(self, piece: Piece) -> Chunk: ...
    def head(self, start: int, length: int) -> bytes: ...


class Bad(NamedTuple):
    """A line that is rejected: ``shown`` is its beginning, ``length`` that of the whole."""

    why: Rejection
    start: int
    end: int
    shown: bytes
    length: int


class Rejects:
    """Puts dead letters into ``stream``. One thread only, but for ``of_record``.

    Args:
        line_bytes_max: Beyond it a line is ``OVERSIZE``.
        shown_bytes_max: Of one line in its dead letter.

    Attributes:
        hash_key: As in ``RecordPolicy``; may be set at any time.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        line_bytes_max: int,
        shown_bytes_max: int,
        clock: Clock,
    ) -> None:
        self._stream = stream
        self._line_bytes_max = line_bytes_max
        self._shown_bytes_max = shown_bytes_max
        self.hash_key = b""
        self._clock = clock

    def line(self, chunk: Chunk, recorder: Recorder, bad: Bad, tally: Counter[str]) -> None:
        """Make a dead letter of a line, unless there is nothing in it."""
        why, start, end, shown, length = bad
        if not shown.strip() and length == len(shown):
            tally["blank"] += 1
            return
        tally[why.reason] += 1
        if why is OVERSIZE:
            why = Rejection("oversize", f"{length} bytes, at most {self._line_bytes_max}")
            shown = shown[:OVERSIZE_SHOWN_BYTES]
        record = recorder.dead_letter(shown, why, start, end, length)
        now_s, now_ms = self._clock.monotonic(), int(self._clock.wall() * 1000)
        (run,) = wire.runs([(now_ms, *record)])
        self._stream.lines.add(chunk, run, now_s)

    def skipped(
        self, source: Source, chunk: Chunk, recorder: Recorder, piece: Piece, tally: Counter[str]
    ) -> None:
        """Account for what a piece begins with and is no line."""
        start, end = piece.start, piece.skipped_to
        if piece.skipped == "hole":
            tally["hole_bytes"] += end - start
            return
        if piece.skipped == "oversize":
            why, length, shown_max = OVERSIZE, end - start - 1, OVERSIZE_SHOWN_BYTES
        else:
            why, length, shown_max = UNTERMINATED, end - start, self._shown_bytes_max
        head = source.head(start, min(length, shown_max))
        shown = head.lstrip(NUL)
        length -= len(head) - len(shown)
        self.line(chunk, recorder, Bad(why, start, end, shown, length), tally)

    def of_record(self, batch: Batch, reason: str) -> Batch:
        """Turn a single record that Kafka will not have into a dead letter in its place.

        One that is a dead letter already gives up its payload and says how much that was.
        Touches nothing that belongs to the worker.
        """
        assert batch.count == 1, "isolate first"
        batch.end_span("refused", reason or "refused_too_large")
        (record,) = wire.records(batch)
        headers = dict(record.headers)
        now_ms = int(self._clock.wall() * 1000)  # its own time may be what is refused
        if "reason" in headers:
            whole = headers.get("cut") or b"%d" % len(record.value)
            digest = blake2b(record.value, key=self.hash_key, digest_size=16).hexdigest()
            value = msgspec.json.encode({"length": int(whole), "hash": digest})
            kept = [(name, content) for name, content in record.headers if name != "cut"]
            refused = wire.Record(now_ms, record.key, value, [*kept, ("cut", whole)])
        else:
            why = [("reason", reason.encode()), ("detail", b"refused by the topic")]
            kept = [(name, headers[name]) for name in KEPT if name in headers]
            key = headers.get("source", record.key)
            refused = wire.Record(now_ms, key, record.value, [*why, *kept])
        return self._stream.kafka.one(refused, batch)
