"""Which files are open, where there are more to be read than may be. Real files."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent.core.ledger import Chunk
from agent.core.policy import ClientQuotaPolicy
from agent.core.quota import ClientLimits
from agent.harvester import Followed, Truncated
from agent.telemetry import Metrics
from agent.turns import Turns
from tests.fakes import FakeClock
from tests.reading import Reading

LINE = b'{"n":1}\n'
CHUNK_BYTES = 256 << 10
DESCRIPTORS_MAX = 4


class Reader(Reading):
    """What is read is settled at once. Counts the lines of each file."""

    def __init__(self, root: Path, *, bytes_per_s: int | None = None) -> None:
        self.root, self.clock = root, FakeClock()
        self.lines: dict[str, int] = {}
        self.open_max = 0
        limits = ClientLimits(
            ClientQuotaPolicy(bytes_per_s=bytes_per_s), None, self.clock.monotonic
        )
        turns = Turns(limits, self.clock, Metrics(CollectorRegistry()))
        super().__init__(root, self.clock, turns=turns, descriptors_max=DESCRIPTORS_MAX)

    def scan(self) -> None:
        self.sources.apply(self.scanner.scan(self.sources.known))

    def turn(self) -> None:
        """Read a chunk of the file whose turn it is, as the worker does."""
        followed = self.sources.next()
        self.open_max = max(self.open_max, len(self.sources.opened))
        if followed is not None:
            self._read(followed)

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
    while not reader.sources.idle:
        reader.turn()
        reader.scan()

    assert DESCRIPTORS_MAX * 10 * CHUNK_BYTES // len(LINE) + DESCRIPTORS_MAX == sum(
        reader.lines.values()
    )


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
    while not reader.sources.idle:
        reader.turn()

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
