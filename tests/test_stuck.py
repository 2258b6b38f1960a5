"""A file whose descriptor shows nothing of its growth is opened again."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.harvester import Truncated
from agent.opener import Descriptor, Opened
from agent.stuck import STUCK_S
from tests.fakes import FakeClock
from tests.reading import Reading

LINE = b'{"n":1}\n'


class Frozen(Descriptor):
    """Shows the file as it was when it was opened, as a network file system may."""

    def __init__(self, opened: Descriptor) -> None:
        super().__init__(os.dup(opened._fd))
        opened.close()
        self.content = super().pread(1 << 20, 0)

    def pread(self, length: int, offset: int) -> bytes:
        return self.content[offset : offset + length]

    def size(self) -> int:
        return len(self.content)


class World(Reading):
    """One file, of which each descriptor shows what it was."""

    def __init__(self, root: Path) -> None:
        self.path, self.clock = root / "a.jsonl", FakeClock()
        self.openings = 0
        self.lines = 0
        super().__init__(root, self.clock)

    def open_file(self, path: str) -> Opened:
        opened = super().open_file(path)
        self.openings += 1
        return Frozen(opened) if isinstance(opened, Descriptor) else opened

    def scan(self) -> None:
        self.sources.apply(self.scanner.scan())
        while (followed := self.sources.next()) is not None:
            reader = followed.harvester
            assert reader is not None
            piece = self.sources.read(followed)
            assert not isinstance(piece, Truncated)
            if piece is not None:
                chunk = reader.chunk(piece)
                chunk.ledger.reserve(chunk)
                self.lines += len(piece.lines)

    def append(self, content: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(content)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


def test_a_file_that_grows_unseen_is_opened_again(world: World) -> None:
    """And read on where it was."""
    world.append(LINE)
    world.scan()
    world.append(LINE)
    world.scan()
    assert (1, 1) == (world.lines, world.openings)

    for _ in range(3):
        world.scan()
        world.clock.advance(STUCK_S)

    assert (2, 2) == (world.lines, world.openings)
    assert 1 == world.metrics.stuck_files._value.get()


def test_a_file_at_rest_is_not_stuck(world: World) -> None:
    """Nor is one whose last line is torn, for all of it was seen."""
    world.append(LINE + b"{")
    for _ in range(10):
        world.scan()
        world.clock.advance(STUCK_S)

    assert (1, 1) == (world.lines, world.openings)
    assert 0 == world.metrics.stuck_files._value.get()


def test_a_file_that_waits_for_its_turn_is_not_stuck(world: World) -> None:
    """Backpressure and limits keep files waiting for as long as they last."""
    world.append(LINE)
    world.scan()
    world.append(LINE)
    for _ in range(10):
        world.sources.apply(world.scanner.scan())
        world.sources.hint("a.jsonl")
        world.clock.advance(STUCK_S)

    assert 0 == world.metrics.stuck_files._value.get()


def test_a_file_that_rests_before_its_end_is_opened_again(world: World) -> None:
    """Nothing should bring it there; if a turn is lost, its lines must not wait for the next one
    that an app writes."""
    world.append(LINE)
    world.scan()
    world.append(LINE)
    world.sources.apply(world.scanner.scan())
    assert world.sources.next() is not None  # and nobody reads it

    for _ in range(3):
        world.scan()
        world.clock.advance(STUCK_S)

    assert (2, 2) == (world.lines, world.openings)
