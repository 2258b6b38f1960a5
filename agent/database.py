"""The checkpoint database: opened, checked whole, migrated, put aside when it is damaged.

Schema versions are ``major.minor``. A minor change only adds, so that the version before can
still start; an unknown column is left alone. A newer major is refused.
"""

import logging
import os
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import sqlite_utils

from agent import sqlite
from agent.core.identity import Anchor, Birth, Checkpoint, one_device
from agent.telemetry import event

log = logging.getLogger(__name__)

MAJOR, MINOR = 1, 1

_COLUMNS: dict[str, Any] = {
    "source_id": str,
    "generation": int,
    "inode": int,
    "born_ns": int,
    "inode_generation": int,
    "device": int,
    "watermark": int,
    "fingerprint": bytes,
    "anchor": bytes,
    "older": bytes,
    "path": bytes,  # a file name need not be text
    "client": bytes,
    "gone_at": float,
}
_OPTIONAL = {"gone_at"}
UPSERT = (
    f"INSERT INTO checkpoints ({', '.join(_COLUMNS)}) "  # noqa: S608 - constants of this room
    f"VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT (source_id, generation) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
    + " WHERE excluded.watermark >= checkpoints.watermark"
)
"""A row behind the stored one changes nothing."""
PUT_META = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"
_SPOOLED = "spooled_"
DELETE = "DELETE FROM checkpoints WHERE source_id = ? AND generation = ?"


def opened(path: Path) -> sqlite_utils.Database:
    """Open, check and migrate; what is damaged is put aside and every file is read again."""
    fresh = not path.exists() or path.stat().st_size == 0
    sentinel = path.with_suffix(".created")
    if fresh and sentinel.exists():
        # Not a first start: somebody or something removed what we knew.
        event(log, logging.ERROR, "checkpoints.lost", path=str(path), effect="files are read again")
    database = sqlite.opened(path, "NORMAL", partial(_prepared, path), partial(_damaged, path))
    sentinel.touch()
    return database


def _prepared(path: Path, connection: sqlite3.Connection) -> sqlite_utils.Database:
    database = sqlite_utils.Database(connection, recursive_triggers=False)
    _migrate(database, path)
    _check_rows(database)
    return database


def _damaged(path: Path, detail: str, _aside: Path) -> None:
    event(log, logging.ERROR, "checkpoints.damaged", path=str(path), detail=detail,
          effect="put aside; files are read again")  # fmt: skip


def _check_rows(database: sqlite_utils.Database) -> None:
    """SQLite sees no flipped bit inside of a value; it must not stop every start to come."""
    try:
        for row in database["checkpoints"].rows:
            _check_row(row)
        spooled_of(database.table("meta").rows)
    except Exception as error:
        raise sqlite3.DatabaseError(f"a row: {error!r}") from error


def _check_row(row: dict[str, Any]) -> None:
    """A column of SQLite holds a value of any kind, whatever it was declared as."""
    for name, kind in _COLUMNS.items():
        value = row[name]
        if not (isinstance(value, kind) or (value is None and name in _OPTIONAL)):
            raise TypeError(f"{name} is {type(value).__name__}")
    if row["watermark"] < 0 or row["generation"] < 0:
        raise ValueError("below zero")
    if checkpoint_of(row).source_id != row["source_id"]:
        raise ValueError("its source was born otherwise")


def _migrate(database: sqlite_utils.Database, path: Path) -> None:
    remedy = "run a newer agent, or start with an empty state directory (lines go out again)"
    sqlite.check_version(database.conn, path, (MAJOR, MINOR), remedy)
    database.table("meta").create({"name": str, "value": str}, pk="name", if_not_exists=True)
    database.table("checkpoints").create(
        _COLUMNS, pk=("source_id", "generation"), not_null={"watermark"}, if_not_exists=True
    )


def _signed(n: int) -> int:
    """SQLite knows no unsigned integer; inode and device numbers are."""
    return n - (1 << 64) if n >= 1 << 63 else n


def _unsigned(n: int) -> int:
    return n + (1 << 64) if n < 0 else n


def row_of(c: Checkpoint) -> tuple[object, ...]:
    return (
        c.source_id,
        c.generation,
        _signed(c.birth.inode),
        c.birth.born_ns,
        c.birth.inode_generation,
        _signed(c.birth.device),
        c.watermark,
        c.fingerprint,
        c.anchor.digest,
        msgspec.msgpack.encode(c.older),
        os.fsencode(c.path),
        os.fsencode(c.client),
        c.gone_at,
    )


def checkpoint_of(row: dict[str, Any]) -> Checkpoint:
    """Make what many rows share one object: there is a row for each known file."""
    fingerprint, anchor = row["fingerprint"], row["anchor"]
    return Checkpoint(
        birth=Birth(
            _unsigned(row["inode"]),
            row["born_ns"],
            row["inode_generation"],
            one_device(_unsigned(row["device"])),
        ),
        generation=row["generation"],
        watermark=row["watermark"],
        fingerprint=anchor if anchor == fingerprint else fingerprint,
        anchor=Anchor(row["watermark"], anchor),
        older=msgspec.msgpack.decode(row["older"], type=tuple[Anchor, ...]),
        path=os.fsdecode(row["path"]),
        client=sys.intern(os.fsdecode(row["client"])),
        gone_at=row["gone_at"],
    )


def meta_of(spooled: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
    """Return rows of ``meta``, each with a checksum: a wrong bound would drop what is spooled."""
    values = [(_SPOOLED + name, f"{head} {end}") for name, (head, end) in spooled.items()]
    return [(name, f"{value} {crc32(value.encode())}") for name, value in values]


def spooled_of(meta: Iterable[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    found = {}
    for row in meta:
        if row["name"].startswith(_SPOOLED):
            value, _, checksum = row["value"].rpartition(" ")
            if int(checksum) != crc32(value.encode()):
                raise ValueError(f"{row['name']}: its checksum does not match")
            head, end = map(int, value.split())
            found[row["name"].removeprefix(_SPOOLED)] = head, end
    return found
