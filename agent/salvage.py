"""Reads what can still be read of a table whose file is damaged, row by row."""

import sqlite3
from collections.abc import Iterator
from typing import Any

SEQ_MAX = 1 << 62


def rows(
    connection: sqlite3.Connection, table: str, columns: str, *, key: str = "seq"
) -> Iterator[tuple[Any, ...]]:
    """Yield the readable rows in the order of ``key``, an integer and the row's id. Never raises.

    SQLite stops at the first page that makes no sense, so each row is asked for by itself, and a
    stretch of the tree that cannot be searched is jumped over.
    """
    at = 0
    while (seq := _next(connection, table, key, at)) is not None:
        try:
            row = connection.execute(
                f"SELECT {columns} FROM {table} WHERE {key} = ?",  # noqa: S608 - names of this program
                (seq,),
            ).fetchone()
        except (sqlite3.DatabaseError, UnicodeError):
            row = None
        if row is not None:
            yield row
        at = seq + 1


def _next(connection: sqlite3.Connection, table: str, key: str, at: int) -> int | None:
    """Return the first ``key`` from ``at`` on that a search finds, None when there is none."""
    bad, step = at - 1, 0
    while True:
        start = at + step
        if start > SEQ_MAX:
            return None
        searched, seq = _search(connection, table, key, start)
        if searched:
            break
        bad, step = start, max(1, 2 * step)
    while start - bad > 1:
        middle = (bad + start) // 2
        searched, found = _search(connection, table, key, middle)
        if searched:
            start, seq = middle, found
        else:
            bad = middle
    return seq


def _search(
    connection: sqlite3.Connection, table: str, key: str, start: int
) -> tuple[bool, int | None]:
    query = f"SELECT {key} FROM {table} WHERE {key} >= ? ORDER BY {key} LIMIT 1"  # noqa: S608 - as above
    try:
        found = connection.execute(query, (start,)).fetchone()
    except (sqlite3.DatabaseError, UnicodeError):
        return False, None
    if found is None:
        return True, None
    # Keys that are out of order lead a search astray. To go back would be to go round in circles.
    return found[0] >= start, found[0]
