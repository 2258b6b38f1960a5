"""Lines in, an event or a rejection for each out. Total: never raises. Pure.

Two ways lead through this room and agree on every line (tests hold them to it):

    plain line   many at once, see ``core/plain``                          most lines
    any other    decode to a dict, clean, split off what we do not know,   unknown fields, control
                 convert, and name what is wrong                           characters, bad lines,
                                                                           types by JSON Schema

The fast one only ever accepts; whatever makes it doubt goes the slow way, so each rule that
rejects is written once. A line with unknown fields pays for both: 5.5 us, where the plain way takes
1.3 (``scripts/bench/stages``, ``--extras``).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.core import events
from agent.core.controls import cleaned, may_hold_controls
from agent.core.diagnosis import UNREADABLE, Rejection, explain, refuse
from agent.core.events import Event, KnownEvent, PerformanceMetrics, UnknownEvent
from agent.core.formats import canonical_uuid, is_canonical_uuid, is_hex
from agent.core.plain import (
    Columns,
    all_complete,
    all_right,
    is_complete,
    plain_events,
    right,
    total_too_small,
)
from agent.core.policy import SchemaPolicy
from agent.core.reasons import Reason
from agent.core.recency import Recency
from agent.core.schemas import NO_SCHEMAS, CustomType, Schemas, plain_decoder

_Fields = dict[str, Any]


class Decoded(Struct, gc=False):
    """An accepted line whose event is not complete, or of which there is more to say than that.

    Attributes:
        event: ``UnknownEvent`` is a line of an unknown type that the policy lets pass.
        suspect: The timestamp is too far ahead or older than the policy allows: ``core/recency``.
        extras: Top-level fields that are none of ``event``, to be redacted and shipped like the
            rest.
        removed: Control characters that were taken out of strings and keys.
        cut: Redaction made a text longer than its field may be; what was over is gone.
        untimed: The line has no timestamp; the one of the event is the time of reading.
    """

    event: Event
    suspect: bool = False
    extras: dict[str, Any] | None = None
    removed: int = 0
    cut: bool = False
    untimed: bool = False

    @property
    def bare(self) -> bool:
        """Return whether there is nothing more to say of it by now."""
        said = self.suspect or self.extras or self.removed or self.cut or self.untimed
        return not said and is_complete(self.event)


_encode = msgspec.json.Encoder().encode
_any_object: Callable[[bytes], _Fields] = msgspec.json.Decoder(
    dict[str, events.json_at(2)]  # type: ignore[misc]
).decode
_UUID_REASONS: Final[dict[str, Reason]] = {
    "event_id": "event_id",
    "request_id": "schema",
    "experiment_id": "schema",
}
_FIELD_NAMES: Final[dict[type[Event], frozenset[str]]] = {
    UnknownEvent: frozenset(UnknownEvent.__struct_fields__),
    events.CustomEvent: frozenset(events.CustomEvent.__struct_fields__),
    **{kind: frozenset({"type", *kind.__struct_fields__}) for kind in events.EVENT_TYPES.values()},
}
_PARTS: Final = {
    kind: {name: frozenset(part.__struct_fields__) for name, part in parts.items()}
    for kind, parts in events.PARTS.items()
}
_NO_PARTS: Final[dict[str, frozenset[str]]] = {}
_LONGER_MAX: Final = 6
"""Times that a value may be longer once it was decoded and encoded again: 1e16 is nearly five."""


class Decoder:
    """Decode lines under one policy. ``schemas`` add types and replace some. Best called with one
    reading of the clock per chunk: what follows of it is kept."""

    def __init__(self, policy: SchemaPolicy, schemas: Schemas | None = None) -> None:
        self._policy = policy
        self._custom = (schemas or NO_SCHEMAS).types
        self._plain = plain_decoder(self._custom)
        self._recency = Recency(policy.age_max_s)

    def decode(self, line: bytes, now_s: float) -> Decoded | Rejection:
        """Decode one line. See ``decode_all``."""
        (found,) = self.decode_all((line,), now_s)
        return found if isinstance(found, Decoded | Rejection) else Decoded(found)

    def decode_all(self, lines: Sequence[bytes], now_s: float) -> list[Event | Decoded | Rejection]:
        """Decode each of ``lines``, without their newlines. Total.

        ``now_s`` is seconds since 1970 UTC. An event that is not wrapped is complete, and there is
        nothing more to say of it: ``core/plain``.
        """
        self._recency.set_now(now_s)
        plain = plain_events(lines, self._plain)
        events = [event for event in plain if event is not None]
        columns = Columns.of(events)
        if not all_right(events, columns, self._recency):
            return [self._one(event, line) for event, line in zip(plain, lines, strict=True)]
        if len(events) == len(plain) and all_complete(columns):
            return [*events]
        return [
            self._decode_doubtful(line) if event is None else _wrapped(event)
            for event, line in zip(plain, lines, strict=True)
        ]

    def _one(self, event: KnownEvent | None, line: bytes) -> Event | Decoded | Rejection:
        if event is None or not right(event):
            return self._decode_doubtful(line)
        suspect = event.timestamp is not None and self._recency.suspect(event.timestamp)
        if suspect is None:
            return self._decode_doubtful(line)
        return Decoded(event, suspect) if suspect else _wrapped(event)

    def _decode_doubtful(self, line: bytes) -> Decoded | Rejection:
        try:
            fields = _any_object(line)
        except UNREADABLE:
            return refuse(line)
        removed = 0
        if may_hold_controls(line):
            fields, removed = cleaned(fields)
        name = fields.get("type")
        if not isinstance(name, str):
            return Rejection("schema", "type: required" if name is None else "type: expected str")
        custom = self._custom.get(name)
        kind: type[Event] = events.EVENT_TYPES.get(name, UnknownEvent)
        if custom is not None:
            kind = events.CustomEvent
        elif kind is UnknownEvent and self._policy.unknown_types == "dead_letter":
            return Rejection("unknown_type", "type: not one of the known types")
        elif fields.get("session_id") is None and "session" in fields:
            fields["session_id"] = fields.pop("session")
        decoded = self._convert(fields, kind, custom, len(line))
        if isinstance(decoded, Decoded):
            decoded.removed = removed
        elif kind is not UnknownEvent:
            return Rejection(decoded.reason, decoded.detail, name)
        return decoded

    def _convert(
        self, fields: _Fields, kind: type[Event], custom: CustomType | None, line_bytes: int
    ) -> Decoded | Rejection:
        known, extras, parts = _split(fields, kind)
        texts = _unhashed(known)
        wrong = _canonicalise(known)
        may_overfill = _LONGER_MAX * line_bytes > self._policy.extra_bytes_max
        if wrong is None and may_overfill and kind is not UnknownEvent:
            unknown = extras
            if custom is not None:
                unknown = {name: extras[name] for name in extras.keys() - custom.names}
            wrong = self._overfull(unknown, parts) if unknown or parts else None
        if wrong is not None:
            return wrong
        suspect: bool | None = False
        if (timestamp := known.get("timestamp")) is not None:
            suspect = self._recency.suspect(timestamp) if isinstance(timestamp, str) else None
        if suspect is None:
            return Rejection("schema", "timestamp: not RFC 3339 with an offset")
        try:
            event = msgspec.convert(known, kind)
        except msgspec.ValidationError as error:
            return Rejection("schema", explain(str(error)))
        wrong = _contradiction(event)
        if wrong is None and custom is not None and (detail := custom.wrong(fields)) is not None:
            wrong = Rejection("schema", detail)
        if wrong is not None:
            return wrong
        for name in parts:
            setattr(event, name, fields[name])
        return Decoded(event, suspect, {**extras, **texts} or None)

    def _overfull(self, extras: _Fields, parts: dict[str, _Fields]) -> Rejection | None:
        size = sum(len(_encode(unknown)) for unknown in (extras, *parts.values()) if unknown)
        if size <= self._policy.extra_bytes_max:
            return None
        detail = f"unknown fields: {size} bytes, at most {self._policy.extra_bytes_max}"
        return Rejection("extra_too_large", detail)


def _wrapped(event: KnownEvent) -> Event | Decoded:
    return event if is_complete(event) else Decoded(event)


def _too_many_entries(metadata: _Fields) -> bool:
    return (
        len(metadata) > events.METADATA_ENTRIES_MAX
        and len(metadata.keys() - events.COLLECTOR_KEYS) > events.METADATA_ENTRIES_MAX
    )


def _contradiction(event: Event) -> Rejection | None:
    if event.metadata is not None and _too_many_entries(event.metadata):
        return Rejection("schema", f"metadata: more than {events.METADATA_ENTRIES_MAX} entries")
    if type(event) is PerformanceMetrics and total_too_small(event):
        return Rejection("schema", "tokens_total: less than tokens_input or tokens_output")
    return None


def _split(fields: _Fields, kind: type[Event]) -> tuple[_Fields, _Fields, dict[str, _Fields]]:
    """Return the fields that ``kind`` knows, the others, and the others inside of its parts."""
    names = _FIELD_NAMES[kind]
    known = fields.copy()
    extras = {name: known.pop(name) for name in fields if name not in names}
    parts = {}
    for name, inner in _PARTS.get(kind, _NO_PARTS).items():
        value = known.get(name)
        if isinstance(value, dict) and not inner.issuperset(value):
            known[name] = {k: v for k, v in value.items() if k in inner}
            parts[name] = {k: v for k, v in value.items() if k not in inner}
    return known, extras, parts


def _unhashed(known: _Fields) -> _Fields:
    """Take out of ``known`` what is named as a hash and is none: it is text like any other."""
    value = known.get("prompt_hash")
    return (
        {}
        if not isinstance(value, str) or is_hex(value)
        else {"prompt_hash": known.pop("prompt_hash")}
    )


def _canonicalise(known: _Fields) -> Rejection | None:
    """Bring the UUIDs among ``known`` into canonical form, in place."""
    for name, reason in _UUID_REASONS.items():
        value = known.get(name)
        if value is None or (isinstance(value, str) and is_canonical_uuid(value)):
            continue
        canonical = canonical_uuid(value) if isinstance(value, str) else None
        if canonical is None:
            return Rejection(reason, f"{name}: not a UUID")
        known[name] = canonical
    return None
