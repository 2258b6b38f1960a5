"""How checkpoints and spooled records look to whoever asks for them: plain JSON values."""

from base64 import b64encode
from typing import Any

from agent.core.identity import Checkpoint
from agent.wire import Record


def checkpoint(row: Checkpoint) -> dict[str, Any]:
    return {
        "path": row.path,
        "client": row.client,
        "source": row.source_id,
        "generation": row.generation,
        "watermark": row.watermark,
        "gone_at": row.gone_at,
        "inode": row.birth.inode,
    }


def record(seq: int, one: Record) -> dict[str, Any]:
    """Return a record as it was put by: redacted. ``seq`` is its number in the queue."""
    return {
        "seq": seq,
        "timestamp_ms": one.timestamp_ms,
        "key": None if one.key is None else text(one.key),
        "value": text(one.value),
        "headers": {name: text(value) for name, value in one.headers},
    }


def text(value: bytes) -> str | dict[str, str]:
    """Return text where it is some, else an object that says what it is."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}
