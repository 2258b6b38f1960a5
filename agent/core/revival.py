"""A dead letter becomes an event again, once what was wrong with it is mended. Pure.

The same steps as for a line: decode, redact, record. What is decoded is what the dead letter has,
which was redacted when it was made: so is the event. Its place in the file, and so its header
``source``, are the line's own.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.keys import uuid5
from agent.core.record import KafkaRecord, Origin, Recorder, RecordPolicy
from agent.core.redact import Redaction, Redactor

REPLAY_OF, REPLAYED_AT = "replay_of", "replayed_at"
"""Headers of an event that was a dead letter."""
REFUSED: Final = "refused_"
"""What reasons begin with where the value is an event already."""
STORE: Final = "store"
"""What ids begin with where the letter is on this node, and not in the topic yet."""


class Letter(Struct, frozen=True, kw_only=True):
    """A dead letter, wherever it lies.

    Attributes:
        id: Where: ``<partition>:<kafka_offset>`` in the topic, ``store:<seq>`` on this node.
        timestamp_ms: When its line was read, since the epoch.
    """

    id: str
    timestamp_ms: int
    value: bytes
    headers: dict[str, bytes]

    def header(self, name: str) -> str:
        return self.headers.get(name, b"").decode(errors="replace")

    @property
    def reason(self) -> str:
        return self.header("reason")

    @property
    def client(self) -> str:
        """Return who wrote the line; "" where agents did not say so yet."""
        return self.header("client") or self._own("client")

    @property
    def node(self) -> str:
        return self.header("collector_id") or self._own("collector_id")

    @property
    def place(self) -> str:
        """Return what copies of one dead letter have in common, and no others."""
        return f"{self.node};{self.header('source')}"

    def _own(self, key: str) -> str:
        """Return what an event that was refused says of itself."""
        if not self.reason.startswith(REFUSED):
            return ""
        try:
            said = msgspec.json.decode(self.value, type=dict[str, Any]).get("metadata")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        value = said.get(key) if isinstance(said, dict) else None
        return value if isinstance(value, str) else ""


class Wanted(NamedTuple):
    """Which dead letters; None: whatever they have there. Times in ms since the epoch."""

    reason: str | None = None
    client: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def everything(self) -> bool:
        return self == Wanted()

    def matches(self, letter: Letter) -> bool:
        return (
            self.reason in {None, letter.reason}
            and self.client in {None, letter.client}
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
        )


class Revived(NamedTuple):
    record: KafkaRecord
    event_id: str
    event: Decoded


class Dead(NamedTuple):
    """Why a dead letter stays one. ``why`` is a reason of rejection, or one of ours."""

    why: str
    detail: str


class Reviver:
    """Makes events of dead letters by the rules that are in force now.

    Args:
        policy: As of the agent; ``hostname`` is the node's that a letter comes from.
        topic: Of the dead letters, for the header ``replay_of``.
    """

    def __init__(
        self,
        decoder: Decoder,
        redaction: Redaction | None,
        policy: RecordPolicy,
        *,
        topic: str,
        rfc3339: Callable[[float], str],
    ) -> None:
        self._decoder = decoder
        self._redactor = None if redaction is None else Redactor(redaction)
        self._policy = policy
        self._topic = topic
        self._rfc3339 = rfc3339

    def revive(self, letter: Letter, now_s: float) -> Revived | Dead:
        """Return the event, or why there is none. Total."""
        place = _place(letter.header("source"))
        if place is None:
            return Dead("no_source", "it has no header source: no agent made it")
        if "cut" in letter.headers:
            return Dead("cut", "not all of the line is in it")
        if _has_no_payload(letter):
            return Dead("no_payload", "only length and hash of the line are in it")
        if not letter.client:
            return Dead("no_client", "it does not say whose it is: an older agent made it")
        found = self._decoded(letter)
        if isinstance(found, Rejection):
            return Dead(found.reason, found.detail)
        source, generation, start, end = place
        if found.event.event_id is None:
            found.event.event_id = uuid5(f"replay\0{letter.place}".encode(*_CODEC))
        recorder = self._recorder(letter, source, generation)
        read_text = self._rfc3339(letter.timestamp_ms / 1000)
        key, value, headers = recorder.record(found, letter.value, start, end, read_text)
        headers.append((REPLAY_OF, f"{self._topic}/{letter.id}".encode()))
        headers.append((REPLAYED_AT, self._rfc3339(now_s).encode()))
        assert found.event.event_id is not None
        return Revived((key, value, headers), found.event.event_id, found)

    def _decoded(self, letter: Letter) -> Decoded | Rejection:
        found = self._decoder.decode(letter.value, letter.timestamp_ms / 1000)
        if isinstance(found, Rejection) or self._redactor is None:
            return found
        return self._redactor.event(found)

    def _recorder(self, letter: Letter, source: str, generation: int) -> Recorder:
        policy = msgspec.structs.replace(self._policy, hostname=letter.node)
        origin = Origin(
            node=letter.node, client=letter.client, source_id=source, generation=generation,
            inode=0, birth_ns=None, inode_generation=None,
        )  # fmt: skip
        return Recorder(policy, origin, self._redactor)


def _place(source: str) -> tuple[str, int, int, int] | None:
    version, *parts = source.split(";")
    if version != "1" or len(parts) != _PARTS:
        return None
    if not all(part.isascii() and part.isdecimal() for part in parts[1:]):
        return None
    return parts[0], int(parts[1]), int(parts[2]), int(parts[3])


def _has_no_payload(letter: Letter) -> bool:
    try:
        return msgspec.json.decode(letter.value, type=dict[str, Any]).keys() == {"length", "hash"}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


_PARTS: Final = 4
_CODEC: Final = ("utf-8", "surrogatepass")
