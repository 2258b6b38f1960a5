"""Files that are deleted or moved away while their lines are still to be read. Real files."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.core.ledger import Chunk
from agent.core.lines import Piece
from agent.departed import GRACE_S
from agent.harvester import Truncated
from tests.fakes import FakeClock
from tests.reading import Reading

LINE = b'{"n":1}\n'
TORN = b'{"n":'


class Reader(Reading):
    """What is read is settled at once."""

    def __init__(self, root: Path, *, held_bytes_max: int | None, descriptors_max: int) -> None:
        self.root, self.clock = root, FakeClock()
        self.pieces: list[Piece] = []
        super().__init__(
            root, self.clock, held_bytes_max=held_bytes_max, descriptors_max=descriptors_max
        )

    def scan(self, *, read: bool = True) -> None:
        self.sources.apply(self.scanner.scan())
        if read:
            self.read()

    def read(self) -> None:
        while (followed := self.sources.next()) is not None:
            reader = followed.harvester
            assert reader is not None
            piece = self.sources.read(followed)
            if isinstance(piece, Truncated):
                self.sources.truncated(followed)
            elif piece is not None:
                chunk: Chunk = reader.chunk(piece)
                chunk.ledger.reserve(chunk)
                self.pieces.append(piece)
            if reader.more:
                self.sources.again(followed)

    def pass_time(self, seconds: float) -> None:
        """Scan every few seconds, as an agent does."""
        for _ in range(int(seconds // 5)):
            self.clock.advance(5.0)
            self.scan()

    @property
    def unterminated(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.skipped == "unterminated"]

    @property
    def opened(self) -> int:
        return len(self.sources.opened)

    def gone_unread_bytes(self, cause: str) -> float:
        return float(self.metrics.gone_unread_bytes.labels(cause)._value.get())


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with closing(Reader(tmp_path, held_bytes_max=100_000, descriptors_max=4)) as made:
        yield made


def test_the_last_line_of_a_deleted_file_becomes_a_dead_letter_after_a_time(
    reader: Reader,
) -> None:
    """Not before: whoever writes it may have it open still, and end the line."""
    path = reader.root / "a.jsonl"
    path.write_bytes(LINE + TORN)
    reader.scan()
    path.unlink()

    reader.pass_time(GRACE_S - 5)
    assert not reader.unterminated

    reader.pass_time(15)
    assert [Piece(8, 13, 13, [], "unterminated")] == reader.unterminated
    reader.pass_time(5)
    assert 0 == reader.opened


def test_a_line_that_is_ended_after_the_deletion_is_read_whole(reader: Reader) -> None:
    """The deadline begins again with each byte that comes."""
    path = reader.root / "a.jsonl"
    with path.open("ab", buffering=0) as app:
        app.write(LINE + TORN)
        reader.scan()
        path.unlink()
        reader.pass_time(GRACE_S - 5)
        app.write(b"2}\n" + TORN)
        reader.pass_time(GRACE_S - 5)

        assert [[b'{"n":1}'], [b'{"n":2}']] == [piece.lines for piece in reader.pieces]
        assert not reader.unterminated

        reader.pass_time(20)
    assert 1 == len(reader.unterminated)


def test_the_torn_line_of_a_file_that_was_moved_away_waits_for_it(reader: Reader) -> None:
    """It may be moved back, and go on: a half line would be sent as a dead letter, and its other
    half as well."""
    path, away = reader.root / "a.jsonl", reader.root / "a.away"
    path.write_bytes(LINE + TORN)
    reader.scan()
    path.rename(away)
    reader.pass_time(2 * GRACE_S)
    assert (0, []) == (reader.opened, reader.unterminated)

    away.rename(path)
    with path.open("ab") as app:
        app.write(b"2}\n")
    reader.scan()

    assert [[b'{"n":1}'], [b'{"n":2}']] == [piece.lines for piece in reader.pieces]


def test_a_stop_does_not_wait_for_the_deadline(reader: Reader) -> None:
    """No later life could open the file any more."""
    path = reader.root / "a.jsonl"
    path.write_bytes(LINE + TORN)
    reader.scan()
    path.unlink()
    reader.scan()

    reader.sources.limit()
    reader.read()

    assert [Piece(8, 13, 13, [], "unterminated")] == reader.unterminated


def test_a_stop_takes_the_torn_line_of_a_file_it_has_not_read_to_its_end(reader: Reader) -> None:
    """The app wrote on, and deleted the file, after our last look at it."""
    path = reader.root / "a.jsonl"
    path.write_bytes(LINE)
    reader.scan()
    with path.open("ab") as app:
        app.write(LINE + TORN)
    path.unlink()
    reader.scan(read=False)

    reader.sources.limit()
    reader.read()

    assert [Piece(16, 21, 21, [], "unterminated")] == reader.unterminated


def test_a_deleted_file_is_looked_at_before_it_makes_room_for_another(reader: Reader) -> None:
    """No scan has met the deletion yet, no hint told of what was written before it."""
    for n in range(4):
        (reader.root / f"{n}.jsonl").write_bytes(LINE)
    reader.scan()
    (reader.root / "a.jsonl").write_bytes(LINE)
    reader.scan(read=False)
    for n in range(4):
        with (reader.root / f"{n}.jsonl").open("ab") as app:
            app.write(LINE)
        (reader.root / f"{n}.jsonl").unlink()
    reader.read()

    assert 9 == sum(len(piece.lines) for piece in reader.pieces)


def test_deleted_files_do_not_keep_others_from_being_read(reader: Reader) -> None:
    """Descriptors are few: where one is needed, the last line does not wait for its time."""
    for n in range(4):
        (reader.root / f"{n}.jsonl").write_bytes(TORN)
    reader.scan()
    for n in range(4):
        (reader.root / f"{n}.jsonl").unlink()
    (reader.root / "a.jsonl").write_bytes(LINE)

    reader.scan()
    reader.scan()

    assert [b'{"n":1}'] in [piece.lines for piece in reader.pieces]
    assert len(reader.unterminated) in range(1, 5)


def test_a_torn_file_stays_open_rather_than_a_whole_one(reader: Reader) -> None:
    """Of one that is closed and then deleted, the last line would be lost."""
    for n in range(4):
        (reader.root / f"{n}.jsonl").write_bytes(LINE + (TORN if n == 0 else b""))
    reader.scan()
    (reader.root / "a.jsonl").write_bytes(LINE)
    reader.scan()

    (reader.root / "0.jsonl").unlink()
    reader.pass_time(GRACE_S + 10)

    assert 1 == len(reader.unterminated)


def test_what_deleted_files_hold_on_the_disk_is_bounded(reader: Reader) -> None:
    """An app whose rotation deletes what we could not read yet must not fill the disk unseen: the
    oldest is given up, and what it held is counted."""
    for n in range(3):
        (reader.root / f"{n}.jsonl").write_bytes(LINE * 5000)
    reader.scan(read=False)
    for _ in range(3):
        reader.sources.next()  # opened, and its turn is put off
    for n in range(3):
        (reader.root / f"{n}.jsonl").unlink()
        reader.clock.advance(1.0)
        reader.scan(read=False)

    assert 2 == reader.opened
    assert 40_000 == reader.gone_unread_bytes("held")
    assert 80_000 == reader.metrics.held_bytes._value.get()

    reader.scan()
    assert 10_000 == sum(len(piece.lines) for piece in reader.pieces)


def hold(reader: Reader, path: str, size: int, *, sparse: bool = False) -> None:
    """Let ``path`` be deleted before anything of it is read, but for its descriptor."""
    made = reader.root / path
    made.parent.mkdir(exist_ok=True)
    if sparse:
        made.touch()
        os.truncate(made, size)
    else:
        made.write_bytes(LINE * (size // len(LINE)))
    reader.scan(read=False)
    whoever = reader.sources.next()  # it is opened by that
    assert whoever is not None
    reader.sources.again(whoever)
    made.unlink()
    reader.clock.advance(1.0)


def test_a_client_that_deletes_too_much_loses_its_own_files_and_no_others(reader: Reader) -> None:
    """Though what the other deleted went first."""
    hold(reader, "quiet/a.jsonl", 8000)
    for n in range(3):
        hold(reader, f"busy/{n}.jsonl", 80_000)
    reader.scan(read=False)
    reader.scan()

    assert 8000 + 80_000 == sum(len(LINE) * len(piece.lines) for piece in reader.pieces)


def test_holes_of_deleted_files_take_up_no_room(reader: Reader) -> None:
    """A terabyte of nothing, which costs its writer nothing, would push out all that is held."""
    hold(reader, "quiet/a.jsonl", 8000)
    hold(reader, "busy/a.jsonl", 1 << 40, sparse=True)
    reader.scan(read=False)

    assert 2 == reader.opened
    assert 0 == reader.gone_unread_bytes("held")
    assert reader.metrics.held_bytes._value.get() < 100_000


def test_what_was_deleted_before_it_was_read_is_counted(reader: Reader) -> None:
    for n in range(2):
        (reader.root / f"{n}.jsonl").write_bytes(LINE)
    reader.scan(read=False)
    for n in range(2):
        (reader.root / f"{n}.jsonl").unlink()
    reader.scan()

    assert 16 == reader.gone_unread_bytes("deleted")
