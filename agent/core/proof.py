"""Holds the lines of a file against what is in Kafka, and says what is not there. Pure.

A line is there where its bytes are covered by a record of the topic of events, or else of dead
letters, that names them in its header ``source``. Where they are not, there may be an excuse: it
need not be there yet, or any more. What has none is missing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from msgspec import Struct, field

from agent.core.lines import NUL
from agent.core.places import BEYOND, Along, Coverage

BOM: Final = b"\xef\xbb\xbf"
RANGES_SHOWN_MAX: Final = 100
"""Of one file; how many there are is always counted."""

Excuse = Literal["skipped", "pending", "expired"]
"""Passed over by ``source.start_at``; not acknowledged yet; older than what the topic keeps."""


class Line(NamedTuple):
    """What can become a record: from its first byte that is not NUL to behind its LF."""

    start: int
    end: int


def lines_of(pieces: Iterable[bytes]) -> Iterator[Line]:
    """Yield the complete lines of a file that is read in ``pieces``, blank ones left out.

    Memory does not grow with the length of a line. What stands behind the last LF is no line yet.
    """
    at = start = 0  # of what comes next, and of the line that it belongs to
    blank, begun = True, False  # of that line: nothing but white space, something but NULs
    for piece in pieces:
        bodies = piece.split(b"\n")
        for number, body in enumerate(bodies):
            rest = body if at else body.removeprefix(BOM)
            if not begun:
                rest = rest.lstrip(NUL)
                start = at + len(body) - len(rest)
                begun = bool(rest)
            at += len(body)
            blank = blank and not rest.strip()
            if number < len(bodies) - 1:
                at += 1
                if not blank:
                    yield Line(start, at)
                blank, begun, start = True, False, at


class Found:
    """What there is of one generation in both topics."""

    def __init__(self) -> None:
        self.events, self.dead_letters = Coverage(), Coverage()

    @property
    def copies(self) -> int:
        return self.events.copies + self.dead_letters.copies

    @property
    def held(self) -> int:
        return self.events.held + self.dead_letters.held


class Life(NamedTuple):
    """A generation under which lines of the file may have been sent, those that end by ``upto``."""

    found: Found
    upto: int = BEYOND[0]


class Missing(Struct, frozen=True):
    """Consecutive lines ``[start, end)`` that have no record, and no excuse."""

    start: int
    end: int
    lines: int


class Proof(Struct, kw_only=True):
    """What became of the lines of one file. Each is in exactly one of the counts.

    Attributes:
        copies: Records beyond the first of a line.
        missing_ranges: Of the missing lines, the first ``RANGES_SHOWN_MAX``.
        ranges: How many there are.
    """

    lines: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    pending: int = 0
    expired: int = 0
    missing: int = 0
    copies: int = 0
    ranges: int = 0
    missing_ranges: list[Missing] = field(default_factory=list)


def prove(
    lines: Iterable[Line],
    lives: Sequence[Life],
    excuses: Mapping[Excuse, Iterable[tuple[int, int]]],
) -> Proof:
    """Say of each line what became of it. ``excuses`` are asked in their order, of missing lines.

    Args:
        lines: In ascending order, as ``lines_of`` has them.
        excuses: Ranges in ascending order, without a byte in common.
    """
    proof = Proof(copies=sum(life.found.copies for life in lives))
    events = [(life.upto, Along(life.found.events)) for life in lives]
    dead_letters = [(life.upto, Along(life.found.dead_letters)) for life in lives]
    excused = [(name, Along(ranges)) for name, ranges in excuses.items()]
    counts: Counter[str] = Counter()
    last: Missing | None = None  # the range that is still growing
    for start, end in lines:
        fate = _fate(start, end, events, dead_letters, excused)
        counts[fate] += 1
        if fate == "missing":
            last = Missing(last.start if last else start, end, last.lines + 1 if last else 1)
        elif last is not None:
            _keep(proof, last)
            last = None
    if last is not None:
        _keep(proof, last)
    proof.lines = counts.total()
    for fate, count in counts.items():
        setattr(proof, fate, count)
    return proof


Asked = list[tuple[int, Along]]


def _fate(
    start: int,
    end: int,
    events: Asked,
    dead_letters: Asked,
    excused: list[tuple[Excuse, Along]],
) -> str:
    if any(end <= upto and along.covers(start, end) for upto, along in events):
        return "delivered"
    if any(end <= upto and along.covers(start, end) for upto, along in dead_letters):
        return "dead_lettered"
    for name, along in excused:
        if along.covers(start, end):
            return name
    return "missing"


def _keep(proof: Proof, ended: Missing) -> None:
    proof.ranges += 1
    if len(proof.missing_ranges) < RANGES_SHOWN_MAX:
        proof.missing_ranges.append(ended)
