"""What had to be put by on this node until Kafka takes it: events, and dead letters.

``spool.db`` beside the checkpoints, with ``synchronous=FULL``: what is committed here counts as
settled, so a power cut must not take it. A damaged file is salvaged row by row.
"""

import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from agent import salvage, sqlite
from agent.errors import StoreError
from agent.queue import BOUNDS, BOUNDS_TABLE, Bounds, Queue, table_of
from agent.rows import COLUMNS, TABLE
from agent.telemetry import SINKS, event

log = logging.getLogger(__name__)

MAJOR, MINOR = 1, 0
_OLD = "dead_letters"
"""The table of a version that spooled nothing else, and numbered its rows."""


class Spool:
    """The open file and its queues, by the name of their sink.

    Args:
        at_least: The bounds of each queue as the checkpoints knew them: what the file lacks of
            that was lost with its write-ahead log, or with the whole file.
    """

    def __init__(self, path: Path, at_least: Mapping[str, Bounds]) -> None:
        try:
            self._connection, self.queues = _opened(path, at_least)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: {error}") from error
        for name, queue in self.queues.items():
            if queue.lost:
                event(log, logging.ERROR, "spool.lost", queue=name, lost_records=queue.lost)

    def bounds(self) -> dict[str, Bounds]:
        return {name: (queue.head, queue.end) for name, queue in self.queues.items()}

    def close(self) -> None:
        """Raises ``StoreError``."""
        try:
            self._connection.close()
        except sqlite3.Error as error:
            raise StoreError(f"closing the spool: {error}") from error


def _opened(
    path: Path, at_least: Mapping[str, Bounds]
) -> tuple[sqlite3.Connection, dict[str, Queue]]:
    # Beside the damaged file until what can be read of it is saved: a start may be cut short.
    unsaved, aside = path.with_name(path.name + ".unsaved"), sqlite.aside_of(path)
    if unsaved.exists():
        if aside.exists():
            sqlite.remove(path)  # a copy that was not finished
        else:
            sqlite.put_aside(path)

    def prepare(connection: sqlite3.Connection) -> tuple[sqlite3.Connection, dict[str, Queue]]:
        _migrate(connection, path)
        if unsaved.exists() and aside.exists():
            _salvage(connection, aside)
        queues = {
            name: Queue(connection, name, at_least.get(name, (0, 0)), path.parent) for name in SINKS
        }
        if connection.execute(f"SELECT 1 FROM sqlite_schema WHERE name = '{_OLD}'").fetchone():  # noqa: S608
            queues["dead_letters"].adopt(_OLD)
        return connection, queues

    def damaged(detail: str, _aside: Path) -> None:
        unsaved.touch()
        event(log, logging.ERROR, "spool.damaged", path=str(path), detail=detail,
              effect="what can be read of it is saved; spool.lost counts the rest")  # fmt: skip

    opened = sqlite.opened(path, "FULL", prepare, damaged)
    unsaved.unlink(missing_ok=True)
    return opened


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    sqlite.check_version(connection, path, (MAJOR, MINOR), "run a newer agent")
    for name in SINKS:
        connection.execute(TABLE.format(table=table_of(name)))
    connection.execute(BOUNDS_TABLE)


def _salvage(connection: sqlite3.Connection, aside: Path) -> None:
    """Copy what can be read, under the same numbers: what cannot is then a hole, and counted."""
    source = sqlite3.connect(aside)
    try:
        source.execute("PRAGMA writable_schema=ON")  # or nothing of a file that was cut is read
        with connection:
            for table in (*map(table_of, SINKS), _OLD):
                connection.execute(TABLE.format(table=table))
                connection.executemany(
                    f"INSERT OR IGNORE INTO {table} ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)",  # noqa: S608
                    salvage.rows(source, table, COLUMNS),
                )
            connection.executemany(
                f"INSERT OR IGNORE INTO bounds ({BOUNDS}) VALUES (?, ?, ?, ?)",  # noqa: S608
                salvage.rows(source, "bounds", BOUNDS, key="rowid"),
            )
    finally:
        source.close()
