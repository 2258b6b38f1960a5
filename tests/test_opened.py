"""Which files are open, where there are more to be read than may be. Real files."""

import os
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent.core.ledger import Chunk
from agent.core.policy import ClientQuotaPolicy
from agent.core.quota import ClientLimits
from agent.harvester import Followed, Truncated
from agent.opener import Opened
from agent.telemetry import Metrics
from agent.turns import Turns
from tests.fakes import FakeClock
from tests.reading import Reading

LINE = b'{"n":1}\n'
CHUNK_BYTES = 256 << 10
DESCRIPTORS_MAX = 4
TURNS_MAX = 1000


class Reader(Reading):
    """What is read is settled at once. Counts the lines of each file."""

    def __init__(
        self, root: Path, *, bytes_per_s: int | None = None, line_bytes_max: int = 4096
    ) -> None:
        self.root, self.clock = root, FakeClock()
        self.lines: dict[str, int] = {}
        self.open_max = self.openings = 0
        limits = ClientLimits(
            ClientQuotaPolicy(bytes_per_s=bytes_per_s), None, self.clock.monotonic
        )
        turns = Turns(limits, self.clock, Metrics(CollectorRegistry()))
        super().__init__(
            root,
            self.clock,
            turns=turns,
            descriptors_max=DESCRIPTORS_MAX,
            line_bytes_max=line_bytes_max,
        )

    def open_file(self, path: str) -> Opened:
        self.openings += 1
        return super().open_file(path)

    def scan(self) -> None:
        self.sources.apply(self.scanner.scan(self.sources.known))

    def turn(self) -> None:
        """Read a chunk of the file whose turn it is, as the worker does."""
        followed = self.sources.next()
        self.open_max = max(self.open_max, len(self.sources.opened))
        if followed is not None:
            self._read(followed)

    def read_on(self, *, scanning: bool = False) -> None:
        """Read until there is nothing to be read any more, which must come."""
        for _ in range(TURNS_MAX):
            if self.sources.idle:
                return
            self.turn()
            if scanning:
                self.scan()
        pytest.fail("it never comes to rest")

    def _read(self, followed: Followed) -> None:
        reader = followed.harvester
        assert reader is not None
        piece = self.sources.read(followed)
        assert not isinstance(piece, Truncated)
        if piece is not None:
            chunk: Chunk = reader.chunk(piece)
            chunk.ledger.reserve(chunk)
            self.lines[reader.path] = self.lines.get(reader.path, 0) + len(piece.lines)
        self.sources.turns.charge(followed, reader.read_bytes, 0, 1)
        if reader.more:
            self.sources.again(followed)


@pytest.fixture
def slowed(tmp_path: Path) -> Iterator[Reader]:
    with closing(Reader(tmp_path, bytes_per_s=1024)) as made:
        yield made


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with closing(Reader(tmp_path)) as made:
        yield made


def write(path: Path, chunks: int, *, written_s: int) -> None:
    """Write a file of its own, so that none is taken for another one's copy."""
    line = b'{"n":%d}\n' % written_s
    path.write_bytes(line * (chunks * CHUNK_BYTES // len(line)))
    os.utime(path, (written_s, written_s))


def backlog(root: Path, files: int) -> None:
    """Let one client have more to be read, in each of its files, than a few turns take."""
    (root / "busy").mkdir()
    for n in range(files):
        (root / f"busy/{n}.jsonl").write_bytes(LINE * (10 * CHUNK_BYTES // len(LINE)))


def test_a_client_that_is_slowed_does_not_hold_the_descriptors_of_others(slowed: Reader) -> None:
    """It waits for hours with all of its files half read; nobody else need wait with it."""
    backlog(slowed.root, 2 * DESCRIPTORS_MAX)
    slowed.scan()
    for _ in range(20):
        slowed.turn()
    (slowed.root / "quiet").mkdir()
    (slowed.root / "quiet/a.jsonl").write_bytes(LINE)
    slowed.scan()
    for _ in range(20):
        slowed.turn()

    assert 1 == slowed.lines.get("quiet/a.jsonl")
    assert slowed.open_max <= DESCRIPTORS_MAX


def test_a_client_with_a_backlog_does_not_hold_the_descriptors_of_others(reader: Reader) -> None:
    backlog(reader.root, 2 * DESCRIPTORS_MAX)
    reader.scan()
    for _ in range(2):
        reader.turn()
    (reader.root / "quiet").mkdir()
    (reader.root / "quiet/a.jsonl").write_bytes(LINE)
    reader.scan()
    for _ in range(3):
        reader.turn()

    assert 1 == reader.lines.get("quiet/a.jsonl")
    assert reader.open_max <= DESCRIPTORS_MAX


def test_where_every_client_has_one_file_all_have_their_turns(reader: Reader) -> None:
    """None of them ever rests, and there are more of them than descriptors."""
    for n in range(3 * DESCRIPTORS_MAX):
        (reader.root / f"c{n}").mkdir()
        (reader.root / f"c{n}/a.jsonl").write_bytes(LINE * (10 * CHUNK_BYTES // len(LINE)))
    reader.scan()
    for _ in range(2 * 3 * DESCRIPTORS_MAX):
        reader.turn()

    assert 3 * DESCRIPTORS_MAX == len(reader.lines)
    assert reader.open_max <= DESCRIPTORS_MAX


def test_what_was_closed_half_read_is_read_on_and_nothing_of_it_twice(reader: Reader) -> None:
    """No scan finds it changed: it is remembered, however many there are meanwhile."""
    backlog(reader.root, DESCRIPTORS_MAX)
    reader.scan()
    for n in range(DESCRIPTORS_MAX):
        reader.turn()
        (reader.root / f"quiet{n}").mkdir()
        (reader.root / f"quiet{n}/a.jsonl").write_bytes(LINE)
        reader.scan()
    reader.read_on(scanning=True)

    assert DESCRIPTORS_MAX * 10 * CHUNK_BYTES // len(LINE) + DESCRIPTORS_MAX == sum(
        reader.lines.values()
    )


def test_what_was_read_on_is_not_opened_again_and_again(reader: Reader) -> None:
    """It is remembered until it is open, and no longer."""
    test_what_was_closed_half_read_is_read_on_and_nothing_of_it_twice(reader)
    before = reader.openings
    for _ in range(5):
        reader.scan()
        reader.read_on()

    assert before == reader.openings


def test_nothing_that_was_deleted_is_closed_for_another_client(reader: Reader) -> None:
    """It could not be opened again, and what it holds would be lost."""
    backlog(reader.root, DESCRIPTORS_MAX)
    reader.scan()
    reader.turn()
    for path in reader.root.glob("busy/*"):
        path.unlink()
    (reader.root / "quiet").mkdir()
    (reader.root / "quiet/a.jsonl").write_bytes(LINE)
    reader.scan()
    reader.read_on()

    assert DESCRIPTORS_MAX * 10 * CHUNK_BYTES // len(LINE) + 1 == sum(reader.lines.values())


def test_a_client_with_many_files_to_open_is_before_nobody(reader: Reader) -> None:
    """Nor one whose files say that they are old."""
    for n in range(1000):
        (reader.root / "busy").mkdir(exist_ok=True)
        (reader.root / f"busy/{n}.jsonl").write_bytes(LINE)
        os.utime(reader.root / f"busy/{n}.jsonl", (0, 0))
    (reader.root / "quiet").mkdir()
    (reader.root / "quiet/a.jsonl").write_bytes(LINE)
    reader.scan()
    for _ in range(3):
        reader.turn()

    assert "quiet/a.jsonl" in reader.lines


def test_of_a_log_that_was_rotated_the_older_file_is_read_first(reader: Reader) -> None:
    """After a pause of the agent: what was written first leaves first. A file of another log does
    not wait for that."""
    for n, name in enumerate(["a.jsonl.2", "a.jsonl.1", "a.jsonl", "b.jsonl"]):
        write(reader.root / name, 3, written_s=n)
    reader.scan()
    order: list[str] = []
    while not reader.sources.idle:
        before = dict(reader.lines)
        reader.turn()
        order += [path for path in reader.lines if reader.lines[path] != before.get(path)]

    of_a = [path for path in order if path != "b.jsonl"]
    assert ["a.jsonl.2", "a.jsonl.1", "a.jsonl"] == [path for path, _ in groupby(of_a)]
    assert "b.jsonl" in order[:2]


def test_an_old_file_that_is_written_on_keeps_no_other_one_waiting(reader: Reader) -> None:
    """Its name says that it was rotated; its writer does not know."""
    for n, name in enumerate(["a.jsonl.1", "a.jsonl"]):
        write(reader.root / name, 2, written_s=n)
    reader.scan()
    with (reader.root / "a.jsonl.1").open("ab", buffering=0) as app:
        for _ in range(12):
            app.write(LINE * (CHUNK_BYTES // len(LINE)))
            reader.turn()

    assert 2 * CHUNK_BYTES // len(LINE) <= reader.lines["a.jsonl"]


def test_lines_longer_than_a_read_come_to_their_end_though_descriptors_are_few(
    tmp_path: Path,
) -> None:
    """Whoever is closed within one would begin it again, and again."""
    with closing(Reader(tmp_path, line_bytes_max=4 * CHUNK_BYTES)) as reader:
        for n in range(2 * DESCRIPTORS_MAX):
            (tmp_path / f"c{n % 2}").mkdir(exist_ok=True)
            (tmp_path / f"c{n % 2}/{n}.jsonl").write_bytes(b"x" * 3 * CHUNK_BYTES + LINE)
        reader.scan()
        for n in range(60):
            for _ in range(3):
                reader.turn()
            (tmp_path / f"quiet{n}").mkdir()
            (tmp_path / f"quiet{n}/a.jsonl").write_bytes(LINE)
            reader.scan()

        assert 2 * DESCRIPTORS_MAX == sum(path[0] == "c" for path in reader.lines)
        assert 50 < sum(path[0] == "q" for path in reader.lines)
