"""The splitter: however a file is read, its lines and their ranges come out the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import lines
from agent.core.lines import TAIL_BYTES, Cursor, Piece

PIECES = st.lists(
    st.sampled_from([b"\n", b"ab\n", b"x" * 9, b"y" * 70, b"\r\n", b"z"]), max_size=30
)
HOLES = st.lists(
    st.sampled_from([b"\n", b"ab\n", b"\0", b"\0" * 9, b"\0" * 200, b"y" * 70, b"z"]), max_size=30
)
Range = tuple[int, int, bytes | None]


def oracle(written: bytes, limit: int) -> list[Range]:
    """The obvious way, with the whole file in memory. An oversize body is None."""
    found: list[Range] = []
    start = 0
    for body in written.split(b"\n")[:-1]:
        end = start + len(body) + 1
        found.append((start, end, None if len(body) > limit else body))
        start = end
    return found


def read_all(written: bytes, cursor: Cursor, limit: int) -> list[Range]:
    """Read as the harvester does: the tail first, then what the cursor wants."""
    found: list[Range] = []
    for _ in range(10 * len(written) + 10):
        skip = len(cursor.tail)
        read = written[cursor.at - skip : cursor.at + cursor.want]
        piece = cursor.feed(read)
        if piece is None:
            if cursor.at + cursor.want > len(written) + cursor.want - 1:
                break
            continue
        at = piece.skipped_to
        if piece.skipped == "hole":
            assert not written[piece.start : at].strip(b"\0")
        elif at > piece.start:
            found.append((piece.start, at, None))
        for body in piece.lines:
            fits = len(body.lstrip(b"\0")) <= limit
            found.append((at, at + len(body) + 1, body if fits else None))
            at += len(body) + 1
        assert at == piece.end, "the lines must tile the piece"
    return found


@given(PIECES, st.integers(1, 40), st.integers(1, 50))
def test_the_length_of_a_read_never_shows(
    pieces: list[bytes], limit: int, chunk_bytes: int
) -> None:
    written = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
        got = read_all(written, Cursor(0, b"", limit), limit)

    assert oracle(written, limit) == got


@given(PIECES, PIECES)
def test_a_torn_line_waits_for_its_newline(before: list[bytes], after: list[bytes]) -> None:
    """Whatever part of a line is on disk, only the whole line is ever handed out."""
    first, second = b"".join(before), b"".join(after)
    cursor = Cursor(0, b"", 1000)

    got = read_all(first, cursor, 1000)
    got += read_all(first + second, cursor, 1000)

    assert oracle(first + second, 1000) == got


@given(st.integers(0, 200), st.integers(1, 100))
def test_the_tail_is_what_stands_before_the_next_read(offset: int, length: int) -> None:
    written = bytes(i % 7 + 97 for i in range(offset)) + b"x" * length + b"\n"
    cursor = Cursor(offset, written[max(0, offset - TAIL_BYTES) : offset], 1000)

    cursor.feed(cursor.tail + written[offset:])

    assert written[max(0, cursor.at - TAIL_BYTES) : cursor.at] == cursor.tail


def test_a_line_over_the_limit_costs_no_more_than_one_read() -> None:
    """A writer that never ends its line must not make us hold it."""
    cursor = Cursor(0, b"", 1 << 20)
    longest = 0
    for _ in range(1000):
        longest = max(longest, cursor.want)
        assert cursor.feed(cursor.tail + b"x" * cursor.want) is None

    assert longest <= (1 << 20) + 1
    piece = cursor.feed(cursor.tail + b"x\nok\n")
    assert piece is not None
    assert (0, cursor.at - 3, [b"ok"]) == (piece.start, piece.skipped_to, piece.lines)


def test_an_offset_without_its_tail_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="tail"):
        Cursor(10, b"", 100)


def oracle_of_holes(written: bytes, limit: int) -> list[tuple[int, bytes | None]]:
    """The end of each line and its body, where NULs at its beginning do not count."""
    bodies = [(end, written[start : end - 1].lstrip(b"\0")) for start, end, _ in oracle(written, 0)]
    return [(end, None if len(body) > limit else body) for end, body in bodies]


@given(HOLES, st.integers(1, 40), st.integers(1, 50))
def test_a_hole_before_a_line_takes_nothing_of_the_line(
    pieces: list[bytes], limit: int, chunk_bytes: int
) -> None:
    """However long it is against one read, and against the longest line."""
    written = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
        got = read_all(written, Cursor(0, b"", limit), limit)

    ends = [(end, None if body is None else body.lstrip(b"\0")) for _, end, body in got]
    assert oracle_of_holes(written, limit) == ends


def test_a_hole_is_not_passed_for_good_before_something_stands_behind_it() -> None:
    """A file that was allocated ahead ends in NULs, and its writer fills them from the front."""
    cursor = Cursor(0, b"", 100)
    allocated = b"ab\n" + b"\0" * 300
    assert read_all(allocated, cursor, 100) == [(0, 3, b"ab")]
    assert (3, True) == (cursor.start, cursor.in_hole)

    cursor.rewind()

    filled = b"ab\ncd\n" + b"\0" * 297
    assert read_all(filled, cursor, 100) == [(3, 6, b"cd")]


def test_a_hole_of_the_file_system_is_hopped_over() -> None:
    """8 GiB that nobody wrote must not cost the reading of 8 GiB."""
    cursor = Cursor(0, b"", 100)
    assert cursor.feed(b"\0" * 200) is None

    cursor.hop(8 << 30)

    piece = cursor.feed(cursor.tail + b"\0" * 4 + b"ab\n")
    assert piece == Piece(0, (8 << 30) + 4, (8 << 30) + 4, [], "hole")
    assert cursor.feed(cursor.tail + b"ab\n") is not None


@pytest.mark.parametrize(
    ("written", "piece"),
    [
        (b"", None),
        (b"{", Piece(0, 1, 1, [], "unterminated")),
        (b"\0\0", Piece(0, 2, 2, [], "hole")),
        (b"\0" * 200, Piece(0, 200, 200, [], "hole")),
        (b"x" * 200, Piece(0, 200, 200, [], "unterminated")),
    ],
)
def test_what_a_file_that_is_gone_ends_with_is_handed_out(
    written: bytes, piece: Piece | None
) -> None:
    """There will be no newline any more. Nobody wrote a hole, and nobody misses it."""
    cursor = Cursor(0, b"", 100)
    assert cursor.feed(written) is None
    read = cursor.tail + written[cursor.at :]

    assert piece == cursor.finish(read)
    assert cursor.finish(cursor.tail) is None
