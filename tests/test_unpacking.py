"""What is packed in real files, read like a file."""

import gzip
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from agent.opener import Descriptor
from agent.unpacking import Unpacked, content_birth, file_birth, is_compressed, is_content

LINES = b"".join(b'{"n":%d}\n' % n for n in range(100_000))
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, 6),
    "zstd": lambda content: zstd.compress(content, 3),
    "gzip_members": lambda content: (
        b"".join(
            gzip.compress(content[at : at + 250_000]) for at in range(0, len(content), 250_000)
        )
        + bytes(512)
    ),
    "zstd_frames": lambda content: b"".join(
        zstd.compress(content[at : at + 250_000]) + b"\x51\x2a\x4d\x18\x02\0\0\0xx"
        for at in range(0, len(content), 250_000)
    ),
}


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[bytes], Unpacked]:
    def made(packed: bytes) -> Unpacked:
        path = tmp_path / "a.gz"
        path.write_bytes(packed)
        return Unpacked(Descriptor(os.open(path, os.O_RDONLY)))

    return made


@pytest.mark.parametrize("packer", PACKERS)
def test_any_range_is_what_was_packed(unpacked: Callable[[bytes], Unpacked], packer: str) -> None:
    """Forward, again from where it stood, the first bytes, and back beyond what is kept."""
    draw = random.Random(1)  # noqa: S311  to be repeated
    at = 0
    with_end = unpacked(PACKERS[packer](LINES))
    for _ in range(60):
        at = draw.choice([at, at + draw.randrange(300_000), 0, draw.randrange(len(LINES))])
        length = draw.choice([1, 64, 1024, 300_000])
        assert LINES[at : at + length] == with_end.pread(length, at)
    assert b"" == with_end.pread(10, len(LINES))
    assert ("complete", len(LINES)) == (with_end.end, with_end.reached)


def test_reading_on_unpacks_each_byte_once(unpacked: Callable[[bytes], Unpacked]) -> None:
    """Each read begins a little before the last one's end, and asks for the first bytes too."""
    file = unpacked(gzip.compress(LINES))
    read = 0
    packed = file.packed.pread

    def counting(length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return packed(length, offset)

    file.packed.pread = counting  # type: ignore[method-assign]
    for at in range(0, len(LINES), 100_000):
        file.pread(1024, 0)
        file.pread(100_064, max(0, at - 64))
        file.pread(200_000, max(0, at - 64))

    assert read < 2 * len(gzip.compress(LINES)) + (256 << 10)


def test_the_beginning_of_a_line_that_is_passed_over_is_kept(
    unpacked: Callable[[bytes], Unpacked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each oversize line would cost all that lies before it once more."""
    content = b"short\n" * 50_000 + b"x" * 3_000_000 + b"\nshort\n" * 1000
    file = unpacked(gzip.compress(content))
    start = 300_000
    for at in (0, start, *range(start + 262_144, len(content), 262_144)):
        file.pread(262_144 + 64, max(0, at - 64))
        if b"\nshort" in content[max(start, at) : at + 262_144]:
            monkeypatch.setattr(file, "start_over", lambda: pytest.fail("from the beginning"))
            assert b"x" * 65_000 == file.pread(65_000, start)
            return
    pytest.fail("the end of the line was never read")


@pytest.mark.parametrize("packer", ["gzip", "zstd", "gzip_members"])
def test_a_stream_that_is_cut_gives_what_is_there(
    unpacked: Callable[[bytes], Unpacked], packer: str
) -> None:
    packed = PACKERS[packer](LINES).rstrip(b"\0")
    file = unpacked(packed[: len(packed) // 2])
    got = file.pread(len(LINES), 0)

    assert LINES.startswith(got)
    assert len(got) > len(LINES) // 4
    assert "short" == file.end


def test_an_empty_file_is_not_whole(unpacked: Callable[[bytes], Unpacked]) -> None:
    """Something is about to write to it; what is packed may be empty."""
    file = unpacked(b"")
    assert (b"", "short") == (file.pread(9, 0), file.end)
    file = unpacked(gzip.compress(b""))
    assert (b"", "complete") == (file.pread(9, 0), file.end)
    file = unpacked(b"\x1f")
    assert (b"", "short") == (file.pread(9, 0), file.end)


@pytest.mark.parametrize("trailer", [True, False])
def test_a_damaged_stream_gives_every_byte_before_the_damage(
    unpacked: Callable[[bytes], Unpacked], trailer: bool
) -> None:
    """The decoder keeps what it unpacked in the call that fails: so it is asked byte by byte."""
    noise = random.Random(3)  # noqa: S311  to be repeated
    content = b"".join(b"%d\n" % noise.getrandbits(64) for _ in range(40_000))
    packed = bytearray(gzip.compress(content))
    at = len(packed) - 6 if trailer else len(packed) // 2
    packed[at : at + 4] = b"\xff\xff\xff\xff"
    file = unpacked(bytes(packed))
    first = file.pread(2 * len(content), 0)
    assert "corrupt" == file.end
    again = Unpacked(file.packed, damage_at=file.damage_at)
    more = again.pread(2 * len(content), 0)

    assert "corrupt" == again.end
    assert more.startswith(first)
    if trailer:
        assert content == more
    else:
        sound = next(n for n, (a, b) in enumerate(zip(content, more, strict=False)) if a != b)
        assert sound > len(content) * (at - 3000) // len(packed)


def test_garbage_behind_a_member_is_damage(unpacked: Callable[[bytes], Unpacked]) -> None:
    file = unpacked(gzip.compress(LINES) + b"garbage")

    assert (LINES, "corrupt") == (file.pread(len(LINES) + 9, 0), file.end)


def test_a_window_above_8_mib_is_refused(unpacked: Callable[[bytes], Unpacked]) -> None:
    parameter = zstd.CompressionParameter
    packed = zstd.compress(
        os.urandom(1 << 20) * 20, options={parameter.window_log: 27, parameter.checksum_flag: 1}
    )
    file = unpacked(packed)

    assert (b"", "window") == (file.pread(9, 0), file.end)


def test_a_bomb_costs_no_memory(unpacked: Callable[[bytes], Unpacked]) -> None:
    """A gigabyte of zeros in a megabyte."""
    file = unpacked(gzip.compress(bytes(1 << 24), 9) * 64)
    tracemalloc.start()
    try:
        for _ in file.forward(1 << 30):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert 1 << 30 == file.reached
    assert peak < 4 << 20


def test_a_content_is_another_source_than_its_file(unpacked: Callable[[bytes], Unpacked]) -> None:
    file = unpacked(gzip.compress(LINES))
    plain = file.packed.birth

    assert plain != file.birth == content_birth(plain)
    assert plain == file_birth(file.birth) == file_birth(plain)
    assert (True, False) == (is_content(file.birth), is_content(plain))


def test_only_what_is_packed_is_unpacked(unpacked: Callable[[bytes], Unpacked]) -> None:
    assert is_compressed("a.jsonl.gz", unpacked(gzip.compress(LINES)).packed)
    assert is_compressed("a.jsonl.zst", unpacked(zstd.compress(LINES)).packed)
    assert is_compressed("a.jsonl.gz", unpacked(b"").packed)
    assert not is_compressed("a.jsonl.gz", unpacked(LINES).packed)
    assert not is_compressed("a.jsonl.1", unpacked(gzip.compress(LINES)).packed)
