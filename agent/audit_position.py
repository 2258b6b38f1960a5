"""Where the copy of the audit log ends: a small file beside the log. Blocks."""

import os
from pathlib import Path

import msgspec

from agent.core.auditing import Head


class _Sent(msgspec.Struct, frozen=True):
    topic: str
    seq: int
    hash: str


def load(log: Path, topic: str) -> Head | None:
    """Return the last record of ``log`` that ``topic`` has. Where nobody knows, all goes again."""
    try:
        sent = msgspec.json.decode(_place(log).read_bytes(), type=_Sent)
    except (OSError, msgspec.MsgspecError):
        return None
    return Head(sent.seq, sent.hash) if sent.topic == topic else None


def save(log: Path, topic: str, head: Head) -> None:
    """Replace what was there at once; the disk has it then. Raises ``OSError``."""
    fresh = log.with_name(f"{log.name}.sent.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(msgspec.json.encode(_Sent(topic, *head)))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(_place(log))


def _place(log: Path) -> Path:
    return log.with_name(f"{log.name}.sent")
