"""How records are compressed, by the name in the configuration and by Kafka's number for it.

A module is imported when its codec is used for the first time, so that nobody pays for the
others. What was sealed with one codec can be opened whatever is configured now: the spool
outlives a change.

Numbers: https://kafka.apache.org/documentation/#recordbatch, attributes, bits 0 to 2.
"""

import gzip
import struct
from collections.abc import Callable
from importlib import import_module
from itertools import chain
from types import ModuleType
from typing import NamedTuple

from isal import igzip

from agent.errors import ConfigError

Compress = Callable[[bytes], bytes]

COMPRESSION = "kafka.compression"
LEVEL_DEFAULT = 1
"""Of every codec that has levels. Kafka's own defaults (6 and 9) cost 5 to 10 times as much."""

XERIAL = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
"""What snappy-java's streams begin with; then blocks, each behind its length as 32 bits."""
SNAPPY_BLOCK_BYTES = 64 << 10  # as far as snappy looks back

_LENGTH = struct.Struct(">i")


class Codec(NamedTuple):
    """How a records section is compressed; ``number`` is Kafka's attribute for it."""

    number: int
    compress: Compress


def codec(name: str, level: int | None) -> Codec:
    """Return the codec ``name``; ``config.checks`` has the levels.

    Raises:
        ConfigError: Its extra is not installed.
    """
    number = NUMBERS[name]
    return Codec(number, _MAKERS[number](LEVEL_DEFAULT if level is None else level))


def decompress(number: int, packed: bytes) -> bytes:
    """Open what ``Codec.compress`` made, our own: its size is trusted.

    Raises:
        ConfigError: The extra of its codec is not installed any more.
    """
    return _DECOMPRESS[number](packed)


# ---- gzip


def _gzip(level: int) -> Compress:
    """isal up to its highest level; beyond, libdeflate is smaller at half of zlib's cost."""
    if level <= igzip._COMPRESS_LEVEL_BEST:  # noqa: SLF001 - 3; beyond it isal has no level
        return lambda section: igzip.compress(section, level, mtime=0)
    try:
        deflate = import_module("deflate")
    except ImportError:
        return lambda section: gzip.compress(section, level, mtime=0)
    return lambda section: bytes(deflate.gzip_compress(section, level))


# ---- snappy, in the framing of the Java client: some consumers know no other


def _snappy(_: int) -> Compress:
    snappy = _cramjam("snappy")

    def compress(section: bytes) -> bytes:
        view = memoryview(section)
        cuts = range(0, len(section), SNAPPY_BLOCK_BYTES)
        blocks = [bytes(snappy.compress_raw(view[at : at + SNAPPY_BLOCK_BYTES])) for at in cuts]
        return XERIAL + b"".join(chain.from_iterable((_LENGTH.pack(len(b)), b) for b in blocks))

    return compress


def _from_snappy(packed: bytes) -> bytes:
    snappy = _cramjam("snappy")
    view, at, blocks = memoryview(packed), len(XERIAL), []
    while at < len(packed):
        begin = at + _LENGTH.size
        at = begin + _LENGTH.unpack_from(packed, at)[0]
        blocks.append(bytes(snappy.decompress_raw(view[begin:at])))
    return b"".join(blocks)


# ---- lz4


def _lz4(level: int) -> Compress:
    """Kafka reads frames of independent blocks only (KIP-57)."""
    lz4 = _cramjam("lz4")

    def compress(section: bytes) -> bytes:
        frame = lz4.Compressor(level=level, content_checksum=False, block_linked=False)
        frame.compress(section)
        return bytes(frame.finish())

    return compress


# ---- zstd


def _zstd(level: int) -> Compress:
    zstd = _zstd_module()
    return lambda section: bytes(zstd.compress(section, level))


# ---- the modules


def _zstd_module() -> ModuleType:
    try:
        return import_module("compression.zstd")  # from 3.14 on
    except ImportError:
        return import_module("backports.zstd")


def _cramjam(name: str) -> ModuleType:
    try:
        found: ModuleType = getattr(import_module("cramjam"), name)
    except ImportError:
        needed = f'{name} needs the package cramjam; install the extra "{name}"'
        raise ConfigError(COMPRESSION, needed) from None
    return found


NUMBERS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_MAKERS: tuple[Callable[[int], Compress], ...] = (lambda _: bytes, _gzip, _snappy, _lz4, _zstd)
_DECOMPRESS: tuple[Compress, ...] = (
    bytes,
    igzip.decompress,
    _from_snappy,
    lambda packed: bytes(_cramjam("lz4").decompress(packed)),
    lambda packed: bytes(_zstd_module().decompress(packed)),
)
