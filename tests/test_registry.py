"""Which file is whose, over real files: copies, restarts, and generations that end."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from agent.clock import SystemClock
from agent.core.continuation import WAIT_S, Index
from agent.core.discovery import FileKey, file_key
from agent.core.identity import Checkpoint
from agent.core.ledger import Chunk
from agent.departed import GRACE_S
from agent.harvester import Truncated
from agent.registry import Registry, _faces, _in_flight
from tests import model
from tests.fakes import FakeClock
from tests.reading import Reading

TURNS_MAX = 1000
FILE, COPY = "acme/a.jsonl", "acme/a.jsonl.1"
Rows = dict[tuple[str, int], Checkpoint]


class BirthsClock(FakeClock):
    """Tells the wall clock's time, for births of real files are compared with it."""

    def wall(self) -> float:
        return SystemClock().wall()


class Read(NamedTuple):
    path: str
    generation: int
    start: int
    end: int


class Life(Reading):
    """One life; what is read is settled by ``settle``."""

    def __init__(self, root: Path, clock: FakeClock, rows: Rows) -> None:
        self._rows = rows
        self._pending: list[Chunk] = []
        super().__init__(root, clock, rows.values())

    def scan(self, turns: int = TURNS_MAX) -> list[Read]:
        self.sources.apply(self.scanner.scan())
        return self.read(turns)

    def read(self, turns: int = TURNS_MAX) -> list[Read]:
        """Read all there is, or for some turns, and store what has to be stored."""
        found = []
        for _ in range(turns):
            followed = self.sources.next()
            if followed is None and self.sources.wait_s(1.0):
                break
            if followed is None:
                continue
            assert followed.harvester is not None
            piece = followed.harvester.read()
            if isinstance(piece, Truncated):
                self.sources.truncated(followed)
            elif piece is not None:
                chunk = followed.harvester.chunk(piece)
                chunk.open_batches = 1
                chunk.ledger.reserve(chunk)
                self._pending.append(chunk)
                base = followed.harvester.base
                found.append(Read(base.path, base.generation, piece.start, piece.end))
            if followed.harvester.more:
                self.sources.again(followed)
        for row in self.registry.take().rows:
            self._rows[row.source_id, row.generation] = row
        return found

    def scan_all(self) -> list[Read]:
        """Scan once, read and settle, for as long as files are closed and others opened."""
        reads, more = [], self.scan()
        while more:
            reads += more
            self.settle()
            more = self.read()
        return reads

    def settle(self) -> None:
        for chunk in self._pending:
            chunk.ledger.settle(chunk)
        self._pending.clear()
        for followed in self.sources.opened:
            row = followed.latest()
            self._rows[row.source_id, row.generation] = row


class World:
    """A root, a clock, and the rows that outlive the lives."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock = root, BirthsClock()
        self.rows: Rows = {}
        self.file, self.copy = root / FILE, root / COPY
        self.file.parent.mkdir()
        self._life: Life | None = None

    def restart(self) -> Life:
        """End one life as a crash does, and begin the next."""
        self.close()
        self._life = Life(self.root, self.clock, self.rows)
        return self._life

    def close(self) -> None:
        if self._life is not None:
            self._life.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


def lines(first: int, count: int, filler: int = 50) -> bytes:
    """Return lines of one length; their last ``filler`` bytes are the same."""
    return b"".join(
        b'{"n":%06d,"x":"%b"}\n' % (n, b"y" * filler) for n in range(first, first + count)
    )


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def cut(path: Path, text: bytes) -> None:
    os.truncate(path, 0)
    append(path, text)


def sizes(*reads: Read) -> int:
    return sum(read.end - read.start for read in reads)


def test_the_first_scan_of_a_life_calls_nothing_gone(world: World) -> None:
    """What the store knows is still to be opened: a copy of it waits, as beside any original."""
    append(world.file, lines(0, 100))
    life = world.restart()
    life.scan()
    life.settle()
    append(world.file, lines(100, 5))
    shutil.copyfile(world.file, world.copy)
    reads = world.restart().scan()

    assert {FILE} == {read.path for read in reads}
    assert {None} == {row.gone_at for row in world.rows.values()}


def test_what_was_written_while_nobody_looked_is_read_before_all_is_looked_at(world: World) -> None:
    """Whether the others are still who they were takes long to see, where there are many."""
    for n in range(8):
        append(world.root / f"acme/{n}.jsonl", lines(n * 100, 10 + n))
    life = world.restart()
    life.scan()
    life.settle()
    append(world.root / "acme/5.jsonl", lines(0, 1))
    reads = world.restart().scan(turns=1)

    assert ["acme/5.jsonl"] == [read.path for read in reads]


def test_what_two_scans_do_not_meet_is_gone(world: World) -> None:
    append(world.file, lines(0, 100))
    life = world.restart()
    life.scan()
    life.settle()
    world.file.unlink()
    life = world.restart()
    life.scan()
    assert {None} == {row.gone_at for row in world.rows.values()}
    life.scan()

    assert None not in {row.gone_at for row in world.rows.values()}


def test_a_generation_whose_end_a_crash_left_unsaid_is_a_tombstone(world: World) -> None:
    """Else its copy would wait for the truncation that is long past, and be read in full."""
    append(world.file, lines(0, 100))
    life = world.restart()
    life.scan()
    life.settle()
    append(world.file, tail := lines(100, 5))
    shutil.copyfile(world.file, world.copy)
    cut(world.file, lines(200, 110))
    life.sources.hint(FILE)
    life.read()  # and no scan
    life = world.restart()
    reads = [*life.scan(), *life.scan()]

    assert {FILE, COPY} == {read.path for read in reads}
    assert len(tail) == sizes(*(read for read in reads if read.path == COPY))
    assert [0, 1] == sorted(generation for _, generation in world.rows)
    assert sum(row.gone_at is not None for row in world.rows.values()) == 1


@pytest.mark.parametrize("settled", [0, 20], ids=["nothing_settled", "some_settled"])
@pytest.mark.parametrize("regrown", [1, 40], ids=["short", "regrown"])
def test_a_copy_waits_while_its_lines_are_in_flight(
    world: World, settled: int, regrown: int
) -> None:
    """However far the original has grown since it was cut, and however little was settled."""
    life = world.restart()
    if settled:
        append(world.file, lines(0, settled))
        life.scan()
        life.settle()
    append(world.file, lines(settled, 100))
    life.scan()
    append(world.file, tail := lines(settled + 100, 5))
    shutil.copyfile(world.file, world.copy)
    cut(world.file, lines(900, regrown))
    reads = []
    for _ in range(10):
        reads += life.scan()
        world.clock.advance(WAIT_S / 20)

    assert {FILE} == {read.path for read in reads}

    life.settle()
    reads = [*life.scan(), *life.scan()]
    assert len(tail) == sizes(*reads)


@pytest.mark.parametrize("between", [0, 20])
def test_a_copy_met_in_the_same_scan_as_its_original_waits(
    world: World, between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not anything of the original was read when the copy is judged."""
    monkeypatch.setattr("agent.strangers.LATELY_MAX", 2)
    append(world.file, lines(0, 100))
    os.utime(world.file, (1e9, 1e9))
    for number in range(between):
        other = world.file.with_name(f"other-{number}.jsonl")
        append(other, lines(1000 * number, 1))
        os.utime(other, (2e9, 2e9))
    shutil.copyfile(world.file, world.copy)
    os.utime(world.copy, (3e9, 3e9))
    life = world.restart()
    reads = life.scan_all() if between else life.scan()
    cut(world.file, lines(900, 110))
    reads += life.scan()
    life.settle()
    reads += [*life.scan(), *life.scan()]

    reads = [read for read in reads if "other" not in read.path]
    assert {FILE} == {read.path for read in reads}
    assert len(lines(0, 210)) == sizes(*reads)


def test_the_books_are_kept_while_one_scan_finds_a_large_tree(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands for files until then was as large as all else that is known of them."""
    monkeypatch.setattr("agent.strangers.LATELY_MAX", 2)
    for number in range(50):
        append(world.file.with_name(f"{number}.jsonl"), lines(1000 * number, 2))
    life = world.restart()

    assert 50 == len(life.scan_all())
    assert len(life.registry.strangers._lately) <= 4


def test_lines_that_end_alike_do_not_hide_a_truncation(world: World) -> None:
    """The bytes before the position are the same as before; the first bytes of the file are not."""
    append(world.file, lines(0, 100, filler=70))
    life = world.restart()
    life.scan()
    cut(world.file, lines(500, 150, filler=70))
    life.sources.hint(FILE)

    assert [Read(FILE, 1, 0, world.file.stat().st_size)] == life.read()


def test_the_index_takes_no_memory_of_its_own_for_rows_that_files_hold(world: World) -> None:
    """Nor the room of what it held once: every known file pays for either."""
    for number in range(60):
        append(world.file.with_name(f"{number}.jsonl"), lines(1000 * number, 2))
    life = world.restart()
    life.scan_all()
    life.scan()

    index = life.registry._index
    files = life.registry._by_birth.values()
    (first, *_) = files
    for owner in range(1000):
        index.put(owner, first.checkpoint)
    for owner in range(1000):
        index.put(owner)
    index.put(first, replace(first.checkpoint))
    life.registry._moving[first] = None
    life.scan()
    assert all(index._rows[followed] is followed.checkpoint for followed in files)
    assert all(isinstance(bucket, Checkpoint) for bucket in index._buckets.values())
    for table in (index._rows, index._buckets):
        assert sys.getsizeof(table) <= sys.getsizeof(dict.fromkeys(range(60)))


def test_a_path_is_kept_once(world: World) -> None:
    """A restart has it from the store and from the scan."""
    append(world.file, lines(0, 10))
    life = world.restart()
    life.scan_all()
    life = world.restart()
    life.scan_all()

    (followed,) = life.registry._by_birth.values()
    assert followed.seen is not None
    assert followed.seen.path is followed.latest().path


# ---- the index


def rebuilt(registry: Registry) -> Index:
    """Return what the index should hold, from the books alone."""
    index = Index(registry._tombstones.superseded())
    for followed in registry._by_birth.values():
        index.put(followed, *_faces(followed))
    for harvester in registry._ending:
        index.put(harvester, *_in_flight(harvester))
    for row in registry.strangers._lately:
        index.put(row.birth, row)
    return index


def contents(index: Index) -> dict[bytes, Counter[Checkpoint]]:
    """Return what ``index`` holds, however it holds it."""
    return {
        key: Counter([bucket] if isinstance(bucket, Checkpoint) else bucket)
        for key, bucket in index._buckets.items()
    }


def test_the_index_is_at_any_scan_what_a_rebuilt_one_would_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is kept up to date by what changed: 50,000 known files must not cost each new one."""
    compared, scanned = 0, Registry.scanned

    def checked(registry: Registry, new: Collection[FileKey]) -> None:
        nonlocal compared
        if model.METRICS is registry._metrics:
            registry._forget_after_s = 60.0  # some tombstones go
        scanned(registry, new)
        compared += 1
        wanted = rebuilt(registry)
        assert contents(wanted) == contents(registry._index)
        assert wanted._lengths == registry._index._lengths

    monkeypatch.setattr(Registry, "scanned", checked)
    monkeypatch.setattr("agent.core.continuation.CONTINUE_BYTES_MIN", 1)
    for seed in range(150):
        model.Program(seed).run()
    assert compared > 100


def test_a_scan_asks_only_those_whose_rows_may_have_moved(world: World) -> None:
    for n in range(40):
        append(world.file.with_name(f"{n}.jsonl"), lines(n, 20))
    life = world.restart()
    for _ in range(10):
        life.scan()
        life.settle()
    append(world.file, lines(900, 20))
    life.scan()

    closed_since = [f for f in life.registry._moving if f.harvester is None]
    assert {*life.sources.opened} == life.registry._moving.keys() - {*closed_since}
    assert len(closed_since) <= 8
    assert 41 == len(life.registry._index._rows)


def test_the_tombstone_of_a_file_is_kept_while_its_copy_goes_on_as_it(world: World) -> None:
    """They share a row: without it the copy would be read from its beginning after a restart."""
    append(world.file, lines(0, 100))
    life = world.restart()
    life.scan()
    life.settle()
    shutil.copyfile(world.file, world.copy)
    cut(world.file, lines(100, 110))
    life.scan()
    life.settle()
    life.scan()
    life.registry._forget_after_s = -1.0  # tombstones expire at once
    life.sources.apply(life.scanner.scan())
    assert [] == life.registry.take().forgotten

    world.copy.unlink()
    forgotten: list[Checkpoint] = []
    for _ in range(4):
        world.clock.advance(GRACE_S)  # until then its descriptor is held
        life.sources.apply(life.scanner.scan())
        forgotten += life.registry.take().forgotten
        life.read()
    assert [0] == [row.generation for row in forgotten]


def test_what_is_gone_is_remembered_across_a_restart(world: World) -> None:
    """A scan must not pass it over as too old, should it come back."""
    append(world.file, lines(0, 100))
    inode = world.file.stat().st_ino
    life = world.restart()
    life.scan()
    life.settle()
    assert {inode} == life.registry.inodes
    world.file.unlink()
    life.scan()
    assert life.sources.known.get(file_key(world.root.stat().st_dev, inode)) is None

    assert {inode} == life.registry.inodes
    assert {inode} == world.restart().registry.inodes


def test_a_copy_does_not_go_on_within_a_line(world: World) -> None:
    """The torn end of a deleted file was settled as it was; in its copy the line was ended.
    Going on there would send the rest of a line: the whole line goes, and nothing else."""
    append(world.file, lines(0, 100) + b'{"n":')
    end = world.file.stat().st_size - 5
    life = world.restart()
    life.scan()
    life.settle()
    aside = world.copy.with_name("aside")
    shutil.copyfile(world.file, aside)
    world.file.unlink()
    for _ in range(3):
        world.clock.advance(GRACE_S)
        life.scan()
        life.settle()
    aside.rename(world.copy)
    assert {end + 5} == {row.watermark for row in world.rows.values()}
    append(world.copy, b"1}\n" + lines(200, 1))

    world.clock.advance(GRACE_S)
    reads = life.scan()

    assert [end] == [read.start for read in reads]
    assert {COPY} == {read.path for read in reads}
