"""Checkpoints on disk: the agent's write-ahead log of what is settled.

``checkpoints.db`` is SQLite in WAL mode behind one connection that locks it for itself. A commit
is one transaction of everything that moved. ``synchronous=NORMAL``: after a power cut the last
commits may be gone, which sends lines twice and loses none; a process that dies loses nothing.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import sqlite_utils

from agent import database
from agent.core.identity import Checkpoint
from agent.errors import ConfigError, StateOwned, StoreError


class Store:
    """The open state directory. Every method blocks; one thread at a time may be inside.

    Raises ``StoreError`` for whatever the disk or the database refuses: the process must then
    end, since after a failed fsync later commits claim success.
    """

    def __init__(self, opened: sqlite_utils.Database, lock_fd: int) -> None:
        self._database = opened
        self._lock_fd = lock_fd
        self._inside = threading.Lock()
        self._spooled = self.spooled()

    @classmethod
    def open(cls, state_dir: Path, node: str) -> "Store":
        """Lock ``state_dir``, create or check what is in it, and pin ``node``."""
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(state_dir)
        except OSError as error:
            raise StoreError(f"state directory {state_dir}: {error.strerror}") from error
        try:
            opened = database.opened(state_dir / "checkpoints.db")
            try:
                store = cls(opened, lock_fd)
                store._pin(node)
            except BaseException:
                opened.conn.close()
                raise
        except (sqlite3.Error, OSError) as error:
            os.close(lock_fd)
            raise StoreError(f"{state_dir / 'checkpoints.db'}: {error}") from error
        except BaseException:
            os.close(lock_fd)
            raise
        return store

    def load(self) -> list[Checkpoint]:
        """Return every checkpoint, tombstones included."""
        return [database.checkpoint_of(row) for row in self._database["checkpoints"].rows]

    def save(
        self,
        checkpoints: Iterable[Checkpoint],
        forgotten: Iterable[Checkpoint] = (),
        spooled: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        """Commit all of ``checkpoints``, and delete ``forgotten`` tombstones, or do neither.

        ``spooled`` is how far each queue of the spool reaches, on which these checkpoints rely.

        A row behind the stored one of its generation is left out (invariant 2): a file that comes
        back after its copy was read on is read again, and its settled bytes stay settled.
        """
        rows = [database.row_of(c) for c in checkpoints]
        gone = [(c.source_id, c.generation) for c in forgotten]
        connection = self._database.conn
        try:
            with self._inside, connection:
                connection.executemany(database.UPSERT, rows)
                connection.executemany(database.DELETE, gone)
                if spooled != self._spooled:
                    connection.executemany(database.PUT_META, database.meta_of(spooled))
        except sqlite3.Error as error:
            raise StoreError(f"checkpoint commit: {error}") from error
        self._spooled = dict(spooled)

    def spooled(self) -> dict[str, tuple[int, int]]:
        """Return how far the spool's queues reached at the last commit."""
        return database.spooled_of(self._database.table("meta").rows)

    def close(self) -> None:
        """Raises ``StoreError``; the lock is released all the same."""
        try:
            self._database.conn.close()
        except sqlite3.Error as error:
            raise StoreError(f"closing the checkpoints: {error}") from error
        finally:
            os.close(self._lock_fd)

    def _pin(self, node: str) -> None:
        """Derived event ids contain the node's name: it must not change under stored offsets."""
        meta = self._database.table("meta")
        pinned = {row["name"]: row["value"] for row in meta.rows}.get("node")
        if pinned is None:
            meta.upsert({"name": "node", "value": node}, pk="name")
        elif pinned != node:
            raise ConfigError(
                "agent.node",
                f"is {node!r}, but this state directory belongs to {pinned!r}: "
                "set agent.node to that, or start with an empty state directory",
            )


def _lock(state_dir: Path) -> int:
    fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise StateOwned(f"{state_dir} belongs to a running agent (pid {owner or '?'})") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
