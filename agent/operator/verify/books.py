"""What the state directory knows of files, read without touching it: the agent may be running.

Its databases are locked for it alone, so they are copied. A copy of SQLite files is good where
nothing moved from the log into the database meanwhile: then the log's beginning is what it was.
"""

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from agent import asking, database, sqlite
from agent.config import Config
from agent.core.identity import Checkpoint
from agent.errors import AgentError

TRIES_MAX = 20
WAL_HEADER_BYTES = 32
STATUS_S = 2.0

Bounds = tuple[int, int]


class Books(NamedTuple):
    """Checkpoints, and by queue of the spool the number of its first record and of its next one."""

    rows: list[Checkpoint]
    spooled: Mapping[str, Bounds]


def books(config: Config) -> Books:
    """Read what there is, after a running agent wrote it up. Raises ``AgentError``."""
    path = config.agent.state_dir / "checkpoints.db"
    with contextlib.suppress(AgentError):  # none runs, or it answers others: then as it is
        list(asking.ask(config.agent.state_dir, "write"))
    try:
        if not path.exists():
            return Books([], {})
        for _ in range(TRIES_MAX):
            with tempfile.TemporaryDirectory(prefix="feedback-agent-") as into:
                copy = _copied(path, Path(into))
                if copy is not None and (found := _read(copy)) is not None:
                    return found._replace(spooled=_spooled(config, found.spooled))
    except OSError as error:
        raise AgentError(f"{error.filename or path}: {error.strerror}") from None
    raise AgentError(f"{path}: moves too fast to be copied; try again")


def _copied(path: Path, into: Path) -> Path | None:
    """Copy a database and its log; None where it was written to meanwhile."""
    log = path.with_name(path.name + "-wal")
    before = _stamp(path), _head(log)
    copy = into / path.name
    shutil.copyfile(path, copy)
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(log, copy.with_name(log.name))
    return copy if before == (_stamp(path), _head(log)) else None


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _head(log: Path) -> bytes:
    """Return what changes when a log begins anew."""
    try:
        with log.open("rb") as file:
            return file.read(WAL_HEADER_BYTES)
    except FileNotFoundError:
        return b""


def _read(copy: Path) -> Books | None:
    """Return what the copy has; None where it is not sound."""
    try:
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            knows = database.MAJOR, database.MINOR
            sqlite.check_version(connection, copy, knows, "use the newer feedback-agent")
            connection.row_factory = sqlite3.Row
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                return None
            rows = [dict(row) for row in connection.execute("SELECT * FROM checkpoints")]
            meta = [dict(row) for row in connection.execute("SELECT name, value FROM meta")]
            return Books([*map(database.checkpoint_of, rows)], database.spooled_of(meta))
    except (sqlite3.Error, ValueError):
        return None


def _spooled(config: Config, noted: Mapping[str, Bounds]) -> Mapping[str, Bounds]:
    """Return what the spool holds by now: the checkpoints know it as of their last commit."""
    path = config.agent.state_dir / "spool.db"
    if path.exists() and not path.with_name("spool.db-wal").exists():  # nobody has it open
        with contextlib.suppress(sqlite3.Error):
            return dict(_bounds(path))
    try:
        sinks = _status(config)
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return noted
    empty = {name for name, sink in sinks.items() if sink.get("spooled_records") == 0}
    return {name: bounds for name, bounds in noted.items() if name not in empty}


def _bounds(path: Path) -> Iterator[tuple[str, Bounds]]:
    where = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(where, uri=True)) as connection:
        for name, head, end in connection.execute('SELECT name, head, "end" FROM bounds'):
            yield name, (head, end)


def _status(config: Config) -> dict[str, dict[str, object]]:
    """Return what ``/status`` says of the sinks, where the configuration tells its port."""
    host, port = config.http.host, config.http.port
    if not port:
        raise OSError("the port is not known")
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    connection = HTTPConnection(asked, port, timeout=STATUS_S)
    try:
        connection.request("GET", "/status")
        found: dict[str, dict[str, object]] = json.load(connection.getresponse())["sinks"]
    finally:
        connection.close()
    return found
