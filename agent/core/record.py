"""An event or a dead letter becomes the parts of a Kafka record: key, value, headers. Pure.

    complete    an event gets the id and the time that its line lacks
    (writing, redact: as JSON, without personal data)
    records     the agent's own metadata, key and headers around it

A value is what was decoded and encoded again, never the bytes of the line: a second reader could
read those differently (duplicate keys). In ``metadata`` the agent's own keys take the place of what
the line has there, or one pod could pose as another.

Most events need nothing of their own: they are not wrapped in ``Decoded``, and ``records`` writes
them as bytes at once. All others go the way of ``record``; tests hold the two to the same bytes.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.core import events
from agent.core.body import TABLE_MAX, VARINTS, Headers, body, header, sized, varint
from agent.core.decode import Decoded
from agent.core.diagnosis import Rejection
from agent.core.events import CustomEvent, Event, UnknownEvent
from agent.core.keys import key_of, uuid5
from agent.core.plain import TRACEPARENT, is_complete
from agent.core.redact import FAILED, Redactor
from agent.core.shown import shown_text
from agent.core.writing import METADATA, PLAIN, Found, Written, are_plain, write

KafkaRecord = tuple[bytes | None, bytes, Headers]
"""Key, value, headers. A plain tuple: a named one costs as much as the headers."""

EVENT_TYPE_MAX: Final = 128
"""Characters of the header ``event_type``, where the type is not one of ours."""


class Origin(Struct, frozen=True, kw_only=True):
    """Where lines come from: one generation of one file. See ``core/identity``."""

    node: str
    client: str
    source_id: str
    generation: int
    inode: int
    birth_ns: int | None
    inode_generation: int | None


class RecordPolicy(Struct, frozen=True, kw_only=True):
    """What all records of one agent share.

    Attributes:
        version: Of the agent.
        hostname: Of the host that the node runs on.
        key: ``event_id``, ``client``, ``none``, or the name of any top-level field.
        dead_letter_bytes_max: Of the value of a dead letter.
        hash_key: At most 64 bytes; keys the hash that stands for a line which is not UTF-8. Without
            it anybody can test a guess against the hash.
    """

    version: str
    hostname: str
    key: str = "event_id"
    dead_letter_bytes_max: int = 768 * 1024
    hash_key: bytes = b""


class Recorder:
    """Make records of the lines of one origin.

    ``overwritten`` counts keys in ``metadata`` that a line had and the agent replaced. ``redactor``
    redacts dead letters; whoever calls ``record`` has redacted the event with it.
    """

    def __init__(
        self, policy: RecordPolicy, origin: Origin, redactor: Redactor | None = None
    ) -> None:
        self.overwritten = 0
        self._redactor = redactor
        self._policy = policy
        self._origin = origin
        own = {
            "collector_id": origin.node,
            "collector_version": policy.version,
            "hostname": policy.hostname,
            "client": origin.client,
        }
        assert own.keys() == events.COLLECTOR_KEYS, "decode leaves them out of its count"
        self._own = METADATA + _encode(own)[1:-1]
        self._whose = [("client", origin.client.encode()), ("collector_id", origin.node.encode())]
        self._by_id = policy.key == "event_id"
        self._key_of = key_of(policy.key, origin.client)
        self._source = f"1;{origin.source_id};{origin.generation};".encode()
        self._tails = _tails(None if redactor is None else redactor.header)
        # No part can run into the next one: the node is a name, the others are numbers.
        parts = (origin.inode, origin.birth_ns, origin.inode_generation, origin.generation)
        self._id_prefix = "\0".join((origin.node, *map(str, parts), "")).encode()

    # ---- many lines

    def complete(
        self,
        found: list[Found],
        lines: Sequence[bytes],
        places: Sequence[tuple[int, int]],
        now_text: str,
    ) -> None:
        """Give each event an id and a time, in place, and wrap those that need more than most.

        Args:
            found: Of each line.
            lines: As they stood in the file, newline left off.
            places: Byte offset of each, and that behind its newline.
            now_text: RFC 3339; the time of reading.
        """
        if are_plain(found):
            return
        for at, (one, line, (start, _)) in enumerate(zip(found, lines, places, strict=True)):
            if isinstance(one, Decoded):
                if not is_complete(one.event):
                    self._complete(one, line, start, now_text)
                found[at] = one.event if one.bare and type(one.event) in PLAIN else one

    def records(
        self,
        found: Sequence[Event | Decoded],
        written: Sequence[Written],
        places: Sequence[tuple[int, int]],
    ) -> tuple[list[bytes | None], list[bytes]]:
        """Return key and body of the record of each event.

        Args:
            found: Events that were completed, and redacted.
            written: What ``write`` made of each.
            places: As for ``complete``.
        """
        by_id, key_of, tails, source = self._by_id, self._key_of, self._tails, self._source
        alone, source_bytes = _VERSION + self._own, len(source)
        behind_more = alone + b","
        keys: list[bytes | None] = []
        bodies: list[bytes] = []
        for one, (front, text), place in zip(found, written, places, strict=True):
            if not isinstance(one, Decoded):
                event, extras = one, None
            else:
                if not _has_usual_headers(one):
                    key, value, headers = self._record(one, (front, text), *place)
                    keys.append(key)
                    bodies.append(body(key, value, headers))
                    continue
                event, extras = one.event, one.extras
            if by_id:
                key = (event.event_id or "").encode()  # or never: it is complete
                key_size, key_bytes = _ID_SIZE, key
            else:
                key = key_of(event, extras)
                key_size, key_bytes = b"", sized(key)
            own = alone if text[0] == _CLOSED else behind_more
            value_bytes = len(front) + len(own) + len(text)
            where = b"%d;%d" % place
            parts = (
                key_size, key_bytes,
                VARINTS[value_bytes] if value_bytes < TABLE_MAX else varint(value_bytes),
                front, own, text,
                tails[type(event)], VARINTS[source_bytes + len(where)], source, where,
            )  # fmt: skip
            bodies.append(b"".join(parts))
            keys.append(key)
        return keys, bodies

    # ---- one line

    def record(
        self, decoded: Event | Decoded, line: bytes, start: int, end: int, now_text: str
    ) -> KafkaRecord:
        """Complete ``decoded`` in place, after it was redacted, and make its record.

        Args:
            decoded: What ``line`` was decoded to; see ``core.decode``.
            line: As it stood at ``[start, end)``, newline left off; only a missing id needs it.
            start: Byte offset of the line.
            end: Byte offset after its newline.
            now_text: RFC 3339; the time of reading, for a line without a timestamp.
        """
        found: list[Found] = [decoded if isinstance(decoded, Decoded) else Decoded(decoded)]
        self.complete(found, (line,), ((start, end),), now_text)
        (one,) = found
        assert not isinstance(one, Rejection), "nothing is rejected here"
        return self._record(one, write(one), start, end)

    def _record(self, one: Event | Decoded, written: Written, start: int, end: int) -> KafkaRecord:
        decoded = one if isinstance(one, Decoded) else Decoded(one)
        event, extras = decoded.event, decoded.extras
        assert event.metadata is not None, "complete it first"
        headers = [
            _EVENT_TYPE.get(type(event)) or _other_type(event, extras),
            _version(event),
        ]
        if decoded.untimed:
            headers.append(_TIMESTAMP_AGENT)
        elif decoded.suspect:
            headers.append(_TIMESTAMP_SUSPECT)
        if type(event) is UnknownEvent:
            headers.append(_SCHEMA_UNKNOWN)
        if self._redactor is not None:
            headers.append(self._redactor.header)
            if decoded.cut:
                headers.append(("cut", b"%d" % (end - start - 1)))
        headers.append(("source", b"%b%d;%d" % (self._source, start, end)))
        for brought in (event.metadata, extras):
            if brought and TRACEPARENT in brought:
                _trace(brought[TRACEPARENT], headers)
        version = _VERSION if event.schema_version is None else b""
        comma = b"," if event.metadata else b""
        whole = b"".join((written[0], version, self._own, comma, written[1]))
        return self._key_of(event, extras), whole, headers

    def _complete(self, decoded: Decoded, line: bytes, start: int, now_text: str) -> None:
        event = decoded.event
        if event.event_id is None:
            event.event_id = self.derived_id(line, start)
        if event.timestamp is None:
            event.timestamp, decoded.untimed = now_text, True
        if event.schema_version == events.SCHEMA_VERSION:
            event.schema_version = None
        if event.metadata is None:
            event.metadata = {}
        for name in events.COLLECTOR_KEYS & event.metadata.keys():
            del event.metadata[name]
            self.overwritten += 1

    def derived_id(self, line: bytes, start: int) -> str:
        """Return the UUIDv5 (RFC 9562, 5.5) of this line at this place."""
        return uuid5(b"%b%d\0%b" % (self._id_prefix, start, line))

    def dead_letter(
        self, line: bytes, rejection: Rejection, start: int, end: int, length: int | None = None
    ) -> KafkaRecord:
        """Make the record of a line that was rejected.

        ``length`` is given where ``line`` is only the beginning of what was read: bytes of the
        whole. The key is the place of the line, so copies of one dead letter share it.
        """
        whole = len(line) if length is None else length
        place = b"%b%d;%d" % (self._source, start, end)
        bytes_max = self._policy.dead_letter_bytes_max
        shown = shown_text(line, rejection, self._redactor, bytes_max, torn=whole > len(line))
        if shown is FAILED:
            rejection = FAILED
        headers: Headers = [
            ("reason", rejection.reason.encode()),
            ("detail", rejection.detail.encode()),
            ("source", place),
            *self._whose,
        ]
        if rejection.event_type is not None:
            headers.append(("event_type", rejection.event_type.encode()))
        if not isinstance(shown, tuple):
            digest = blake2b(line, key=self._policy.hash_key, digest_size=16).hexdigest()
            return place, _encode({"length": whole, "hash": digest}), headers
        if self._redactor is not None:
            headers.append(self._redactor.header)
        text, cut = shown
        if cut:
            headers.append(("cut", b"%d" % whole))
        return place, text.encode(), headers


@lru_cache(maxsize=8)
def _tails(redaction: tuple[str, bytes] | None) -> dict[type[Event], bytes]:
    """Return the headers of most events of each type, but for the content of the last one.

    The same for all origins: an agent has a recorder for each of many files.
    """
    own = [_VERSION_DEFAULT] if redaction is None else [_VERSION_DEFAULT, redaction]
    count, source = VARINTS[len(own) + 2], header("source", b"")[:-1]
    return {
        kind: b"".join((count, header(*name), *(header(*one) for one in own), source))
        for kind, name in _EVENT_TYPE.items()
    }


def _has_usual_headers(one: Decoded) -> bool:
    """Return whether the record of a complete event has the headers that most of its type have."""
    event, extras = one.event, one.extras
    return (
        not (one.suspect or one.cut or one.untimed)
        and is_complete(event)
        and (extras is None or TRACEPARENT not in extras)
        and type(event) in PLAIN
    )


def _trace(value: Any, headers: Headers) -> None:
    """Pass a W3C trace context on (level 1, 3.2.2): the last valid one, once, behind all others."""
    if isinstance(value, str) and _TRACEPARENT.fullmatch(value):
        headers[:] = [header for header in headers if header[0] != "traceparent"]
        headers.append(("traceparent", value.encode()))


def _version(event: Event) -> tuple[str, bytes]:
    version = event.schema_version
    return _VERSION_DEFAULT if version is None else ("schema_version", version.encode())


def _other_type(event: Event, extras: dict[str, Any] | None) -> tuple[str, bytes]:
    if type(event) is CustomEvent:
        return "event_type", event.type.encode()
    name = extras.get("type") if extras else None
    return "event_type", (name if isinstance(name, str) else "")[:EVENT_TYPE_MAX].encode()


_encode = msgspec.json.Encoder().encode
_EVENT_TYPE: Final[dict[type[Event], tuple[str, bytes]]] = {
    kind: ("event_type", name.encode()) for name, kind in events.EVENT_TYPES.items()
}
_VERSION_DEFAULT: Final = ("schema_version", events.SCHEMA_VERSION.encode())
_VERSION: Final = b',"schema_version":"%b"' % events.SCHEMA_VERSION.encode()
"""Not written with an event: most have none of their own."""
_CLOSED: Final = ord("}")
_ID_SIZE: Final = VARINTS[36]
_TIMESTAMP_AGENT: Final = ("timestamp_source", b"agent")
_TIMESTAMP_SUSPECT: Final = ("timestamp_suspect", b"1")
_SCHEMA_UNKNOWN: Final = ("schema", b"unknown")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
