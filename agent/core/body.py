"""One Kafka record as bytes, but for what only its batch knows: its place in it and its time. Pure.

    body      key, value, headers                                      made here, once for each line
    record    length, attributes, time, offset, then the body          ``wire.Builder``

Format: https://kafka.apache.org/documentation/#record. Lengths are zigzag varints, of one byte up
to 63; there is room for 63 headers.
"""

from collections.abc import Sequence
from typing import Final

Headers = list[tuple[str, bytes]]

TABLE_MAX: Final = 4096
HEADERS_MAX: Final = 63
NULL: Final = b"\x01"
"""The length of what is not there: -1."""


def varint(number: int) -> bytes:
    """Return ``number``, at least ``-2**63``, as a zigzag varint."""
    left = number << 1 if number >= 0 else (-number << 1) - 1
    encoded = bytearray()
    while left > 0x7F:  # noqa: PLR2004  seven bits a byte
        encoded.append(left & 0x7F | 0x80)
        left >>= 7
    encoded.append(left)
    return bytes(encoded)


VARINTS: Final = tuple(map(varint, range(TABLE_MAX)))
"""Looking one up costs a tenth of making it."""


def varints(numbers: Sequence[int]) -> list[bytes]:
    """Return each of ``numbers``, none below 0, as ``varint`` does."""
    try:
        return [VARINTS[number] for number in numbers]
    except IndexError:
        return [*map(varint, numbers)]


def sized(content: bytes | None) -> bytes:
    """Return ``content`` behind its length."""
    return NULL if content is None else varint(len(content)) + content


def header(name: str, content: bytes) -> bytes:
    return sized(name.encode()) + sized(content)


def body(key: bytes | None, value: bytes, headers: Headers) -> bytes:
    """Return the body of a record. ``headers`` are ``HEADERS_MAX`` at most."""
    assert len(headers) <= HEADERS_MAX, "their count would take two bytes"
    count = VARINTS[len(headers)]
    return b"".join((sized(key), sized(value), count, *(header(*one) for one in headers)))


def with_header(made: bytes, more: bytes, unless: bytes, value_bytes_max: int) -> bytes:
    """Return ``made`` with one more ``header`` behind the others.

    As it is where its last header begins with ``unless``, both being of one length, or its value is
    longer than ``value_bytes_max``.
    """
    key_bytes, at = _length(made, 0)
    value_bytes, at = _length(made, at + max(key_bytes, 0))
    at += value_bytes
    if value_bytes > value_bytes_max or made[-len(more) :].startswith(unless):
        return made
    return b"%b%b%b%b" % (made[:at], VARINTS[(made[at] >> 1) + 1], made[at + 1 :], more)


def _length(encoded: bytes, at: int) -> tuple[int, int]:
    """Read a varint at ``at``; return it and where it ends."""
    number = shift = 0
    while encoded[at] & 0x80:
        number |= (encoded[at] & 0x7F) << shift
        shift += 7
        at += 1
    number |= encoded[at] << shift
    return number >> 1 if number & 1 == 0 else -(number >> 1) - 1, at + 1
