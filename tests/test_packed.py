"""Compressed files: whose content they hold, over real files and restarts."""

import gzip
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from backports import zstd

from agent.core.continuation import STILL_S, WAIT_S
from agent.core.identity import source_id
from agent.opener import Descriptor, birth_of
from agent.packed import OPEN_MAX
from agent.studies import SLICE_BYTES
from agent.unpacking import Unpacked
from tests.patience import WITHIN_S
from tests.test_registry import FILE, World, append, cut, lines, sizes
from tests.test_strangers import watched

Pack = Callable[[Path], Path]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(World(tmp_path)) as made:
        yield made


@pytest.fixture(params=["gzip", "zstd"])
def pack(request: pytest.FixtureRequest) -> Pack:
    """Compress as the tool does: the original is deleted once the packed file is whole."""

    def packed(path: Path) -> Path:
        tool = ["gzip", "-q"] if request.param == "gzip" else ["zstd", "-q", "--rm"]
        subprocess.run([*tool, path], check=True)
        (made,) = [p for p in path.parent.iterdir() if p.name.startswith(f"{path.name}.")]
        return made

    return packed


def noise(first: int, count: int) -> bytes:
    """Return lines that cannot be packed to much less."""
    draw = random.Random(first)  # noqa: S311  to be repeated
    return b"".join(b'{"n":%d,"x":"%x"}\n' % (n, draw.getrandbits(400)) for n in range(count))


def rotated(world: World) -> Path:
    to = world.file.with_name("a.jsonl.1")
    world.file.rename(to)
    return to


def no_unpacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unpacked, "_more", lambda _: pytest.fail("unpacked"))


def test_what_was_settled_before_it_was_packed_is_not_sent_again(
    world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(world.file, lines(0, 1000))
    life = world.restart()
    watched(world, life)
    to = rotated(world)
    append(world.file, lines(1000, 5))
    watched(world, life)
    pack(to)
    assert [] == watched(world, life, 5)
    no_unpacking(monkeypatch)
    life = world.restart()

    assert [] == watched(world, life, 5)
    assert 2 == life.sources._metrics.files.labels("idle")._value.get() + len(life.sources.opened)


def test_an_unread_tail_is_shipped_with_the_ids_of_the_original(
    world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed while the agent was down: its offsets are those of what is packed."""
    append(world.file, lines(0, 1000))
    life = world.restart()
    watched(world, life)
    (row,) = world.rows.values()
    append(world.file, lines(1000, 50_000))
    end = world.file.stat().st_size
    pack(rotated(world))
    life = world.restart()
    reads = watched(world, life, 3)
    reads += watched(world, life, 3)

    assert (row.watermark, end) == (reads[0].start, reads[-1].end)
    assert end - row.watermark == sizes(*reads)
    assert end == world.rows[row.source_id, 0].watermark
    no_unpacking(monkeypatch)
    assert [] == watched(world, world.restart(), 4)


def test_what_its_descriptor_still_has_is_not_read_of_the_packed_file(
    world: World, pack: Pack
) -> None:
    """The agent is behind: what it read is settled, and not all was read when the original went."""
    append(world.file, lines(0, 5000))
    end = world.file.stat().st_size
    life = world.restart()
    reads = life.scan(1)
    life.settle()
    pack(rotated(world))
    assert 0 < reads[0].end < end
    reads += life.scan()
    reads += watched(world, life, 6)

    assert [reads[0].end, end] == [read.end for read in reads]


def test_it_waits_for_its_original_that_is_still_open_however_long(
    world: World, pack: Pack
) -> None:
    """A Kafka that is away, or a limit, may hold up both for hours."""
    append(world.file, lines(0, 5000))
    end = world.file.stat().st_size
    life = world.restart()
    reads = life.scan(1)
    pack(rotated(world))
    for _ in range(10):
        reads += life.scan()
        world.clock.advance(WAIT_S)
    life.settle()
    reads += watched(world, life, 6)

    assert [reads[0].end, end] == [read.end for read in reads]


def test_a_tail_deep_in_the_stream_is_gone_to_in_slices(
    world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some 20 turns, and another file is read in each of them."""
    append(world.file, lines(0, 150_000, filler=80))
    life = world.restart()
    watched(world, life)
    append(world.file, lines(900_000, 3))
    end = world.file.stat().st_size
    pack(rotated(world))
    other = world.file.with_name("other.jsonl")
    append(other, lines(0, 1))
    unpacked, more = 0, Unpacked._more

    def counting(file: Unpacked) -> bytes:
        nonlocal unpacked
        got = more(file)
        unpacked += len(got)
        return got

    monkeypatch.setattr(Unpacked, "_more", counting)
    life = world.restart()
    studies = life.registry.strangers.studies
    read: list[str] = []
    turns = 0
    while "acme/a.jsonl.1" not in {path.partition(".gz")[0].partition(".zst")[0] for path in read}:
        if not studies.busy:
            life.sources.apply(life.scanner.scan())
        before = unpacked
        followed = life.sources.next()
        assert unpacked - before <= 2 * SLICE_BYTES
        turns += studies.busy
        if followed is not None:
            assert followed.harvester is not None
            if followed.harvester.read() is not None:
                read.append(followed.checkpoint.path)
        append(other, lines(turns, 1))
        life.sources.hint("acme/other.jsonl")

    assert turns >= 20
    assert read.count("acme/other.jsonl") >= turns
    assert unpacked < 3 * end


def test_an_unknown_one_is_read_in_full_once(
    world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(world.file, lines(0, 50_000))
    end = world.file.stat().st_size
    packed = pack(world.file)
    life = world.restart()
    reads = watched(world, life)
    raw = packed.stat().st_size

    assert (0, end, end) == (reads[0].start, reads[-1].end, sizes(*reads))
    assert {end, raw} == {row.watermark for row in world.rows.values()}
    no_unpacking(monkeypatch)
    assert [] == watched(world, life, 3)
    assert [] == watched(world, world.restart(), 3)
    assert {None} == {row.gone_at for row in world.rows.values()}


def test_a_crash_before_the_end_goes_on_where_it_was(
    world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(world.file, lines(0, 50_000))
    end = world.file.stat().st_size
    pack(world.file)
    life = world.restart()
    life.sources.apply(life.scanner.scan())
    while not life.sources.opened:
        life.sources.next()
    (followed,) = life.sources.opened
    life.sources.turns.add(followed)
    monkeypatch.setattr("tests.test_registry.TURNS_MAX", 1)
    reads = life.read()
    monkeypatch.undo()
    life.settle()
    reads += watched(world, world.restart())

    assert end == sizes(*reads)
    assert reads[0].end == reads[1].start


@pytest.mark.parametrize("renamed", [True, False])
def test_it_may_be_rotated_on_or_deleted(world: World, pack: Pack, renamed: bool) -> None:
    append(world.file, lines(0, 1000))
    packed = pack(world.file)
    life = world.restart()
    watched(world, life)
    if renamed:
        packed.rename(packed.with_name(f"a.jsonl.2{packed.suffix}"))
    else:
        packed.unlink()
    reads = watched(world, life)
    reads += watched(world, world.restart())

    assert [] == reads
    assert (not renamed) == all(row.gone_at for row in world.rows.values())


def test_several_members_are_one_content(world: World) -> None:
    packed = world.file.with_name("a.jsonl.1.gz")
    packed.write_bytes(b"".join(gzip.compress(lines(n * 100, 100)) for n in range(5)))

    assert len(lines(0, 500)) == sizes(*watched(world, world.restart()))


def test_a_member_that_is_added_is_read(world: World) -> None:
    packed = world.file.with_name("a.jsonl.1.gz")
    append(packed, gzip.compress(lines(0, 100)))
    life = world.restart()
    watched(world, life)
    append(packed, gzip.compress(more := lines(100, 100)))

    assert len(more) == sizes(*watched(world, life))


def test_a_member_that_is_added_while_the_agent_is_down_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not what it was when all of it was settled, but it is there all the same."""
    packed = world.file.with_name("a.jsonl.1.gz")
    append(packed, gzip.compress(lines(0, 100)))
    watched(world, world.restart())
    append(packed, gzip.compress(more := lines(100, 100)))
    life = world.restart()

    assert len(more) == sizes(*watched(world, life, 1))
    no_unpacking(monkeypatch)
    assert [] == watched(world, life, 5)
    assert {None} == {row.gone_at for row in world.rows.values()}
    assert 1 == life.sources._metrics.files.labels("idle")._value.get()
    assert [] == watched(world, world.restart())


@pytest.mark.parametrize("seen", [True, False])
def test_a_member_that_is_added_while_the_others_are_in_flight_is_read(
    world: World, seen: bool
) -> None:
    """What was settled is not all there is by then."""
    packed = world.file.with_name("a.jsonl.1.gz")
    append(packed, gzip.compress(first := lines(0, 100)))
    life = world.restart()
    assert len(first) == sizes(*life.scan())
    append(packed, gzip.compress(more := lines(100, 100)))
    if seen:
        life.scan()
    life.settle()

    assert len(more) == sizes(*watched(world, life))
    assert [] == watched(world, world.restart())


def test_one_that_is_being_written_waits(world: World) -> None:
    """And is nobody's while it grows, however slowly."""
    content = gzip.compress(noise(0, 5000))
    packed = world.file.with_name("a.jsonl.1.gz")
    life = world.restart()
    for at in range(0, len(content) - 10_000, 10_000):
        append(packed, content[at : at + 10_000])
        assert [] == watched(world, life, 2)
    append(packed, content[packed.stat().st_size :])

    assert len(noise(0, 5000)) == sizes(*watched(world, life))


@pytest.mark.parametrize("damage", ["cut", "corrupt"])
def test_a_damaged_one_gives_the_lines_before_the_damage(
    world: World, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = noise(0, 5000)
    packed = bytearray(gzip.compress(content))
    if damage == "cut":
        del packed[-5000:]
    else:
        packed[-6:-4] = b"??"  # the checksum
    world.file.with_name("a.jsonl.1.gz").write_bytes(packed)
    life = world.restart()
    assert [] == watched(world, life, 5)
    world.clock.advance(WAIT_S)
    reads = watched(world, life, 5)

    assert sizes(*reads) > len(content) * 0.95
    assert content[: reads[-1].end].endswith(b"\n")
    if damage == "corrupt":
        assert len(content) == sizes(*reads)
    assert ["file.refused"] == [record.getMessage() for record in caplog.records]
    assert "corrupt" in str(vars(caplog.records[0]))
    assert 1 == life.sources._metrics.files.labels("unreadable")._value.get()


def test_what_is_no_compressed_file_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    append(world.file.with_name("a.jsonl.gz"), b"no such thing as gzip here\n")
    life = world.restart()

    assert [] == watched(world, life)
    assert ["file.refused"] == [record.getMessage() for record in caplog.records]


def test_one_whose_window_is_too_large_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It would cost more memory than a decoder may have, for each file that is open."""
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.window_log: 27, parameter.checksum_flag: 1}
    packed = zstd.compress(noise(0, 150_000), options=options)
    world.file.with_name("a.jsonl.1.zst").write_bytes(packed)
    life = world.restart()

    assert [] == watched(world, life, 4)
    assert ["file.refused"] == [record.getMessage() for record in caplog.records]
    assert "8 MiB" in str(vars(caplog.records[0]))


def test_an_empty_one_is_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.file.with_name("a.jsonl.1.gz").write_bytes(b"")
    world.file.with_name("b.jsonl.1.gz").write_bytes(gzip.compress(b""))
    world.file.with_name("c.jsonl.1.zst").write_bytes(zstd.compress(b""))
    life = world.restart()

    for _ in range(3):
        world.clock.advance(WAIT_S)
        assert [] == watched(world, life)
    assert [] == caplog.records
    assert 2 == len(world.rows)


def test_one_that_is_deleted_while_it_is_read_is_read_to_its_end(world: World, pack: Pack) -> None:
    append(world.file, lines(0, 20_000))
    end = world.file.stat().st_size
    packed = pack(world.file)
    life = world.restart()
    life.sources.apply(life.scanner.scan())
    while not life.sources.opened:
        life.sources.next()
    packed.unlink()
    reads = [read for _ in range(4) for read in watched(world, life)]

    assert end == sizes(*reads)
    assert [] == [*life.sources.opened]


def test_beside_a_growing_original_it_is_unpacked_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = world.restart()
    for n in range(12):
        append(world.file, lines(250 * n, 250))
        watched(world, life, 1)
    subprocess.run(["gzip", "-k", world.file], check=True)
    assert [] == watched(world, life, 3)
    no_unpacking(monkeypatch)
    for n in range(20):
        append(world.file, lines(3000 + 100 * n, 100))
        assert {FILE} == {read.path for read in watched(world, life, 1)}


def test_one_kept_beside_its_original_is_not_read(world: World) -> None:
    """As a copy is not: the lines are the original's, and what is unread of it is shipped once."""
    append(world.file, lines(0, 3000))
    life = world.restart()
    watched(world, life)
    subprocess.run(["gzip", "-k", world.file], check=True)
    assert [] == watched(world, life, 40)
    append(world.file, more := lines(3000, 5))
    assert [(FILE, len(more))] == [(r.path, r.end - r.start) for r in watched(world, life)]
    world.file.unlink()

    assert [] == watched(world, life, 5)


def test_a_copy_of_a_packed_file_is_not_read(world: World) -> None:
    packed = world.file.with_name("a.jsonl.1.gz")
    packed.write_bytes(gzip.compress(lines(0, 3000)))
    life = world.restart()
    watched(world, life)
    packed.with_name("a.jsonl.2.gz").write_bytes(packed.read_bytes())
    assert [] == watched(world, life, 40)
    assert [] == watched(world, world.restart(), 5)


def test_what_copy_truncate_left_may_be_packed_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with delaycompress: the original's generation is gone for long when it is packed."""
    monkeypatch.setattr("agent.core.continuation.SLACK_NS", 0)
    append(world.file, lines(0, 1000))
    life = world.restart()
    watched(world, life)
    world.copy.write_bytes(world.file.read_bytes())
    cut(world.file, lines(5000, 10))
    watched(world, life)
    subprocess.run(["gzip", world.copy], check=True)

    assert [] == watched(world, life, 5)


def test_what_was_unpacked_again_is_not_read(world: World, pack: Pack) -> None:
    append(world.file, lines(0, 3000))
    packed = pack(world.file)
    life = world.restart()
    watched(world, life)
    subprocess.run(
        ["gzip" if packed.suffix == ".gz" else "zstd", "-qd", packed], check=True, timeout=WITHIN_S
    )
    packed.unlink(missing_ok=True)

    assert [] == watched(world, life, 5)


def test_few_are_open_at_a_time(world: World) -> None:
    """Each holds a decoder; the others wait, and are read all the same."""
    total = 0
    for n in range(30):
        content = lines(n * 10_000, 3000 + n)
        world.file.with_name(f"{n}x.jsonl.gz").write_bytes(gzip.compress(content))
        total += len(content)
    life = world.restart()
    reads = []
    for _ in range(40):
        reads += life.scan()
        assert len(life.sources.opened) <= OPEN_MAX
        life.settle()

    assert total == sizes(*reads)


def test_a_client_with_bombs_keeps_no_other_one_from_being_unpacked(world: World) -> None:
    """Each takes its time; twenty of them together would take everybody's."""
    bomb = gzip.compress(bytes(100 << 20), 1)
    for n in range(20):
        world.file.with_name(f"a{n}.jsonl.gz").write_bytes(bomb)
    life = world.restart()
    life.scan(10)
    other = world.root / "zeta/b.jsonl.gz"
    other.parent.mkdir()
    other.write_bytes(gzip.compress(lines(0, 100)))
    reads = life.scan(60)

    assert ["zeta/b.jsonl.gz"] == [read.path for read in reads]


def test_a_client_that_is_slowed_leaves_a_decoder_for_others(world: World) -> None:
    """Its own are open for as long as it has to wait."""
    for n in range(2 * OPEN_MAX):
        content = lines(n * 10_000, 3000 + n)
        world.file.with_name(f"a{n}.jsonl.gz").write_bytes(gzip.compress(content))
    life = world.restart()
    life.scan(30)  # nothing is settled: all that are open stay so
    other = world.root / "zeta/b.jsonl.gz"
    other.parent.mkdir()
    other.write_bytes(gzip.compress(lines(0, 100)))
    reads = life.scan(30)

    assert "zeta/b.jsonl.gz" in {read.path for read in reads}


def test_with_the_start_at_the_end_it_is_passed_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(world.file, lines(0, 100))
    world.file.with_name("a.jsonl.1.gz").write_bytes(gzip.compress(lines(500, 100)))
    life = world.restart()
    life.sources._start_at_end = True
    no_unpacking(monkeypatch)

    assert [] == watched(world, life)
    assert [] == watched(world, world.restart())


def test_a_plain_file_that_is_called_packed_is_read_on(world: World) -> None:
    """A name proves nothing; its first bytes do."""
    append(world.file, lines(0, 100))
    life = world.restart()
    watched(world, life)
    to = world.file.with_name("a.jsonl.gz")
    world.file.rename(to)
    append(to, more := lines(100, 3))

    assert len(more) == sizes(*watched(world, life))
    append(to, lines(100, 3))
    assert len(more) == sizes(*watched(world, world.restart()))


def test_its_source_is_that_of_its_content(world: World) -> None:
    packed = world.file.with_name("a.jsonl.1.gz")
    packed.write_bytes(gzip.compress(lines(0, 100)))
    watched(world, world.restart())
    fd = os.open(packed, os.O_RDONLY)
    with closing(Unpacked(Descriptor(fd))) as content:
        assert {source_id(content.birth), source_id(birth_of(fd))} == {s for s, _ in world.rows}
    assert STILL_S < WAIT_S
