"""Some dozens of lines become records together: the steps of the hot path that look at each line.

    decode, validate (core.decode)  ->  complete (core.record)  ->  write (core.writing)
        ->  redact (core.redact)  ->  enrich, key, headers (core.record)

What lines share is done once for all of them; ``scripts/bench/stages`` says what each step costs.
Lives in the worker thread.
"""

from collections.abc import Iterator, Sequence
from itertools import compress
from operator import not_
from typing import Any, NamedTuple, cast

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import Event
from agent.core.formats import epoch_s
from agent.core.record import Recorder
from agent.core.redact import Redactor
from agent.core.tracing import ChunkSpan, Step
from agent.core.window import Window
from agent.core.writing import Found, are_plain, write, write_all
from agent.rejects import OVERSIZE, Bad
from agent.wire import Run, append


class Moment(NamedTuple):
    """When lines are read: seconds and ms since 1970 UTC, and as RFC 3339."""

    wall_s: float
    now_ms: int
    now_text: str


class Lines(NamedTuple):
    """Some lines, without newlines, and where each stands in its file, newline included."""

    bodies: Sequence[bytes]
    places: Sequence[tuple[int, int]]


class Made(NamedTuple):
    """What became of lines: records of those that are events, in order, and the others.

    ``removed`` counts control characters.
    """

    runs: list[Run]
    bad: list[Bad]
    removed: int


class Steps:
    """Take lines through all steps. One thread only.

    Attributes:
        decoder, redactor: May be replaced at any time; without a redactor nothing is redacted.
        window: Which events are wanted; None: all. What is not is passed over, as if it were blank.
    """

    def __init__(self, decoder: Decoder, *, line_bytes_max: int, event_time: bool) -> None:
        self.decoder = decoder
        self.redactor: Redactor | None = None
        self.window: Window | None = None
        self._line_bytes_max = line_bytes_max
        self._runs = _by_event_time if event_time else _at_once

    def take(
        self, lines: Lines, recorder: Recorder, moment: Moment, span: ChunkSpan | None = None
    ) -> Made:
        """Make records of ``lines``; ``recorder`` is that of their file. Total."""
        found, (bodies, places) = self._decode(lines.bodies, moment.wall_s), lines
        _lap(span, "decode")
        if (window := self.window) is not None:
            wanted = [isinstance(one, Rejection) or window.takes(one) for one in found]
            found, bodies, places = _chosen(wanted, found, bodies, places)
        recorder.complete(found, bodies, places, moment.now_text)
        written = write_all(found)
        _lap(span, "encode")
        if self.redactor is not None:
            for at in self.redactor.events(found, [text for _, text in written]):
                written[at] = write(found[at])
            _lap(span, "redact")
        bad, removed = [], 0
        if not are_plain(found):
            removed = sum(one.removed for one in found if isinstance(one, Decoded))
            rejected = [isinstance(one, Rejection) for one in found]
            bad = [
                Bad(one, *place, line, len(line))
                for one, place, line in zip(found, places, bodies, strict=True)
                if isinstance(one, Rejection)
            ]
            found, written, places = _chosen([*map(not_, rejected)], found, written, places)
        events = cast("list[Event | Decoded]", found)
        keys, made = recorder.records(events, written, places)
        runs = self._runs(events, Run(moment.now_ms, keys, made))
        _lap(span, "encode")
        return Made(runs, bad, removed)

    def _decode(self, lines: Sequence[bytes], wall_s: float) -> list[Found]:
        found = self.decoder.decode_all(lines, wall_s)
        if max(map(len, lines), default=0) > self._line_bytes_max:
            for at, line in enumerate(lines):
                if len(line) > self._line_bytes_max:
                    found[at] = OVERSIZE
        return found


def _lap(span: ChunkSpan | None, step: Step) -> None:
    if span is not None:
        span.lap(step)


def _chosen(chosen: list[bool], *columns: Sequence[Any]) -> Iterator[list[Any]]:
    return ([*compress(column, chosen)] for column in columns)


def _at_once(_events: Sequence[Event | Decoded], run: Run) -> list[Run]:
    return [run]


def _by_event_time(events: Sequence[Event | Decoded], run: Run) -> list[Run]:
    runs: list[Run] = []
    for one, key, made in zip(events, run.keys, run.bodies, strict=True):
        append(runs, Run(event_ms(one, run.at_ms), [key], [made]))
    return runs


def event_ms(one: Event | Decoded, now_ms: int) -> int:
    """Return the event's own time, or the time of reading where that is missing or suspect."""
    decoded = one if isinstance(one, Decoded) else Decoded(one)
    timestamp = None if decoded.suspect or decoded.untimed else decoded.event.timestamp
    at_s = None if timestamp is None else epoch_s(timestamp)
    return now_ms if at_s is None or at_s < 0 else int(at_s * 1000)
