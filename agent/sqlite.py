"""Opens a SQLite file of the state directory: ours alone, checked whole, put aside when damaged.

One connection with ``locking_mode=EXCLUSIVE``: versions before 3.51.3 can corrupt a WAL that two
connections share, and it keeps everybody else out.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from agent.errors import StateTooNew

_NOT_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    }
)
"""What putting a database aside would not mend."""

_SUFFIXES = "", "-wal", "-shm"

_MINORS = 1000

Version = tuple[int, int]
"""Major and minor."""

T = TypeVar("T")


def opened(
    path: Path,
    synchronous: Literal["NORMAL", "FULL"],
    prepare: Callable[[sqlite3.Connection], T],
    damaged: Callable[[str, Path], None],
) -> T:
    """Open ``path`` and return what ``prepare`` makes of the connection.

    A damaged file is put aside as ``*.damaged``, the latest one only, for whoever wants to know
    why, and an empty one takes its place. ``damaged`` is told why, and where it will lie, when the
    one before is gone and nothing was moved yet: this start may end at any point of it, and
    ``put_aside`` goes on there. ``prepare`` may find damage too: it raises
    ``sqlite3.DatabaseError``.

    Raises ``sqlite3.Error`` or ``OSError`` for what is no damage.
    """
    try:
        return _try(path, synchronous, prepare)
    except (sqlite3.DatabaseError, UnicodeError) as error:  # SQLite quotes what it cannot parse
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _NOT_DAMAGE:
            raise
        aside = aside_of(path)
        remove(aside)
        damaged(str(error), aside)
        put_aside(path)
        return _try(path, synchronous, prepare)


def _try(path: Path, synchronous: str, prepare: Callable[[sqlite3.Connection], T]) -> T:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=1.0)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA journal_size_limit=4194304")
        _check(connection)
        return prepare(connection)
    except BaseException:
        connection.close()
        raise


def _check(connection: sqlite3.Connection) -> None:
    """Damage that is found later would end this life and each one to come."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def check_version(connection: sqlite3.Connection, path: Path, knows: Version, remedy: str) -> None:
    """Refuse a file of a newer major version, and write down ours where it is newer.

    A minor version only adds, so that the one before can still start. Raises ``StateTooNew``.
    """
    stored = divmod(connection.execute("PRAGMA user_version").fetchone()[0], _MINORS)
    if stored[0] > knows[0]:
        found, known = (f"{major}.{minor}" for major, minor in (stored, knows))
        raise StateTooNew(f"{path} is of state version {found}; this agent knows {known}: {remedy}")
    if stored < knows:
        connection.execute(f"PRAGMA user_version={knows[0] * _MINORS + knows[1]}")


def aside_of(path: Path) -> Path:
    return path.with_name(path.name + ".damaged")


def put_aside(path: Path) -> None:
    """Move a database. The file itself goes last: where it lies aside, its log does too."""
    aside = aside_of(path)
    for suffix in reversed(_SUFFIXES):
        part = _part(path, suffix)
        if part.exists():
            part.replace(_part(aside, suffix))


def remove(path: Path) -> None:
    """Remove a database, if it is there. The file itself goes first: a log alone is nothing."""
    for suffix in _SUFFIXES:
        _part(path, suffix).unlink(missing_ok=True)


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
