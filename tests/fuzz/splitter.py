"""``core.lines`` against the obvious way: the whole file in memory, cut at every LF.

The first bytes choose the limits, where reading begins, and how much of the file is there at each
read; the rest is the file. A line that begins with NULs may come as a hole and the rest of the
line: that depends on how the file grew, so only its being true is checked.
"""

from typing import NamedTuple

from agent.core import lines
from agent.core.lines import TAIL_BYTES, Cursor, Skipped

Line = tuple[int, int, bytes | None]
"""Start, end behind the LF, and the body; None where it is over the limit."""
HEAD_BYTES = 12


class Case(NamedTuple):
    written: bytes
    begin: int
    """The cursor's first offset; a line's beginning, as every checkpoint is."""
    line_bytes_max: int
    chunk_bytes: int
    steps: bytes
    """How much there is to read at first, time after time; then everything."""


def case(data: bytes) -> Case:
    head, written = data[:HEAD_BYTES].ljust(HEAD_BYTES, b"\x05"), data[HEAD_BYTES:]
    starts = [0, *(at + 1 for at, byte in enumerate(written) if byte == ord("\n"))]
    return Case(
        written,
        starts[head[0] % len(starts)],
        1 + head[1],
        1 + head[2],
        head[3:],
    )


def model(given: Case, holes: dict[int, int]) -> list[Line]:
    """Return each line of the file, those that ``holes`` say from behind their hole on."""
    found: list[Line] = []
    start = given.begin
    for line in given.written[given.begin :].split(b"\n")[:-1]:
        end = start + len(line) + 1
        start = holes.get(start, start)
        body = given.written[start : end - 1]
        found.append((start, end, body if len(body) <= given.line_bytes_max else None))
        start = end
    return found


def check(data: bytes) -> None:
    """Read the file as it grows, in reads of any length, and compare."""
    given = case(data)
    before, lines.CHUNK_BYTES = lines.CHUNK_BYTES, given.chunk_bytes
    try:
        got = _read(given)
    finally:
        lines.CHUNK_BYTES = before
    holes = {start: end for what, (start, end, _) in got if what == "hole"}
    for start, end in holes.items():
        assert end > start, "a hole has a length"
        assert not given.written[start:end].strip(b"\0"), "a hole is NULs and nothing else"
        assert given.written[end : end + 1].strip(b"\0"), "a hole ends where something stands"
    found = [line for what, line in got if what != "hole"]
    assert found == model(given, holes)
    begins = {start for start, _, _ in model(given, {})} | {_last_begin(given)}
    assert holes.keys() <= begins, "a hole stands at the beginning of a line"


def _last_begin(given: Case) -> int:
    return max(given.begin, given.written.rfind(b"\n") + 1)


def _read(given: Case) -> list[tuple[Skipped | None, Line]]:
    cursor = Cursor(
        given.begin,
        given.written[max(0, given.begin - TAIL_BYTES) : given.begin],
        given.line_bytes_max,
    )
    found: list[tuple[Skipped | None, Line]] = []
    for grown in given.steps:
        found += _once(cursor, given, grown)[0]
    at_end = False
    while not at_end:
        completed, at_end = _once(cursor, given, len(given.written))
        found += completed
    return found


def _once(
    cursor: Cursor, given: Case, grown: int
) -> tuple[list[tuple[Skipped | None, Line]], bool]:
    """Read once what is there, ``grown`` bytes at most. Return the lines that were completed, and
    whether the end of the file was met with nothing completed."""
    limit, at, start = given.line_bytes_max, cursor.at, cursor.start
    assert cursor.want <= max(given.chunk_bytes, limit + 1), "a read is bounded"
    tail = given.written[max(0, at - TAIL_BYTES) : at]
    assert cursor.tail == tail, "the tail is what stands before the next read"
    read = given.written[at : at + min(grown, cursor.want)]
    at_end = len(read) < cursor.want
    piece = cursor.feed(tail + read)
    if piece is None:
        return [], at_end
    assert piece.start == start, "no gap between two pieces"
    found: list[tuple[Skipped | None, Line]] = []
    reached = piece.skipped_to
    if reached > piece.start:
        found.append((piece.skipped, (piece.start, reached, None)))
    for body in piece.lines:
        end = reached + len(body) + 1
        found.append((None, (reached, end, body if len(body) <= limit else None)))
        reached = end
    assert reached == piece.end == cursor.start, "lines tile the piece; the next begins at its end"
    return found, False
