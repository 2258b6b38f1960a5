"""Which chunks and batches are traced, and what is said of each. Pure.

A chunk is drawn before it is read. A batch is traced where the chunk that opened it is, so that
each traced batch has a link to a traced chunk, and their shares are the same.

    chunk   read, decode, redact, encode   how long each took, and when it was last at work
    batch   build, send, ack, settle       when each was done; send as often as it happened

Attributes have the names of OpenTelemetry's conventions for messaging,
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans, where there is one.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from agent.core.breaker import Jitter, Monotonic
from agent.core.identity import Checkpoint
from agent.core.quota import Bucket

SPANS_PER_S_MAX = 100.0
"""Beyond it, on average, no chunk is drawn: telemetry must not grow with the load."""
LINKS_MAX = 32
NOTES_MAX = 32
"""Of one span; how many more there were is counted."""
FOREIGN = frozenset({"file.path", "feedback_agent.client"})
"""Attributes whose values others chose: to be redacted before they leave."""

Step = Literal["read", "decode", "redact", "encode"]
Outcome = Literal["acknowledged", "spooled", "refused", "resealed"]
Value = str | int | float
Attributes = Mapping[str, Value]


class Context(NamedTuple):
    """Who a span is: 16 and 8 bytes, neither all zero (W3C trace context, level 1, 3.2.2)."""

    trace_id: bytes
    span_id: bytes

    @property
    def traceparent(self) -> bytes:
        """Return it as a header's value, with the flag that says it is recorded."""
        return b"00-%b-%b-01" % (self.trace_id.hex().encode(), self.span_id.hex().encode())


class Note(NamedTuple):
    """What happened during a span; ``at_s`` is of the tracer's clock."""

    name: str
    at_s: float
    attributes: Attributes


class Span:
    """A piece of work while it lasts, and what is known of it then. One thread at a time.

    Attributes:
        began_s, ended_s: Of the tracer's clock; equal until it ends.
        dropped_links, dropped_notes: How many there were beyond their limits.
        error: Why it failed, a word of a closed list; None: it did not.
    """

    __slots__ = (
        "attributes", "began_s", "context", "dropped_links", "dropped_notes", "ended_s", "error",
        "links", "name", "notes", "tracer",
    )  # fmt: skip

    def __init__(self, tracer: "Tracer", name: str, attributes: dict[str, Value]) -> None:
        self.tracer = tracer
        self.name = name
        self.attributes = attributes
        self.context = tracer.context()
        self.began_s = self.ended_s = tracer.clock()
        self.notes: list[Note] = []
        self.links: list[Context] = []
        self.dropped_notes = self.dropped_links = 0
        self.error: str | None = None

    def mark(self, name: str, **attributes: Value) -> None:
        """Note that something happened just now."""
        self._note(Note(name, self.tracer.clock(), attributes))

    def _note(self, note: Note) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(note)
        else:
            self.dropped_notes += 1

    def end(self) -> None:
        """Hand it over; nothing may be said of it afterwards."""
        self.ended_s = self.tracer.clock()
        self.tracer.ended(self)


class ChunkSpan(Span):
    """From the beginning of a read to the last of its lines in a batch."""

    __slots__ = ("_at_s", "_steps", "source")

    def __init__(self, tracer: "Tracer") -> None:
        super().__init__(tracer, "read chunk", {})
        self.source = ""
        self._at_s = self.began_s
        self._steps: dict[Step, tuple[float, float]] = {}  # how long so far, and until when

    def lap(self, step: Step) -> None:
        """Note that all since the last call was spent on ``step``. Steps take turns."""
        before_s, self._at_s = self._at_s, self.tracer.clock()
        took_s, _ = self._steps.get(step, (0.0, 0.0))
        self._steps[step] = took_s + self._at_s - before_s, self._at_s

    def read(self, base: Checkpoint) -> None:
        """Note that it is read, and of which file."""
        self.lap("read")
        self.source = base.source_id
        self.attributes |= {
            "feedback_agent.source": base.source_id,
            "feedback_agent.generation": base.generation,
            "feedback_agent.client": base.client,
            "file.path": base.path,
        }

    def of_spool(self) -> None:
        """Say that it is what comes back from the spool."""
        self.name, self.source = "replay chunk", "spool"
        self.attributes["feedback_agent.source"] = self.source

    def filled(self, start: int, end: int, lines: int, rejected: int = 0) -> None:
        """End it: these bytes of the file, or records of the spool, are in batches."""
        self.attributes |= {
            "feedback_agent.chunk.start": start,
            "feedback_agent.chunk.end": end,
            "feedback_agent.chunk.lines": lines,
            "feedback_agent.chunk.rejected": rejected,
        }
        for step, (took_s, at_s) in sorted(self._steps.items(), key=lambda one: one[1][1]):
            self._note(Note(step, at_s, {"feedback_agent.took_s": took_s}))
        self.end()

    def opened(self, destination: str) -> "BatchSpan":
        """Return the span of a batch that a line of this chunk opened."""
        return BatchSpan(self, destination)


class BatchSpan(Span):
    """From opening a batch until the fate of its records is known.

    ``parts`` counts the batches that it became, each with some of its records.
    """

    __slots__ = ("_linked", "parts")

    def __init__(self, opener: ChunkSpan, destination: str) -> None:
        attributes: dict[str, Value] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.client.id": opener.tracer.client_id,
            "messaging.destination.name": destination,
            "feedback_agent.source": opener.source,
        }
        super().__init__(opener.tracer, f"send {destination}", attributes)
        digits = self.context.trace_id.hex()
        uuid = digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]
        self.attributes["feedback_agent.batch.id"] = "-".join(uuid)
        self.parts = 1
        self._linked: ChunkSpan | None = None
        self.link(opener)

    def link(self, chunk: ChunkSpan) -> None:
        """Note that lines of ``chunk`` are in it, once."""
        if self._linked is chunk:
            return
        self._linked = chunk
        if len(self.links) < LINKS_MAX:
            self.links.append(chunk.context)
        else:
            self.dropped_links += 1

    def built(self, records: int, size_bytes: int, raw_bytes: int) -> None:
        """Note that it is sealed: ``size_bytes`` compressed, ``raw_bytes`` before."""
        self.attributes |= {
            "messaging.batch.message_count": records,
            "feedback_agent.batch.size": size_bytes,
            "feedback_agent.batch.raw_size": raw_bytes,
        }
        self.mark("build")

    def sent(self, partition: int) -> None:
        self.attributes["messaging.destination.partition.id"] = str(partition)
        self.mark("send")

    def acked(self, kafka_offset: int) -> None:
        """Note the acknowledgement, with the offset of the first record."""
        self.mark("ack", **{"messaging.kafka.offset": kafka_offset})

    def failed(self, reason: str) -> None:
        """Note that a try failed; it will be sent again."""
        self.mark("failed", **{"error.type": reason})

    def cut(self) -> None:
        """Note that it became two batches."""
        self.parts += 1
        self.mark("cut")

    def settled(self, outcome: Outcome, error: str | None = None) -> None:
        """Note that the fate of one part of it is known; with the last part it ends."""
        self.parts -= 1
        if error is not None:
            self.error = self.attributes["error.type"] = error
        self.mark("settle")
        self.attributes["feedback_agent.batch.outcome"] = outcome
        if self.parts == 0:
            self.end()


class Tracer:
    """Draws what is traced.

    Args:
        share: Of chunks, from 0 to 1.
        client_id: Under which batches are sent.
        draw: Numbers in [0, 1).
        bits: Returns a number of so many random bits.
        ended: Called with each span that ended, in the thread that ended it.
    """

    def __init__(
        self,
        share: float,
        client_id: str,
        *,
        clock: Monotonic,
        draw: Jitter,
        bits: Callable[[int], int],
        ended: Callable[[Span], None],
    ) -> None:
        self.client_id = client_id
        self.clock = clock
        self.ended = ended
        self._share = share
        self._draw = draw
        self._bits = bits
        self._allowed = Bucket(SPANS_PER_S_MAX, SPANS_PER_S_MAX, clock)

    def chunk(self) -> ChunkSpan | None:
        """Return the span of what is read next, which begins now; None where it has none."""
        if self._draw() >= self._share or self._allowed.wait_s() > 0:
            return None
        return ChunkSpan(self)

    def context(self) -> Context:
        """Make the identity of one more span. As a UUID the trace id is of version 4 (RFC 9562)."""
        self._allowed.take(1)
        trace_id = self._bits(128) & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62
        return Context(trace_id.to_bytes(16, "big"), (self._bits(64) or 1).to_bytes(8, "big"))
