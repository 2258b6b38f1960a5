"""A row of the spool: its columns, its checksum, and the batch in it.

SQLite sees no flipped bit inside of a value: each row has a CRC of its own, over all of it and its
queue's name, since a page that strays from one queue into the other has sound rows.
"""

from typing import Any, NamedTuple
from zlib import crc32

from agent.core.batch import Batch

COLUMNS = "seq, partition, count, codec, first_ms, max_ms, raw_bytes, crc, payload"
TABLE = """
CREATE TABLE IF NOT EXISTS {table} (
    seq INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    count INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    first_ms INTEGER NOT NULL,
    max_ms INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    payload BLOB NOT NULL
)"""
SANE = "count > 0 AND typeof(payload) = 'blob'" + "".join(
    f" AND typeof({name}) = 'integer'" for name in COLUMNS.split(", ")[:-1]
)
"""What is true of a row that can be read at all."""
GIVEN_UP = -1
"""The ``codec`` of a range that was dropped or lost."""

Row = tuple[Any, ...]


class Stored(NamedTuple):
    """A row: a batch, or None where a range was dropped or lost."""

    seq: int
    records: int
    batch: Batch | None


def row_of(queue: str, seq: int, batch: Batch) -> Row:
    """Return the columns of ``batch`` where its first record is number ``seq``."""
    b = batch
    columns = seq, b.partition, b.count, b.codec, b.first_ms, b.max_ms, b.raw_bytes
    return (*columns, crc(queue, *columns, payload=b.payload), b.payload)


def range_row(queue: str, start: int, end: int) -> Row:
    """Return the columns of a range that was dropped or lost."""
    columns = start, -1, end - start, GIVEN_UP, 0, 0, 0
    return (*columns, crc(queue, *columns), b"")


def is_sound(queue: str, row: Row) -> bool:
    *columns, checksum, payload = row
    return bool(checksum == crc(queue, *columns, payload=payload))


def stored(queue: str, row: Row) -> Stored:
    """Return what ``row`` holds; a damaged one stands for a range that was lost."""
    seq, _, count, codec, *_ = row
    return Stored(seq, count, batch_of(row) if codec != GIVEN_UP and is_sound(queue, row) else None)


def batch_of(row: Row) -> Batch:
    _, partition, count, codec, first_ms, max_ms, raw_bytes, _, payload = row
    return Batch(
        partition=partition,
        count=count,
        payload=payload,
        codec=codec,
        first_ms=first_ms,
        max_ms=max_ms,
        raw_bytes=raw_bytes,
        opened_at_s=0.0,
        chunks=[],
    )


def crc(queue: str, *values: object, payload: bytes = b"") -> int:
    return crc32(payload, crc32(repr((queue, *values)).encode()))
