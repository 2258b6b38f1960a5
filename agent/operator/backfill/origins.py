"""Who a file is, as an agent or an earlier backfill wrote it down: so that ids stay the same.

A derived ``event_id`` is made of the file that was born, its generation and the place in it. The
agent's checkpoints know both for each file that it followed, and know a copy by its content.
"""

import os
import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from agent import database
from agent.asking import ask
from agent.clock import Clock
from agent.core.continuation import Candidate, Index, Sighting, continues
from agent.core.discovery import FileKey, Seen
from agent.core.identity import (
    FINGERPRINT_BYTES,
    Birth,
    Checkpoint,
    File,
    compare,
    examine,
    matches,
)
from agent.errors import AgentError, NotRunning
from agent.harvester import first_generation, starting_at
from agent.state_owner import owner

Life = tuple[str, int]
"""Source and generation."""

SNAPSHOT_TRIES = 10
_SUFFIXES = "", "-wal"

Kind = Literal["same_file", "copy", "changed", "unknown_to_agent", "nobody_knows"]
"""How sure an id is that was made of a file: the first two are what the agent gave; ``changed`` has
other content than the agent saw, so a generation of its own; of the others nobody knows whether
the agent ever read them, ``nobody_knows``: for its checkpoints could not be read."""


class Known(NamedTuple):
    """What others wrote down.

    Attributes:
        rows: By which files are recognised.
        sent: Those of which all before the watermark went to the topic that is wanted.
        readable: Whether the agent's could be read; it may have none.
    """

    rows: list[Checkpoint]
    sent: list[Checkpoint]
    readable: bool


class Origins:
    """Says who files are, in place of ``strangers.Unheard``. Lives in the worker thread.

    Args:
        client: Of every file; None: as it was met first.

    Attributes:
        kinds: What was said of each file.
        passed_over_bytes: Not read, for others have sent it.
    """

    def __init__(self, known: Known, *, client: str | None, clock: Clock) -> None:
        self.kinds: dict[FileKey, Kind] = {}
        self.passed_over_bytes = 0
        self._readable = known.readable
        self._client = client
        self._newest: dict[Birth, Checkpoint] = {}
        self._sent: defaultdict[Life, list[Checkpoint]] = defaultdict(list)
        self._index = Index()
        for row in _furthest(known.rows):
            gone_at = clock.wall() if row.gone_at is None else row.gone_at
            self._index.put(_life(row), replace(row, gone_at=gone_at))
            self._newest[row.birth] = row
        for row in known.sent:
            self._sent[_life(row)].append(row)

    @property
    def counts(self) -> Counter[Kind]:
        return Counter(self.kinds.copy().values())

    def alike(self, sighting: Sighting, prefix: bytes) -> list[Checkpoint]:
        """Return what a file that begins with ``prefix`` may be known by."""
        itself = self._newest.get(sighting.birth)
        rows = [itself] if itself is not None else self._index.alike(sighting, prefix)
        return [*rows, *(sent for row in rows for sent in self._sent.get(_life(row), ()))]

    def of(self, file: File, seen: Seen) -> Checkpoint:
        """Say who ``file`` is and where it begins. Raises ``OSError``."""
        itself = self._newest.get(file.birth)
        if itself is None:
            return self._stranger(file, seen)
        row = replace(itself, path=seen.path, client=self._client or itself.client, gone_at=None)
        if compare(row, examine(row, row.birth, file.size(), file.pread)).cause == "same":
            self.kinds[seen.key] = "same_file"
            return self._unsent(row, file)
        self.kinds[seen.key] = "changed"
        return starting_at(0, file, replace(row, generation=row.generation + 1))

    def _stranger(self, file: File, seen: Seen) -> Checkpoint:
        size = file.size()
        prefix = file.pread(min(FINGERPRINT_BYTES, size), 0)
        sighting = Sighting(file.birth, size, seen.path, seen.client)
        candidates = [
            Candidate(row, examine(row, row.birth, size, file.pread), None)
            for row in self._index.alike(sighting, prefix)
        ]
        found = continues(sighting, candidates)
        if found.verdict == "copy" and found.source is not None:
            self.kinds[seen.key] = "copy"
            return self._unsent(replace(found.source, path=seen.path, client=seen.client), file)
        self.kinds[seen.key] = "unknown_to_agent" if self._readable else "nobody_knows"
        return first_generation(file.birth, seen.path, seen.client)

    def _unsent(self, row: Checkpoint, file: File) -> Checkpoint:
        """Return ``row`` as it begins with what nobody has sent, by the same evidence."""
        sent = [
            before
            for before in self._sent.get(_life(row), ())
            if matches(before, examine(before, before.birth, file.size(), file.pread))
        ]
        if not sent:
            return starting_at(0, file, row)
        furthest = max(sent, key=lambda before: before.watermark)
        self.passed_over_bytes += furthest.watermark
        return replace(furthest, path=row.path, client=row.client, gone_at=row.gone_at)


def _life(row: Checkpoint) -> Life:
    return row.source_id, row.generation


def _furthest(rows: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Return one row for each generation, the one that is settled furthest; older ones first."""
    found: dict[Life, Checkpoint] = {}
    for row in rows:
        other = found.get(_life(row))
        if other is None or other.watermark < row.watermark:
            found[_life(row)] = row
    return sorted(found.values(), key=lambda row: row.generation)


def running(state_dir: Path) -> bool:
    """Return whether an agent owns ``state_dir`` just now: the kernel says so, or the agent does,
    where it runs in another PID namespace."""
    if owner(state_dir) is not None:
        return True
    try:
        next(ask(state_dir, "explain", path="."), None)
    except NotRunning:
        return False
    except AgentError:
        return True  # it says so, or does not let us ask
    return True


def checkpoints(state_dir: Path) -> list[Checkpoint] | None:
    """Return what ``checkpoints.db`` holds, whether its owner runs or not; None: unreadable.

    The owner has locked it for itself, and SQLite would wait. So its files are copied, which
    disturbs nobody. A copy counts where nothing but the end of the write-ahead log may have grown
    meanwhile, and SQLite's checksums leave out what of that is half written.
    """
    path = state_dir / "checkpoints.db"
    if not path.exists():
        return [] if os.access(state_dir, os.X_OK) or not state_dir.exists() else None
    for _ in range(SNAPSHOT_TRIES):
        with tempfile.TemporaryDirectory(prefix="feedback-agent-") as scratch:
            copy = Path(scratch) / path.name
            try:
                before = _stamp(path)
                for suffix in _SUFFIXES:
                    log = path.with_name(path.name + suffix)
                    if log.exists():
                        shutil.copyfile(log, copy.with_name(copy.name + suffix))
                if _stamp(path) == before:
                    return _rows(copy)
            except (OSError, sqlite3.Error, ValueError, TypeError, msgspec.DecodeError):
                continue
    return None


def _stamp(path: Path) -> object:
    """Return what changes when the log is written back into the database, or begun anew."""
    log, status = path.with_name(f"{path.name}-wal"), path.stat()
    try:
        with log.open("rb") as file:
            header = file.read(32)  # https://www.sqlite.org/fileformat.html#walformat: with salts
    except FileNotFoundError:
        header = b""
    return header, status.st_ino, status.st_size, status.st_mtime_ns


def _rows(path: Path) -> list[Checkpoint]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("not whole")
        rows = connection.execute("SELECT * FROM checkpoints").fetchall()
    return [database.checkpoint_of(dict(row)) for row in rows]
