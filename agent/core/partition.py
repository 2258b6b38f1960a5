"""Which partition a key belongs to, as other clients of the same topic compute it. Pure.

crc32     librdkafka's ``consistent``: a key without bytes goes where CRC-32 of nothing goes; isal
          takes a third of zlib's time for it
murmur2   the default of the Java client, librdkafka's ``murmur2``, for records with a key
"""

from collections.abc import Sequence
from struct import Struct, unpack_from
from typing import Final

from isal.isal_zlib import crc32

_MASK: Final = 0xFFFFFFFF
_MULTIPLIER: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_TAIL_MAX: Final = 256
_words: Final = [Struct(f"<{count}I").unpack_from for count in range(_TAIL_MAX // 4 + 1)]


def crc32_partition(key: bytes | None, partitions: int) -> int:
    """Return a number in ``[0, partitions)``; no key counts as an empty one."""
    return crc32(key or b"") % partitions


def crc32_partitions(keys: Sequence[bytes], partitions: int) -> list[int]:
    """Return what ``crc32_partition`` does of each."""
    return [crc32(key) % partitions for key in keys]


def murmur2_partition(key: bytes | None, partitions: int) -> int:
    """Return a number in ``[0, partitions)``; no key counts as an empty one.

    Java clears the sign bit (``Utils.toPositive``) before it takes the remainder.
    """
    return (murmur2(key or b"") & 0x7FFFFFFF) % partitions


def murmur2_partitions(keys: Sequence[bytes], partitions: int) -> list[int]:
    """Return what ``murmur2_partition`` does of each."""
    return [murmur2_partition(key, partitions) for key in keys]


def murmur2(key: bytes) -> int:
    """Return the hash of ``org.apache.kafka.common.utils.Utils.murmur2`` as unsigned 32 bits."""
    length = len(key)
    digest = _SEED ^ length
    tail = length & ~3
    for word in _words[tail >> 2](key) if tail <= _TAIL_MAX else unpack_from(f"<{tail >> 2}I", key):
        mixed = word * _MULTIPLIER & _MASK
        digest = digest * _MULTIPLIER & _MASK ^ (mixed ^ mixed >> 24) * _MULTIPLIER & _MASK
    if tail != length:
        digest = (digest ^ int.from_bytes(key[tail:], "little")) * _MULTIPLIER & _MASK
    digest = (digest ^ digest >> 13) * _MULTIPLIER & _MASK
    return digest ^ digest >> 15
