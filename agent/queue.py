"""One topic's rows in the spool: appended at the tail, read in order, deleted from the head.

A row is a sealed batch, its ``seq`` the number of its first record, counted from the first one ever
put by. So rows tile ``[head, end)``, and a hole in them is exactly what was lost. A range that was
dropped or lost, and counted, is a row without payload.
"""

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from agent.core.batch import Batch
from agent.core.policy import GIB
from agent.errors import StoreError
from agent.rows import (
    COLUMNS,
    GIVEN_UP,
    SANE,
    Row,
    Stored,
    batch_of,
    crc,
    is_sound,
    range_row,
    row_of,
    stored,
)
from agent.telemetry import event

log = logging.getLogger(__name__)

BYTES_SHARE = 0.05
"""Of the file system, where no limit is configured; at most 1 GiB."""

BOUNDS_TABLE = (
    'CREATE TABLE IF NOT EXISTS bounds (name TEXT PRIMARY KEY, head INT, "end" INT, crc INT)'
)
BOUNDS = 'name, head, "end", crc'
_SEQ_MAX = (1 << 63) - 1

Bounds = tuple[int, int]
"""The numbers of the first record that is spooled, and of the next one to be."""


class Limits(NamedTuple):
    """``bytes_max`` of the payloads; None: as ``BYTES_SHARE`` says."""

    bytes_max: int | None
    disk_free_min: float


class Census(NamedTuple):
    """``bytes`` are those of the payloads, compressed; times are the first and the last at which
    something was read from a file, in ms since the epoch."""

    records: int
    bytes: int
    rows: int
    oldest_ms: int | None
    newest_ms: int | None


@contextmanager
def _of_the_disk() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"spool: {error}") from error


class Queue:
    """The rows of one topic. Every method blocks; one thread only. Raises ``StoreError``.

    Opening it raises ``sqlite3.Error``: of damage there may be something to save.

    Attributes:
        lost: Records that were put by and cannot be read any more, counted since it was opened.
    """

    def __init__(
        self, connection: sqlite3.Connection, name: str, at_least: Bounds, directory: Path
    ) -> None:
        self.name = name
        self._connection = connection
        self._table = table_of(name)
        self._directory = directory
        self.head, self.end = self._bounds(at_least)
        self.lost = self._tile()
        self.records, self.bytes = self._sum(0)

    @_of_the_disk()
    def full(self, limits: Limits) -> str | None:
        """Return the configuration's key of the limit that is reached, or None."""
        disk = os.statvfs(self._directory)
        size = disk.f_blocks * disk.f_frsize
        if self.bytes >= self.bytes_max(limits):
            return "bytes_max"
        # Of what we may use: the superuser's reserve is nothing that is left to others.
        if disk.f_bavail * disk.f_frsize < limits.disk_free_min * size:
            return "disk_free_min"
        return None

    @_of_the_disk()
    def bytes_max(self, limits: Limits) -> int:
        """Return the bytes that it holds at most, by its own limit alone."""
        if limits.bytes_max is not None:
            return limits.bytes_max
        disk = os.statvfs(self._directory)
        return min(GIB, int(BYTES_SHARE * disk.f_blocks * disk.f_frsize))

    @_of_the_disk()
    def put(self, batches: Iterable[Batch]) -> None:
        """Commit all of ``batches`` at the tail, in order, or none."""
        rows, end = [], self.end
        for b in batches:
            rows.append(row_of(self.name, end, b))
            end += b.count
        with self._connection:
            self._insert(rows)
            self._write_bounds(self.head, end)
        self.records += end - self.end
        self.bytes += sum(len(row[-1]) for row in rows)
        self.end = end

    @_of_the_disk()
    def oldest(self, start: int, records_max: int) -> list[Stored]:
        """Return rows from record ``start`` on: one at least, and at most ``records_max`` records.

        Rows that hold partitions are not taken apart, nor by what was lost between them: only
        together they can be put in file order. They are what was in flight when Kafka went away.

        A row that does not match its CRC is named in the log, counted, and is a lost range from
        then on.
        """
        found: list[Stored] = []
        records, parted = 0, False  # whether the last batch holds a partition
        query = f"SELECT {COLUMNS} FROM {self._table} WHERE seq >= ? ORDER BY seq"  # noqa: S608
        rows = self._connection.execute(query, (start,))
        for row in rows:
            one = stored(self.name, row)
            records += one.records
            parts = parted if one.batch is None else one.batch.partition >= 0
            if found and records > records_max and not (parted and parts):
                break
            found.append(one)
            parted = parts
        rows.close()
        lost = self._give_up([(s.seq, s.seq + s.records) for s in found if s.batch is None])
        if lost:
            event(log, logging.ERROR, "spool.rows_damaged", queue=self.name, lost_records=lost)
            self.lost += lost
        return found

    @_of_the_disk()
    def census(self) -> Census:
        """Return what there is to know of the rows that hold records."""
        query = (
            "SELECT count(*), min(nullif(first_ms, 0)), max(max_ms)"  # noqa: S608
            f" FROM {self._table} WHERE length(payload) > 0"
        )
        rows, oldest_ms, newest_ms = self._connection.execute(query).fetchone()
        return Census(self.records, self.bytes, int(rows), oldest_ms, newest_ms or None)

    @_of_the_disk()
    def drop_below(self, seq: int) -> None:
        """Delete what arrived in Kafka: everything before record ``seq``."""
        records, length = self._sum(0, seq)
        with self._connection:
            self._connection.execute(f"DELETE FROM {self._table} WHERE seq < ?", (seq,))  # noqa: S608
            self._write_bounds(seq, self.end)
        self.head = seq
        self.records -= records
        self.bytes -= length
        if seq == self.end:
            # A script runs it to its end; execute() would free a single page.
            self._connection.executescript("PRAGMA incremental_vacuum")

    @_of_the_disk()
    def drop_oldest(self, start: int, bytes_min: int) -> int:
        """Drop rows from record ``start`` on until ``bytes_min`` are free. Return the records.

        They become one range with what was dropped before them, or their number had no bound.
        """
        query = (
            f"SELECT seq + count, length(payload) FROM {self._table} WHERE seq >= ? ORDER BY seq"  # noqa: S608
        )
        rows = self._connection.execute(query, (start,))
        end, freed = start, 0
        for row_end, length in rows:
            if freed >= bytes_min:
                break
            end, freed = row_end, freed + length
        rows.close()
        return self._give_up([(start, end)])

    @_of_the_disk()
    def thin(self, thinned: Sequence[tuple[Stored, Batch | None]]) -> None:
        """Put what is left of rows in their places, all or none; None: nothing is.

        What is left has the first numbers of its row from then on, and the others are a range that
        was dropped: where the row began and ended stays as it was.
        """
        rows, before = [], [self._sum(s.seq, s.seq + s.records) for s, _ in thinned]
        for (seq, records, _), left in thinned:
            kept = 0 if left is None else left.count
            assert kept < records, f"nothing was dropped of the row {seq}"
            if left is not None:
                rows.append(row_of(self.name, seq, left))
            rows.append(range_row(self.name, seq + kept, seq + records))
        with self._connection:
            self._connection.executemany(
                f"DELETE FROM {self._table} WHERE seq = ?",  # noqa: S608
                [(s.seq,) for s, _ in thinned],
            )
            self._insert(rows)
        left_of = [self._sum(s.seq, s.seq + s.records) for s, _ in thinned]
        for (records, length), (records_left, length_left) in zip(before, left_of, strict=True):
            self.records -= records - records_left
            self.bytes -= length - length_left

    def adopt(self, table: str) -> None:
        """Move the rows of ``table`` to the tail. Their CRC is of the payload alone.

        Raises ``sqlite3.Error``, as opening does.
        """
        query = f"SELECT {COLUMNS} FROM {table} WHERE {SANE} ORDER BY seq"  # noqa: S608
        end, lost = self.end, 0
        with self._connection:
            for row in self._connection.execute(query):
                batch, checksum = batch_of(row), row[-2]
                if crc32(batch.payload) != checksum:
                    lost += batch.count
                    continue
                self._insert([row_of(self.name, end, batch)])
                end += batch.count
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608
            self._write_bounds(self.head, end)
        self.end, self.lost = end, self.lost + lost
        self.records, self.bytes = self._sum(0)

    def _give_up(self, ranges: Sequence[Bounds]) -> int:
        """Make one row without payload of each of ``ranges``. Return the records they held."""
        held = [self._sum(start, end) for start, end in ranges]
        records = sum(count for count, _ in held)
        if records:
            with self._connection:
                self._connection.executemany(
                    f"DELETE FROM {self._table} WHERE seq >= ? AND seq < ?",  # noqa: S608
                    ranges,
                )
                self._insert([range_row(self.name, *lost) for lost in ranges])
            self.records -= records
            self.bytes -= sum(length for _, length in held)
        return records

    def _bounds(self, at_least: Bounds) -> Bounds:
        query = 'SELECT head, "end", crc FROM bounds WHERE +name = ?'  # its index may be damaged
        rows = self._connection.execute(query, (self.name,)).fetchall()
        known = [
            (head, end) for head, end, checksum in rows if checksum == crc(self.name, head, end)
        ]
        if not known and at_least == (0, 0):  # nobody knows where it began
            first = f"SELECT coalesce(min(seq), 0), 0 FROM {self._table}"  # noqa: S608
            known = self._connection.execute(first).fetchall()
        heads, ends = zip(at_least, *known, strict=True)
        return max(heads), max(ends)

    def _tile(self) -> int:
        """Make the rows tile ``[head, end)``. Return how many records of that were missing."""
        with self._connection:
            self._connection.execute(
                f"DELETE FROM {self._table} WHERE seq < ? OR NOT ({SANE})",  # noqa: S608
                (self.head,),
            )
            self._delete_liars()
            holes, at = [], self.head
            for start, end in chain(self._ranges(), [(self.end, self.end)]):
                if start > at:
                    holes.append((at, start))
                at = max(at, end)
            self._insert([range_row(self.name, *hole) for hole in holes])
            self._write_bounds(self.head, at)
        self.end = at
        return sum(end - start for start, end in holes)

    def _delete_liars(self) -> None:
        """Delete rows that reach into the next one, or are reached into, and are damaged."""
        doubtful = {
            start
            for one, two in pairwise(chain(self._ranges(), [(self.end, self.end)]))
            if one[1] > two[0]
            for start in (one[0], two[0])
        }
        for start in doubtful:
            query = f"SELECT {COLUMNS} FROM {self._table} WHERE seq = ?"  # noqa: S608
            row = self._connection.execute(query, (start,)).fetchone()
            if row is not None and not is_sound(self.name, row):
                self._connection.execute(f"DELETE FROM {self._table} WHERE seq = ?", (start,))  # noqa: S608

    def _ranges(self) -> Iterator[Bounds]:
        query = f"SELECT seq, seq + count FROM {self._table} ORDER BY seq"  # noqa: S608
        return iter(self._connection.execute(query))

    def _sum(self, start: int, end: int = _SEQ_MAX) -> tuple[int, int]:
        query = (
            f"SELECT coalesce(sum(iif(codec = {GIVEN_UP} AND length(payload) = 0, 0, count)), 0),"  # noqa: S608
            f" coalesce(sum(length(payload)), 0) FROM {self._table} WHERE seq >= ? AND seq < ?"
        )
        records, length = self._connection.execute(query, (start, end)).fetchone()
        return int(records), int(length)

    def _insert(self, rows: Iterable[Row]) -> None:
        self._connection.executemany(
            f"INSERT INTO {self._table} ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)",  # noqa: S608
            rows,
        )

    def _write_bounds(self, head: int, end: int) -> None:
        self._connection.execute(
            f"INSERT INTO bounds ({BOUNDS}) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE"  # noqa: S608
            ' SET head = excluded.head, "end" = excluded."end", crc = excluded.crc',
            (self.name, head, end, crc(self.name, head, end)),
        )


def table_of(name: str) -> str:
    return f"spooled_{name}"
