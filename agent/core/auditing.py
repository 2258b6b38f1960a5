"""What the audit log may say, how its records are chained, and whether a chain is whole. Pure.

A record is one line, a JSON object: ``seq``, ``at``, ``event``, the fields of the event, ``prev``
and, last, ``hash``. ``hash`` is the SHA-256 of all bytes of the line before ``,"hash":``, and
``prev`` is the hash of the line before, so no byte of any line can change without the rest of the
chain. No canonical form is needed: what is hashed is what is written.
"""

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec

EVENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "agent.started": ("version", "config_hash", "node"),
        "agent.stopped": ("unsettled_events",),
        "file.adopted": ("path", "client", "source", "generation", "offset", "why"),
        "file.refused": ("path", "reason", "detail"),
        "file.gone": ("source", "path", "unread_bytes"),
        "file.deleted": ("path", "client", "source", "size", "why", "by"),
        "directory.deleted": ("path", "by"),
        "generation.begun": (
            "source",
            "path",
            "client",
            "cause",
            "generation",
            "watermark",
            "resume_at",
        ),
        "checkpoint.reset": (
            "path",
            "client",
            "source",
            "generation",
            "watermark",
            "resume_at",
            "by",
        ),
        "breaker.changed": ("sink", "state", "reason"),
        "producer.retired": ("sink", "reason"),
        "spool.mode": ("sink", "mode", "reason"),
        "replay.begun": ("sink", "records", "by"),
        "replay.ended": ("sink", "records", "left", "by"),
        "spool.dropped": ("sink", "records"),
        "spool.lost": ("sink", "records"),
        "dead_letters.purged": ("records", "reason", "client", "since", "until", "by"),
        "dead_letters.replayed": ("records", "by"),
        "reload.adopted": ("what", "version"),
        "reload.refused": ("what", "key", "reason"),
        "dead_letters.counted": ("counts", "since"),
        "copy.skipped": ("after", "records"),
        "notes.lost": ("count", "events"),
        "chain.resumed": ("after", "torn"),
    }
)
"""Every event and its fields: a closed list, none of them payload."""

QUOTED = frozenset({"path", "client", "detail"})
"""Fields that quote what a client chose."""

BEGINNING = b'{"seq":'
"""Of every line."""

PROBLEMS_MAX = 20
"""How many are kept; all are counted."""

_HASH_CHARACTERS = 64
_BEFORE_HASH, _AFTER_HASH = b',"hash":"', b'"}'
_END_BYTES = len(_BEFORE_HASH) + _HASH_CHARACTERS + len(_AFTER_HASH)


class Note(Protocol):
    """Puts an event of ``EVENTS`` into the audit log. From any thread; never waits or raises."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


def unheard(event: str, /, **fields: object) -> None:
    """Stand in for a ``Note`` where nobody keeps an audit log."""


class Head(NamedTuple):
    """The last record of a chain: all that the next one must know of it."""

    seq: int
    hash: str


START = Head(0, "0" * _HASH_CHARACTERS)
"""What the first record of all follows."""


class Record(msgspec.Struct, frozen=True):
    """What every record has. ``sound``: its hash is the one of its bytes."""

    seq: int
    event: str
    prev: str
    hash: str
    sound: bool = False

    @property
    def head(self) -> Head:
        return Head(self.seq, self.hash)


def sealed(head: Head, at: str, event: str, fields: Mapping[str, object]) -> tuple[bytes, Head]:
    """Return the line, with its LF, that follows ``head``, and the new head."""
    record = {"seq": head.seq + 1, "at": at, "event": event, **fields, "prev": head.hash}
    body = msgspec.json.encode(record)[:-1]
    digest = sha256(body).hexdigest()
    line = body + _BEFORE_HASH + digest.encode() + _AFTER_HASH + b"\n"
    return line, Head(head.seq + 1, digest)


def parsed(line: bytes) -> Record | None:
    """Read ``line``, without its LF; None if it has not the shape of a record."""
    if not line[-_END_BYTES:].startswith(_BEFORE_HASH) or not line.endswith(_AFTER_HASH):
        return None
    try:
        record = _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    digest = sha256(line[:-_END_BYTES]).hexdigest()
    return msgspec.structs.replace(record, sound=digest == record.hash)


def last(data: bytes) -> tuple[Head | None, int]:
    """Return the last sound record of ``data``, the end of a log, and the bytes after its last LF.

    Those are a record that was torn by a crash.
    """
    *lines, torn = data.split(b"\n")
    for line in reversed(lines):
        record = parsed(line)
        if record is not None and record.sound:
            return record.head, len(torn)
    return None, len(torn)


class Problem(msgspec.Struct, frozen=True):
    """``line`` counts from 1."""

    file: str
    line: int
    what: str


class Chain:
    """Takes the lines of a log, oldest first, and remembers what is wrong with them.

    After a wrong line it goes on from there: one that was altered is not taken for the end.

    Attributes:
        first, head: The first and the last record there was.
        broken: How many lines are wrong; ``problems`` has the first ones.
        resumptions: How often a torn record was cut away after a crash.
        met: Whether ``expected`` is the hash of one of the records.
    """

    def __init__(self, expected: str | None = None) -> None:
        self._expected = expected
        self.first: Head | None = None
        self.head: Head | None = None
        self.records = 0
        self.resumptions = 0
        self.broken = 0
        self.problems: list[Problem] = []
        self.met = expected is None

    def take(self, line: bytes, file: str, number: int) -> None:
        """Take the next line, without its LF; ``file`` and ``number`` say where it is."""
        record = parsed(line)
        what = "is no record of an audit log" if record is None else self._problem(record)
        if what is not None:
            self.wrong(Problem(file, number, what))
        if record is None:
            return
        self.records += 1
        self.resumptions += record.event == "chain.resumed"
        self.met = self.met or (record.sound and record.hash == self._expected)
        self.head = record.head
        self.first = self.first or self.head

    def wrong(self, problem: Problem) -> None:
        self.broken += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def _problem(self, record: Record) -> str | None:
        if not record.sound:
            return f"record {record.seq} was altered: its hash is not that of its bytes"
        begins = record.seq == START.seq + 1
        before = START if begins and self.head is None else self.head
        if before is None or record.prev == before.hash:
            return None
        if record.seq <= before.seq:
            return f"record {record.seq} stands after record {before.seq}"
        if missing := record.seq - before.seq - 1:
            return f"{missing} missing before record {record.seq}"
        return f"record {record.seq} does not follow the one before it: either was altered"


_DECODER = msgspec.json.Decoder(Record)
