"""Copies that somebody keeps beside their original, over real files."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.core.continuation import STILL_S, WAIT_S
from agent.opener import Descriptor
from agent.studies import SLICE_BYTES
from tests.test_registry import COPY, FILE, Life, Read, World, append, cut, lines, sizes


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


def watched(world: World, life: Life, scans: int = 3) -> list[Read]:
    """Let scans go by until every file that stands still was looked at."""
    reads = []
    for _ in range(scans):
        reads += life.scan()
        life.settle()
        world.clock.advance(STILL_S)
    return reads


@pytest.fixture
def kept(world: World) -> Life:
    """A life that has found out that a copy is one, beside its original."""
    append(world.file, lines(0, 100))
    life = world.restart()
    watched(world, life, 1)
    shutil.copyfile(world.file, world.copy)
    assert [] == watched(world, life)
    return life


def test_a_copy_kept_beside_its_original_is_not_read(world: World, kept: Life) -> None:
    """However long, and however far the original grows meanwhile."""
    for n in range(4):
        append(world.file, lines(100 * (n + 1), 100))
        world.clock.advance(WAIT_S)
        assert {FILE} == {read.path for read in watched(world, kept)}


def test_after_a_restart_it_is_found_to_be_a_copy_again(world: World, kept: Life) -> None:
    append(world.file, more := lines(100, 100))
    reads = watched(world, world.restart(), 5)

    assert [(FILE, len(more))] == [(read.path, read.end - read.start) for read in reads]


@pytest.mark.parametrize("hinted", [True, False])
def test_the_moment_it_is_written_to_it_is_read_in_full(
    world: World, kept: Life, hinted: bool
) -> None:
    """It was no copy, but the beginning of a file: nothing of it may be missing."""
    append(world.file, lines(100, 100))
    watched(world, kept)
    append(world.copy, lines(900, 1))
    if hinted:
        kept.sources.hint(COPY)
    reads = kept.read() if hinted else kept.scan()

    assert [Read(COPY, 0, 0, world.copy.stat().st_size)] == reads


def test_one_that_is_written_to_in_place_is_compared_again(world: World, kept: Life) -> None:
    content = bytearray(world.copy.read_bytes())
    content[2000:2001] = b"?"
    world.copy.write_bytes(content)

    assert [Read(COPY, 0, 0, len(content))] == watched(world, kept)


def test_a_file_that_differs_in_its_middle_is_read(world: World) -> None:
    """First bytes and anchors are those of the original, as of a file with equal lines."""
    append(world.file, lines(0, 100))
    life = world.restart()
    watched(world, life, 1)
    content = bytearray(world.file.read_bytes())
    content[2000:2001] = b"?"
    append(world.copy, bytes(content))

    assert [Read(COPY, 0, 0, len(content))] == watched(world, life)


def test_once_the_original_is_deleted_the_copy_goes_on_as_it(world: World, kept: Life) -> None:
    world.file.unlink()
    assert [] == watched(world, kept)
    append(world.copy, more := lines(100, 3))

    assert [len(more)] == [sizes(read) for read in watched(world, kept)]
    assert 1 == len(world.rows)


@pytest.mark.parametrize("count", [3, 100], ids=["short", "long"])
def test_of_a_copy_nothing_is_read_again_when_its_original_is_cut_beyond_its_end(
    world: World, count: int
) -> None:
    """All of it was settled: that no anchor of the original stands there is no matter."""
    append(world.file, lines(0, count))
    life = world.restart()
    watched(world, life, 1)
    shutil.copyfile(world.file, world.copy)
    watched(world, life)
    append(world.file, lines(count, 700))
    watched(world, life)
    cut(world.file, lines(5000, 1))
    life.sources.hint(FILE)
    life.read()
    reads = watched(world, life)
    append(world.copy, more := lines(9000, 1))
    reads += watched(world, life)

    assert [sizes(read) for read in reads if read.path == COPY] == [len(more)]


def test_a_copy_that_was_kept_for_long_still_waits_until_the_cut_is_noticed(
    world: World, kept: Life
) -> None:
    """The scan that meets the cut original looks at its copy first."""
    for _ in range(3):
        world.clock.advance(WAIT_S)
        kept.scan()
    cut(world.file, lines(500, 1))

    assert {FILE} == {read.path for read in watched(world, kept)}


def test_a_copy_of_a_copy_is_one(world: World, kept: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """What logrotate has copied is compressed or kept a second time, later."""
    monkeypatch.setattr("agent.core.continuation.SLACK_NS", 0)
    cut(world.file, lines(500, 10))
    watched(world, kept)
    world.clock.advance(60)
    shutil.copyfile(world.copy, world.copy.with_name("a.jsonl.2"))

    assert [] == watched(world, kept, 5)


def test_a_copy_of_what_nobody_has_read_yet_waits(world: World) -> None:
    """There is a backlog: nothing but what the original looks like is known of it."""
    append(world.file, lines(0, 100))
    life = world.restart()
    life.sources.apply(life.scanner.scan())
    assert life.sources.next() is not None  # it is open, and its turn is not used
    shutil.copyfile(world.file, world.copy)
    for _ in range(3):
        life.sources.apply(life.scanner.scan())
        while life.sources._openings:
            life.sources.next()

    assert [FILE] == [followed.checkpoint.path for followed in life.sources.opened]


class Counting(Descriptor):
    """Knows how much was read of all files."""

    read_bytes = 0

    def pread(self, length: int, offset: int) -> bytes:
        got = super().pread(length, offset)
        Counting.read_bytes += len(got)
        return got


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr("agent.opener.Descriptor", Counting)
    Counting.read_bytes = 0
    return Counting


def test_a_huge_copy_is_compared_in_slices_between_which_others_are_read(
    world: World, counting: type[Counting]
) -> None:
    """Everything is read in one thread: it must not be gone for seconds."""
    append(world.file, lines(0, 200_000, filler=80))
    life = world.restart()
    while not life.sources.idle or life.read():
        life.read()
    life.settle()
    shutil.copyfile(world.file, world.copy)
    life.scan()
    world.clock.advance(STILL_S)
    other = world.file.with_name("other.jsonl")
    append(other, lines(0, 1))
    life.sources.apply(life.scanner.scan())
    read = 0
    for n in range(20):
        before = counting.read_bytes
        followed = life.sources.next()
        assert counting.read_bytes - before <= 2 * SLICE_BYTES + (600 << 10)
        if followed is not None:
            assert followed.harvester is not None
            read += followed.harvester.read() is not None
            append(other, lines(n, 1))
            life.sources.hint("acme/other.jsonl")

    assert life.registry.strangers.studies.busy
    assert read >= 18
    while life.registry.strangers.studies.busy:
        life.sources.next()
    assert COPY not in {followed.checkpoint.path for followed in life.sources.opened}


def test_what_was_compared_once_is_not_read_again(world: World, counting: type[Counting]) -> None:
    append(world.file, lines(0, 20_000))
    life = world.restart()
    watched(world, life, 1)
    shutil.copyfile(world.file, world.copy)
    watched(world, life)
    before = counting.read_bytes
    assert before > 2 * world.file.stat().st_size
    assert [] == watched(world, life, 20)

    assert before == counting.read_bytes


def test_files_that_begin_alike_are_each_read_in_full(world: World) -> None:
    """The same first kilobyte, names that are related, and no copies; ten bytes prove nothing."""
    header = b"h" * 1500 + b"\n"
    for n in range(150):
        append(world.file.with_name(f"a-{n}.jsonl"), header + lines(n, 3))
        append(world.file.with_name(f"t-{n}.jsonl"), b'{"n":1234}\n')
    life = world.restart()
    life.sources.opened._descriptors_max = 1000
    reads = [read for _ in range(5) for read in watched(world, life)]

    assert 300 == len({read.path for read in reads}) == len(reads)
    assert {0} == {read.start for read in reads}


def test_a_copy_whose_original_cannot_be_opened_is_read(world: World) -> None:
    """What cannot be proven is sent twice."""
    append(world.file, lines(0, 100))
    life = world.restart()
    watched(world, life, 1)
    shutil.copyfile(world.file, world.copy)
    life.scan()
    world.clock.advance(STILL_S)
    away = world.root / "away"
    world.file.rename(away)
    world.file.symlink_to(away)
    life.sources._hinted(COPY)

    assert [Read(COPY, 0, 0, world.copy.stat().st_size)] == life.read()
