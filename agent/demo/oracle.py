"""What was written against what arrived. Decides whether the promises were kept.

The files on disk are the truth: the app rotates and deletes nothing. Every record says in its
header ``source`` which bytes of which file it is, so no record is trusted to say that it is the
right one: its range must be a line, its content the line's. One row of plain numbers for each
record; a million of them fit.
"""

import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Struct, field

from agent.core.events import COLLECTOR_KEYS, SCHEMA_VERSION
from agent.core.identity import source_id
from agent.core.places import Place, parse_place
from agent.core.reasons import REASONS
from agent.opener import birth_of

EXAMPLES_MAX = 10

Judge = Callable[[object], str | None]
"""Gets a line's JSON, None where it is none. Returns its defect, None for a good line."""

_NONE, _UNKNOWN = -1, -2  # reason index of an event; of a dead letter whose reason is none of ours
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class Arrival(NamedTuple):
    """One record as consumed, from the topic of events or, ``dead``, of dead letters."""

    dead: bool
    partition: int
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]
    produced_ms: int
    received_ns: int


class Row(NamedTuple):
    """What is kept of one arrival. Digests are 8 bytes: enough where nobody cheats."""

    start: int
    end: int
    partition: int
    reason: int
    content: int
    identity: int
    produced_ms: int
    latency_us: int


class Rows:
    """Arrivals of one source, in the order in which they came."""

    def __init__(self) -> None:
        self._columns = tuple(array(kind) for kind in "QQiiQQqq")

    def __len__(self) -> int:
        return len(self._columns[0])

    def __iter__(self) -> Iterator[Row]:
        return map(Row._make, zip(*self._columns, strict=True))

    def append(self, row: Row) -> None:
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)


class Arrivals:
    """Takes every record of both topics; of one partition, in the order of ``kafka_offset``."""

    def __init__(self) -> None:
        self.events = 0
        self.dead_letters = 0
        self.nameless: list[str] = []
        """Records that do not say what they are: not one is expected."""
        self.by_source: dict[str, Rows] = {}

    def __len__(self) -> int:
        return self.events + self.dead_letters

    def add(self, arrival: Arrival) -> None:
        if arrival.dead:
            self.dead_letters += 1
        else:
            self.events += 1
        headers = dict(arrival.headers)
        place = parse_place(headers.get("source", b""))
        if place is None:
            self.nameless.append(f"partition {arrival.partition}: no place in its headers")
            return
        rows = self.by_source.setdefault(place.source, Rows())
        rows.append(_dead_row(arrival, headers, place) if arrival.dead else _row(arrival, place))


def _row(arrival: Arrival, place: Place) -> Row:
    fields = _fields(arrival.value) or {}
    event_id, content = _canonical(fields)
    if event_id is None or arrival.key != event_id.encode():
        content = 0  # matches no line: an event has an id, and it is the key
    metadata = fields.get("metadata")
    written_ns = metadata.get("written_at_ns") if isinstance(metadata, dict) else None
    latency_us = -1
    if isinstance(written_ns, int):
        latency_us = max(0, arrival.received_ns - written_ns) // 1000
    return Row(
        place.start,
        place.end,
        arrival.partition,
        _NONE,
        content,
        _digest((event_id or "").encode()),
        arrival.produced_ms,
        latency_us,
    )


def _dead_row(arrival: Arrival, headers: dict[str, bytes], place: Place) -> Row:
    reason = headers.get("reason", b"").decode(errors="replace")
    return Row(
        place.start,
        place.end,
        arrival.partition,
        REASONS.index(reason) if reason in REASONS else _UNKNOWN,
        _digest(arrival.value),
        0,
        arrival.produced_ms,
        -1,
    )


def _fields(line: bytes) -> dict[str, object] | None:
    try:
        fields = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return fields if isinstance(fields, dict) else None


def _canonical(fields: dict[str, object]) -> tuple[str | None, int]:
    """Return the event_id and a digest of all that the app wrote and the agent must not change."""
    fields = {"schema_version": SCHEMA_VERSION, **fields}
    event_id = fields.pop("event_id", None)
    metadata = fields.get("metadata")
    if isinstance(metadata, dict):
        fields["metadata"] = {k: v for k, v in metadata.items() if k not in COLLECTOR_KEYS}
    return event_id if isinstance(event_id, str) else None, _digest(_encode(fields))


def _digest(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest())


# ---- the truth


class Source(Protocol):
    """A file that was written. ``lines`` yields the start of each complete line and its body."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    def lines(self) -> Iterable[tuple[int, bytes]]: ...


class FileSource(NamedTuple):
    id: str
    name: str
    path: Path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        start = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield start, line[:-1]
                start += len(line)


def sources_below(root: Path) -> list[FileSource]:
    """Return the files below ``root``, found under the ids by which the agent knows them."""
    found = []
    for path in sorted(path for path in root.rglob("*.jsonl*") if path.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            found.append(FileSource(source_id(birth_of(fd)), str(path.relative_to(root)), path))
        finally:
            os.close(fd)
    return found


# ---- the verdict


class Verdict(Struct, kw_only=True):
    """Counts of lines and records; ``ok`` while nothing is wrong, copies being no wrong.

    Attributes:
        lines: Complete lines on disk.
        delivered: Lines whose first arrival is an event.
        dead_lettered: Lines whose first arrival is a dead letter.
        lost: Lines that did not arrive.
        copies: Arrivals of a line beyond its first.
        out_of_order: First arrivals behind a later line of the same file, in one partition.
        altered: Content that is not the line's, or that differs between copies.
        misjudged: Bad lines among the events, good ones among the dead letters, wrong reasons.
        foreign: Records whose range is no line of a file that was written.
        copied_at_ms: When each copy was produced, milliseconds since the epoch.
        latencies_us: From append to consumer, of each event's first arrival.
        examples: The first findings in words.
    """

    lines: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    lost: int = 0
    copies: int = 0
    out_of_order: int = 0
    altered: int = 0
    misjudged: int = 0
    foreign: int = 0
    copied_at_ms: list[int] = field(default_factory=list)
    latencies_us: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        wrongs = (self.lost, self.out_of_order, self.altered, self.misjudged, self.foreign)
        return not any(wrongs)

    def percentile_ms(self, share: float) -> float | None:
        """Return the latency in milliseconds that ``share`` of the events stayed within."""
        if not self.latencies_us:
            return None
        ordered = sorted(self.latencies_us)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000

    def copies_between(self, bounds_ms: Sequence[int]) -> list[int]:
        """Count copies by the span in which they were produced: one after each bound."""
        counts = [0] * len(bounds_ms)
        for at_ms in self.copied_at_ms:
            counts[max(0, bisect_right(bounds_ms, at_ms) - 1)] += 1
        return counts

    def rows(self) -> list[tuple[str, int]]:
        """Return what a table shows, in its order."""
        shown = ("lines", "delivered", "dead_lettered", "lost", "copies", "out_of_order",
                 "altered", "misjudged", "foreign")  # fmt: skip
        return [(name.replace("_", " "), getattr(self, name)) for name in shown]

    def say(self, what: str) -> None:
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(what)


class _Line(NamedTuple):
    end: int
    reason: int
    event_id: int | None
    """Digest of the id that the line gives itself; None where the agent makes one."""
    content: int


def compare(sources: Iterable[Source], arrivals: Arrivals, judge: Judge) -> Verdict:
    """Hold every record against its line, and every line against its records."""
    verdict = Verdict(foreign=len(arrivals.nameless), examples=arrivals.nameless[:EXAMPLES_MAX])
    known = set()
    for source in sources:
        known.add(source.id)
        rows = arrivals.by_source.get(source.id, Rows())
        lines = {start: _line(start, body, judge) for start, body in source.lines() if body.strip()}
        _compare_one(source.name, lines, rows, verdict)
    for stranger in arrivals.by_source.keys() - known:
        verdict.foreign += len(arrivals.by_source[stranger])
        verdict.say(f"foreign: source {stranger} is no file that was written")
    return verdict


def _line(start: int, body: bytes, judge: Judge) -> _Line:
    fields = _fields(body)
    reason, end = judge(fields), start + len(body) + 1
    if reason is not None or fields is None:
        assert reason is not None, "no JSON is a defect"
        return _Line(end, REASONS.index(reason), None, _digest(body))
    event_id, content = _canonical(fields)
    return _Line(end, _NONE, None if event_id is None else _digest(event_id.encode()), content)


def _compare_one(name: str, lines: dict[int, _Line], rows: Rows, verdict: Verdict) -> None:
    verdict.lines += len(lines)
    identities: dict[int, int] = {}  # by start, of the first arrival
    latest: dict[tuple[bool, int], int] = {}  # start, by topic and partition
    for row in rows:
        line, what = lines.get(row.start), f"{name} [{row.start}, {row.end})"
        if line is None or line.end != row.end:
            verdict.foreign += 1
            verdict.say(f"foreign: {what} is no line")
            continue
        _check_content(line, row, identities, what, verdict)
        if row.start in identities:
            verdict.copies += 1
            verdict.copied_at_ms.append(row.produced_ms)
            continue
        identities[row.start] = row.identity
        _count_first(row, latest, what, verdict)
    for start in sorted(lines.keys() - identities.keys()):
        verdict.lost += 1
        verdict.say(f"lost: {name} [{start}, {lines[start].end})")


def _count_first(
    row: Row, latest: dict[tuple[bool, int], int], what: str, verdict: Verdict
) -> None:
    dead = row.reason != _NONE
    if dead:
        verdict.dead_lettered += 1
    else:
        verdict.delivered += 1
    if row.latency_us >= 0:
        verdict.latencies_us.append(row.latency_us)
    before = latest.get((dead, row.partition), -1)
    if row.start < before:
        verdict.out_of_order += 1
        verdict.say(f"out of order: {what} after {before} in partition {row.partition}")
    latest[dead, row.partition] = max(before, row.start)


def _check_content(
    line: _Line, row: Row, identities: dict[int, int], what: str, verdict: Verdict
) -> None:
    if row.reason != line.reason:
        verdict.misjudged += 1
        verdict.say(f"misjudged: {what}: {_word(row.reason)}, not {_word(line.reason)}")
        return
    own = line.event_id if line.event_id is not None else row.identity
    first = identities.get(row.start, row.identity)
    if row.content != line.content or (row.reason == _NONE and row.identity != own):
        verdict.altered += 1
        verdict.say(f"altered: {what} is not what was written")
    elif row.identity != first:
        verdict.altered += 1
        verdict.say(f"altered: {what} came again with another event_id")


def _word(reason: int) -> str:
    return {_NONE: "an event", _UNKNOWN: "a dead letter without a reason"}.get(
        reason, REASONS[reason]
    )
