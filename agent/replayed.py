"""Which dead letters were replayed from here: a second replay leaves them out.

A small SQLite file of its own, so that it may be written beside a running agent. A crash between
an acknowledgement and this note sends an event again, with the same ``event_id``.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from agent.errors import StoreError

NAME = "replayed.db"
WAIT_S = 10.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS replayed (place TEXT PRIMARY KEY, event_id TEXT, of TEXT, at TEXT)"
)


class Note(NamedTuple):
    """``place``: see ``core.revival.Letter``. ``of`` is where the dead letter lies."""

    place: str
    event_id: str
    of: str
    at: str


class Replayed:
    """The open file; made if it is missing. Every method blocks and may raise ``StoreError``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, timeout=WAIT_S)
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def when(self, place: str) -> str | None:
        """Return when the dead letter of that place was replayed, None if it was not."""
        try:
            found = self._connection.execute("SELECT at FROM replayed WHERE place = ?", (place,))
            row = found.fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
        return None if row is None else str(row[0])

    def add(self, notes: Iterable[Note]) -> None:
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT OR REPLACE INTO replayed VALUES (?, ?, ?, ?)", notes
                )
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
