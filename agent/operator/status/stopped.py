"""What the state directory and the files themselves say while no agent runs. Only reads.

The database is copied with its log and the copy is opened: to open the original would make files
beside it, and could be in the way of an agent that starts.
"""

import os
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent import database, sqlite
from agent.assembly import scanner
from agent.clock import Clock
from agent.config import Config
from agent.core.discovery import Seen
from agent.core.identity import Checkpoint
from agent.errors import AgentError
from agent.opener import Refused, open_beneath
from agent.state_owner import owner
from agent.unpacking import COMPRESSED, file_birth

COPIES_MAX = 5
"""Tries to copy a database that an agent writes to meanwhile."""
_MEMORY = Path("/dev/shm")  # noqa: S108  for a container whose own file system cannot be written


class Remembered(Struct, frozen=True):
    """What the checkpoints hold: the latest of each source, and how far the spool's queues reach.

    ``at_s``: when they were last written, by the wall clock.
    """

    node: str
    at_s: float
    checkpoints: tuple[Checkpoint, ...]
    spooled: dict[str, tuple[int, int]]


def looked(config: Config, clock: Clock, shown: Callable[[str], str], why: str) -> dict[str, Any]:
    """Return what ``/status`` would, as far as it is on disk. Raises ``AgentError``.

    ``why``: no agent was asked.
    """
    directory = config.agent.state_dir
    known = remembered(directory)
    scan = scanner(config, clock).scan(remembered={c.birth.inode for c in known.checkpoints})
    files = [*_files(config.source.root, scan.files, known.checkpoints)]
    for file in files:
        file |= {name: shown(file[name]) for name in ("path", "client")}
    lags = defaultdict[str, int](int)
    for file in files:
        lags[file["client"]] += file["lag_bytes"] or 0
    files.sort(key=lambda file: (-(file["lag_bytes"] or 0), file["path"]))
    return {
        "running": False,
        "why": why,
        "owner": owner(directory),
        "state_dir": str(directory),
        "node": known.node,
        "at": _rfc3339(clock.wall()),
        "checkpointed_at": _rfc3339(known.at_s),
        "root": {"path": str(config.source.root), "problem": scan.root_problem},
        "sinks": {
            name: {"spooled_records": end - head} for name, (head, end) in known.spooled.items()
        },
        "spool_bytes": _size(directory / "spool.db"),
        "clients": [
            {"client": client, "lag_bytes": lag_bytes}
            for client, lag_bytes in sorted(lags.items(), key=lambda one: (-one[1], one[0]))
        ],
        "files_gone": sum(c.gone_at is not None for c in known.checkpoints),
        "files": files,
    }


def remembered(directory: Path) -> Remembered:
    """Read the checkpoints of ``directory``. Raises ``AgentError`` where there are none."""
    path = directory / "checkpoints.db"
    try:
        at_s = max(part.stat().st_mtime for part in _parts(path))
        with _copy(path) as copy:
            return _read(copy, path, at_s)
    except FileNotFoundError:
        raise AgentError(f"{directory}: no agent has run over it: no checkpoints.db") from None
    except OSError as error:
        raise AgentError(f"{error.filename or path}: {error.strerror}") from None
    except (sqlite3.Error, ValueError, KeyError) as error:
        raise AgentError(f"{path}: damaged: {error}; the agent puts it aside") from None


def _read(copy: Path, path: Path, at_s: float) -> Remembered:
    connection = sqlite3.connect(copy)
    connection.row_factory = sqlite3.Row
    try:
        sqlite.check_version(
            connection, path, (database.MAJOR, database.MINOR), "use a newer feedback-agent"
        )
        meta = [dict(row) for row in connection.execute("SELECT * FROM meta")]
        latest: dict[str, Checkpoint] = {}
        for row in connection.execute("SELECT * FROM checkpoints ORDER BY generation"):
            checkpoint = database.checkpoint_of(dict(row))
            latest[checkpoint.source_id] = checkpoint
    finally:
        connection.close()
    node = next((str(row["value"]) for row in meta if row["name"] == "node"), "")
    return Remembered(node, at_s, tuple(latest.values()), database.spooled_of(meta))


@contextmanager
def _copy(path: Path) -> Iterator[Path]:
    """Yield a copy of the database and its log, taken while neither changed. Raises ``OSError``."""
    with tempfile.TemporaryDirectory(prefix="feedback-agent-", dir=_temporary()) as directory:
        copy = Path(directory) / path.name
        for _ in range(COPIES_MAX):
            before = _stamps(path)
            for part in _parts(path):
                shutil.copyfile(part, copy.with_name(part.name))
            if _stamps(path) == before:
                break
        yield copy


def _temporary() -> str | None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return str(_MEMORY)
    return None


def _parts(path: Path) -> list[Path]:
    log = path.with_name(path.name + "-wal")
    return [path, log] if log.exists() else [path]


def _stamps(path: Path) -> list[tuple[int, int, int]]:
    found = [part.stat() for part in _parts(path)]
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in found]


def _files(
    root: Path, seen: tuple[Seen, ...], checkpoints: tuple[Checkpoint, ...]
) -> Iterator[dict[str, Any]]:
    """Yield each file on disk and how far it is settled; one that nobody knows is at 0."""
    by_inode = {checkpoint.birth.inode: checkpoint for checkpoint in checkpoints}
    try:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for file in seen:
            checkpoint = by_inode.get(file.inode)
            if checkpoint is not None and not _is_it(root_fd, file, checkpoint):
                checkpoint = None
            packed = file.path.endswith(COMPRESSED)  # its size is not that of its content
            watermark = 0 if checkpoint is None else checkpoint.watermark
            yield {
                "path": file.path,
                "client": file.client,
                "source": None if checkpoint is None else checkpoint.source_id,
                "generation": None if checkpoint is None else checkpoint.generation,
                "watermark": watermark,
                "size": file.size,
                "lag_bytes": None if packed else _lag_bytes(file.size, watermark),
            }
    finally:
        os.close(root_fd)


def _lag_bytes(size: int, watermark: int) -> int:
    """Return what is to be read; a file that was truncated is read from its beginning."""
    return size - watermark if size >= watermark else size


def _is_it(root_fd: int, file: Seen, checkpoint: Checkpoint) -> bool:
    """Return whether the file is that of the checkpoint, and not one with its inode again."""
    opened = open_beneath(root_fd, file.path, links_max=None)
    if isinstance(opened, Refused):
        return True  # nobody can say; the inode is right
    with opened:
        return opened.birth == file_birth(checkpoint.birth)


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in _parts(path)) if path.exists() else 0


def _rfc3339(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
