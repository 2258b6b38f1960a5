"""What had to be put by on this node: dead letters whose topic would not have them.

``spool.db`` beside the checkpoints, with ``synchronous=FULL``: what is committed here counts as
settled, so a power cut must not take it. Each row is a sealed batch with a CRC of its own.
"""

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from agent import sqlite
from agent.core.batch import Batch
from agent.errors import StoreError
from agent.telemetry import event

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS dead_letters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    partition INTEGER NOT NULL,
    count INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    first_ms INTEGER NOT NULL,
    max_ms INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    payload BLOB NOT NULL
)"""
_INSERT = (
    "INSERT INTO dead_letters (partition, count, codec, first_ms, max_ms, raw_bytes, crc, payload)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_OLDEST = (
    "SELECT seq, partition, count, codec, first_ms, max_ms, raw_bytes, crc, payload"
    " FROM dead_letters WHERE seq > ? ORDER BY seq LIMIT ?"
)


class Stored(NamedTuple):
    """A batch that is on disk. Its chunks were settled when it was put by."""

    seq: int
    batch: Batch


class Spool:
    """The open database. Every method blocks; one thread only. Raises ``StoreError``.

    Args:
        bytes_max: Of the payloads; ``room`` says whether there is any left.
    """

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        try:
            self._connection = _connect(path)
            self.records, self.bytes = _totals(self._connection)  # its pages are sound
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: {error}") from error

    def room(self) -> bool:
        return self.bytes < self._bytes_max

    def put(self, batches: list[Batch]) -> None:
        """Commit all of ``batches``, in order, or none."""
        rows = [
            (b.partition, b.count, b.codec, b.first_ms, b.max_ms, b.raw_bytes, crc32(b.payload),
             b.payload)
            for b in batches
        ]  # fmt: skip
        self._commit(_INSERT, rows)
        self.records += sum(b.count for b in batches)
        self.bytes += sum(len(b.payload) for b in batches)

    def oldest(self, after: int, limit: int) -> list[Stored]:
        """Return up to ``limit`` batches put by after row ``after``, the oldest first.

        A row that does not match its CRC is named in the log and dropped: nobody could read it.
        """
        found: list[Stored] = []
        damaged: list[Stored] = []
        try:
            rows = self._connection.execute(_OLDEST, (after, limit)).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"reading the spool: {error}") from error
        for seq, partition, count, codec, first_ms, max_ms, raw_bytes, crc, payload in rows:
            batch = Batch(
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
            whole = crc32(payload) == crc
            (found if whole else damaged).append(Stored(seq, batch))
        if damaged:
            lost = sum(stored.batch.count for stored in damaged)
            event(log, logging.ERROR, "spool.row_damaged", rows=len(damaged), lost_records=lost)
            self.drop(damaged)
        return found

    def drop(self, stored: list[Stored]) -> None:
        """Delete what arrived elsewhere."""
        self._commit("DELETE FROM dead_letters WHERE seq = ?", [(s.seq,) for s in stored])
        self.records -= sum(s.batch.count for s in stored)
        self.bytes -= sum(len(s.batch.payload) for s in stored)
        if not self.records:
            # A script runs it to its end; execute() would free a single page.
            self._connection.executescript("PRAGMA incremental_vacuum")

    def close(self) -> None:
        self._connection.close()

    def _commit(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            with self._connection:
                self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise StoreError(f"spool commit: {error}") from error


def _totals(connection: sqlite3.Connection) -> tuple[int, int]:
    records, length = connection.execute(
        "SELECT coalesce(sum(count), 0), coalesce(sum(length(payload)), 0) FROM dead_letters"
    ).fetchone()
    return int(records), int(length)


def _connect(path: Path) -> sqlite3.Connection:
    def prepare(connection: sqlite3.Connection) -> sqlite3.Connection:
        connection.execute(_SCHEMA)
        return connection

    def damaged(detail: str) -> None:
        event(log, logging.ERROR, "spool.damaged", path=str(path), detail=detail,
              effect="put aside; its dead letters are not sent")  # fmt: skip

    return sqlite.opened(path, "FULL", prepare, damaged)
