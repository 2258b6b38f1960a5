"""Each codec: what it makes is what Kafka's clients read, and it opens what it made."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import cramjam
import pytest
from aiokafka import codec as theirs
from hypothesis import given
from hypothesis import strategies as st

from agent import codecs
from agent.config.checks import LEVELS
from agent.errors import ConfigError

READ_BY_AIOKAFKA = {
    "none": bytes,
    "gzip": theirs.gzip_decode,
    "snappy": theirs.snappy_decode,
    "lz4": theirs.lz4_decode,
    "zstd": theirs.zstd_decode,
}
ALL = [(name, level) for name in READ_BY_AIOKAFKA for level in (None, *LEVELS.get(name, ()))]
SECTION = st.binary(min_size=1, max_size=2000).flatmap(
    lambda text: st.integers(1, 200).map(lambda times: text * times)
)
"""Up to 400 kB: several blocks of snappy and lz4, of repeated and of random bytes."""


@contextmanager
def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> Iterator[None]:
    """Let ``modules`` be what is not installed."""
    with monkeypatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module, None)
        yield


@given(SECTION, st.sampled_from([case for case in ALL if case[1] is None]))
def test_what_was_compressed_is_opened_again_by_us_and_by_a_client(
    section: bytes, case: tuple[str, int | None]
) -> None:
    name, level = case
    made = codecs.codec(name, level)

    packed = made.compress(section)

    assert section == codecs.decompress(made.number, packed)
    assert section == READ_BY_AIOKAFKA[name](packed)


@pytest.mark.parametrize(("name", "level"), ALL)
def test_every_level_that_the_configuration_allows_works(name: str, level: int | None) -> None:
    section = b"".join(b"%d words and words " % n for n in range(10_000))

    made = codecs.codec(name, level)
    packed = made.compress(section)

    assert isinstance(packed, bytes), "a payload is stored and compared"
    assert packed == made.compress(section), "the same records are the same bytes"
    assert section == codecs.decompress(made.number, packed)
    assert section == READ_BY_AIOKAFKA[name](packed)
    assert name == "none" or level == 0 or len(packed) < len(section) / 2


def test_the_numbers_are_kafkas() -> None:
    assert {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4} == codecs.NUMBERS


def test_gzip_is_one_member_without_a_time_whoever_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """isal, libdeflate, and zlib where that is not installed."""
    made = [codecs.codec("gzip", level).compress(b"words " * 1000) for level in (1, 6)]
    with without(monkeypatch, "deflate"):
        made.append(codecs.codec("gzip", 6).compress(b"words " * 1000))

    for packed in made:
        assert b"\x1f\x8b\x08\x00\0\0\0\0" == packed[:8]
        whole = zlib.decompressobj(wbits=31)
        assert (b"words " * 1000, True, b"") == (
            whole.decompress(packed),
            whole.eof,
            whole.unused_data,
        )


def test_snappy_is_framed_as_the_java_client_does() -> None:
    """Byte by byte from SnappyOutputStream of snappy-java: a consumer may know no other way."""
    section = bytes(range(256)) * 300  # more than one block

    packed = codecs.codec("snappy", None).compress(section)

    assert bytes.fromhex("82534e4150505900 00000001 00000001") == packed[:16]
    at, read = 16, []
    while at < len(packed):
        (length,) = struct.unpack_from(">i", packed, at)
        read.append(bytes(cramjam.snappy.decompress_raw(packed[at + 4 : at + 4 + length])))
        at += 4 + length
    assert at == len(packed)
    assert section == b"".join(read)
    assert [65_536, len(section) - 65_536] == [len(block) for block in read]


def test_lz4_is_a_frame_that_kafka_reads() -> None:
    """Independent blocks, version 1: KafkaLZ4BlockInputStream refuses others."""
    packed = codecs.codec("lz4", None).compress(b"words " * 1000)

    assert bytes.fromhex("04224d18") == packed[:4]
    assert 1 == packed[4] >> 6, "the version"
    assert packed[4] >> 5 & 1, "independent blocks"
    assert not packed[4] & 0b11, "neither a dictionary nor a reserved bit"


def test_zstd_needs_no_large_window() -> None:
    """At most 8 MiB, what every decoder has: RFC 8878, 3.1.1.1.2."""
    section = bytes(1 << 24)
    packed = codecs.codec("zstd", 19).compress(section)
    assert packed[4] >> 5 & 1 == 0, "no single segment, so it says its window"
    assert 1 << (10 + (packed[5] >> 3)) <= 8 << 20


@pytest.mark.parametrize("name", ["lz4", "snappy"])
def test_a_missing_extra_is_a_mistake_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where the spool holds what was compressed when it was installed."""
    made = codecs.codec(name, None)
    packed = made.compress(b"words")
    with without(monkeypatch, "cramjam"):
        for attempt in (
            lambda: codecs.codec(name, None),
            lambda: codecs.decompress(made.number, packed),
        ):
            with pytest.raises(ConfigError) as raised:
                attempt()
            assert (
                f'kafka.compression: {name} needs the package cramjam; install the extra "{name}"'
                == str(raised.value)
            )


def test_only_what_is_configured_is_imported() -> None:
    """The default needs none of them. aiokafka imports cramjam where it is installed: not here."""
    modules = ["cramjam", "deflate", "backports.zstd", "compression.zstd"]
    code = (
        "import sys; from agent import codecs; codecs.codec('gzip', None); "
        f"print([name for name in {modules} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)

    assert b"[]" == done.stdout.strip()
