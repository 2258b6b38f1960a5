"""``feedback-agent validate``: what would become of lines, without sending any.

They go through the very rooms that ship them: the harvester splits, ``agent.chunk`` decodes,
redacts and enriches. Only the topic is missing, and so what it alone would refuse.

    inputs   files, what is packed in them, standard input
    show     what is said to people
"""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from agent import wire
from agent.assembly import Parts, in_force
from agent.chunk import Chunker
from agent.clock import SystemClock
from agent.config import Config
from agent.core.discovery import client_of
from agent.core.lines import Piece
from agent.harvester import Harvester, Truncated, first_generation
from agent.logs import escaped
from agent.operator.validate.inputs import STDIN, Input, Unusable, opened
from agent.telemetry import Metrics
from agent.wire import Record

Show = Callable[[Mapping[str, Any]], None]
Progress = Callable[[int], None]


class Rejected(Struct, frozen=True):
    """A line that would become a dead letter; ``[start, end)`` are its bytes, counted from 0."""

    line: int
    start: int
    end: int
    reason: str
    detail: str
    type: str | None


class Verdict(Struct, kw_only=True):
    """What would become of one input.

    Attributes:
        bytes: Of its content, unpacked.
        events: Lines that would go to ``kafka.topic``.
        rejected: Lines that would go to ``dlq.topic``; ``rejections`` has the first ones.
        unfinished_bytes: At the end, without a line break yet: the agent waits for the rest.
        problem: Why it was not read, or not to its end.
    """

    file: str
    bytes: int = 0
    lines: int = 0
    events: int = 0
    blank: int = 0
    rejected: int = 0
    unfinished_bytes: int = 0
    problem: str | None = None
    by_reason: dict[str, int] = {}
    by_type: dict[str, int] = {}
    redacted: dict[str, int] = {}
    rejections: list[Rejected] = []

    @property
    def good(self) -> bool:
        return self.problem is None and not self.rejected


class Validation:
    """Validates one input after the other by one configuration. Raises ``ConfigError``."""

    def __init__(self, config: Config, limit: int) -> None:
        self._limit = limit
        uncompressed = replace(config.kafka, compression="none", compression_level=None)
        unnoted = replace(config.audit, enabled=False)
        self._config = replace(config, kafka=uncompressed, audit=unnoted)
        self._metrics = Metrics(CollectorRegistry())
        parts = Parts(self._config, in_force(self._config), SystemClock(), self._metrics)
        self._chunker = parts.chunker(lambda: None, lambda: None)

    def judge(
        self,
        name: str,
        stdin: BinaryIO,
        *,
        show: Show | None = None,
        progress: Progress | None = None,
    ) -> Verdict:
        """Read all of ``name``. ``show`` gets each record, redacted; ``progress`` bytes read."""
        verdict, before = Verdict(file=escaped(name)), self._redacted()
        try:
            with opened(name, stdin) as found:
                run = _Run(self._config, self._chunker, found, self._limit)
                run.go_through(verdict, show, progress)
        except Unusable as unusable:
            verdict.problem = str(unusable)
        except OSError as error:
            verdict.problem = (error.strerror or str(error)).lower()
        verdict.redacted = dict(self._redacted() - before)
        return verdict

    def _redacted(self) -> Counter[str]:
        found = Counter[str]()
        for family in self._metrics.redactions.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    found[sample.labels["kind"]] = int(sample.value)
        return found


class _Run:
    """One input on its way through the rooms."""

    def __init__(self, config: Config, chunker: Chunker, found: Input, limit: int) -> None:
        self._config = config
        self._chunker = chunker
        self._found = found
        self._limit = limit
        base = first_generation(found.birth, found.name, client(config, found.name))
        self._harvester = Harvester(found.file, base, config.source.line_bytes_max)
        self._harvester.ending = found.whole

    def go_through(self, verdict: Verdict, show: Show | None, progress: Progress | None) -> None:
        reasons, types = Counter[str](), Counter[str]()
        for piece in self._pieces():
            chunk = self._chunker.fill(self._harvester, piece)
            starts = _starts(piece)
            for at, dead, record in self._records():
                headers = {key: value.decode() for key, value in record.headers}
                number = verdict.lines + bisect_right(starts, at)
                end = int(headers["source"].rpartition(";")[2])
                if dead:
                    reasons[headers["reason"]] += 1
                    if len(verdict.rejections) < self._limit:
                        verdict.rejections.append(_rejected(number, at, end, headers))
                else:
                    types[headers["event_type"]] += 1
                if show is not None:
                    show(self._shown(number, at, end, dead=dead, record=record, headers=headers))
            verdict.lines += chunk.lines
            verdict.bytes = piece.end
            if progress is not None:
                progress(piece.end)
        verdict.by_reason, verdict.by_type = dict(reasons.most_common()), dict(types.most_common())
        verdict.events, verdict.rejected = types.total(), reasons.total()
        verdict.blank = verdict.lines - verdict.events - verdict.rejected
        verdict.unfinished_bytes = self._harvester.seen_to - self._harvester.cursor.start
        verdict.bytes += verdict.unfinished_bytes
        verdict.problem = self._found.damage

    def _pieces(self) -> Iterator[Piece]:
        while True:
            piece = self._harvester.read()
            if isinstance(piece, Truncated):
                raise Unusable(
                    f"was truncated or written anew while it was read, at {piece.position}"
                )
            if piece is not None:
                yield piece
            elif not self._harvester.more:
                return

    def _records(self) -> list[tuple[int, bool, Record]]:
        """Return what the last piece became, as its lines stand: start, dead letter or not."""
        sealed = self._chunker.seal_all()
        ways = ((False, sealed.events), (True, sealed.dead_letters))
        found = [(dead, record) for dead, batches in ways
                 for batch in batches for record in wire.records(batch)]  # fmt: skip
        placed = [(_start(record), dead, record) for dead, record in found]
        return sorted(placed, key=lambda one: one[0])

    def _shown(
        self,
        line: int,
        start: int,
        end: int,
        *,
        dead: bool,
        record: Record,
        headers: dict[str, str],
    ) -> dict[str, Any]:
        value: object = record.value.decode() if dead else msgspec.Raw(record.value)
        return {
            "line": line,
            "start": start,
            "end": end,
            "topic": self._config.dlq.topic if dead else self._config.kafka.topic,
            "key": None if record.key is None else record.key.decode(),
            "headers": headers,
            "value": value,
        }


def client(config: Config, name: str) -> str:
    """Return whose the lines of this file would be; below ``source.root`` the path says it."""
    source = config.source
    path, root = Path(os.path.realpath(name)), Path(os.path.realpath(source.root))
    if source.client is not None:
        return source.client
    below = (
        path.relative_to(root) if name != STDIN and path.is_relative_to(root) else Path(path.name)
    )
    return client_of(str(below), source.client_depth)


def _starts(piece: Piece) -> list[int]:
    """Return where each line of the piece begins; what was passed over counts as one."""
    passed = [piece.start] if piece.skipped_to > piece.start else []
    lengths = (len(line) + 1 for line in piece.lines)
    return [*passed, *list(accumulate(lengths, initial=piece.skipped_to))[: len(piece.lines)]]


def _start(record: Record) -> int:
    return int(dict(record.headers)["source"].split(b";")[3])


def _rejected(line: int, start: int, end: int, headers: Mapping[str, str]) -> Rejected:
    reason, detail = headers["reason"], headers["detail"]
    return Rejected(line, start, end, reason, detail, headers.get("event_type"))
