"""Bytes of one line in, an event or a rejection out. Total: never raises. Pure.

Two ways lead through this room and agree on every line (tests hold them to it):

    plain line   one decode in C, then a few tests of fixed shapes         most lines
    any other    decode to a dict, clean, split off what we do not know,   unknown fields, control
                 convert, and name what is wrong                           characters, bad lines,
                                                                           types by JSON Schema

The fast one only ever accepts; whatever makes it doubt goes the slow way, so each rule that
rejects is written once. A line with unknown fields pays for both. A line of eight fields: 2 us the
plain way, 7 us with an unknown field, 10 us by a JSON Schema, of which 1 us is the schema itself.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.core import events
from agent.core.controls import BACKSLASH, DEL, cleaned, may_hold_controls
from agent.core.diagnosis import UNREADABLE, Rejection, explain, refuse
from agent.core.events import Event, ExperimentResult, PerformanceMetrics, UnknownEvent
from agent.core.formats import (
    DIGITS,
    HEX_DIGITS,
    TIMESTAMP_SHAPES,
    UUID_SHAPE,
    canonical_uuid,
    epoch_s,
    is_canonical_uuid,
)
from agent.core.policy import SchemaPolicy
from agent.core.reasons import Reason
from agent.core.schemas import NO_SCHEMAS, CustomType, Schemas, plain_decoder

AHEAD_MAX_S: Final = 300.0
"""A timestamp further ahead of the reader's clock is suspect."""

_from_iso = datetime.fromisoformat  # bound once: the look-up costs as much as the call
_Fields = dict[str, Any]


class Decoded(Struct, gc=False):
    """An accepted line.

    Attributes:
        event: ``UnknownEvent`` is a line of an unknown type that the policy lets pass.
        suspect: The timestamp is more than ``AHEAD_MAX_S`` ahead or older than the policy allows.
        extras: Top-level fields that are none of ``event``, to be redacted and shipped like the
            rest.
        removed: Control characters that were taken out of strings and keys.
        cut: Redaction made a text longer than its field may be; what was over is gone.
    """

    event: Event
    suspect: bool = False
    extras: dict[str, Any] | None = None
    removed: int = 0
    cut: bool = False


_encode = msgspec.json.Encoder().encode
_any_object: Callable[[bytes], _Fields] = msgspec.json.Decoder(
    dict[str, events.json_at(2)]  # type: ignore[misc]
).decode
_UUID_REASONS: Final[dict[str, Reason]] = {
    "event_id": "event_id",
    "request_id": "schema",
    "experiment_id": "schema",
}
_ENTRIES_MAX: Final = events.METADATA_ENTRIES_MAX
_FIELD_NAMES: Final[dict[type[Event], frozenset[str]]] = {
    UnknownEvent: frozenset(UnknownEvent.__struct_fields__),
    events.CustomEvent: frozenset(events.CustomEvent.__struct_fields__),
    **{kind: frozenset({"type", *kind.__struct_fields__}) for kind in events.EVENT_TYPES.values()},
}
_NO_PARTS: Final[dict[str, type[events.Part]]] = {}


class Decoder:
    """Decode lines under one policy. Its only state is the last ``now_s`` and what follows of it:
    best called with one reading of the clock per chunk. ``schemas`` add types and replace some."""

    def __init__(self, policy: SchemaPolicy, schemas: Schemas | None = None) -> None:
        self._policy = policy
        self._custom = (schemas or NO_SCHEMAS).types
        self._plain = plain_decoder(self._custom)
        self._set_now(0.0)

    def decode(self, line: bytes, now_s: float) -> Decoded | Rejection:
        """Decode one line, without its newline; ``now_s`` is seconds since 1970 UTC. Total."""
        if (BACKSLASH in line or DEL in line or not line.isascii()) and may_hold_controls(line):
            return self._decode_doubtful(line, now_s)
        try:
            event = self._plain(line)
        except UNREADABLE:
            return self._decode_doubtful(line, now_s)
        event_id, request_id, kind = event.event_id, event.request_id, type(event)
        if (
            (event_id is not None and event_id.encode().translate(HEX_DIGITS) != UUID_SHAPE)
            or (request_id is not None and request_id.encode().translate(HEX_DIGITS) != UUID_SHAPE)
            or (kind is ExperimentResult and not is_canonical_uuid(event.experiment_id))
            or (kind is PerformanceMetrics and _total_too_small(event))
            or ((metadata := event.metadata) is not None and len(metadata) > _ENTRIES_MAX)
        ):
            return self._decode_doubtful(line, now_s)
        timestamp = event.timestamp
        suspect = timestamp is not None and self._suspect(timestamp, now_s)
        if suspect is None:
            return self._decode_doubtful(line, now_s)
        return Decoded(event, suspect) if suspect else Decoded(event)

    def _suspect(self, timestamp: str, now_s: float) -> bool | None:
        """Return whether the timestamp is too far from ``now_s``, None if it is malformed."""
        if now_s != self._now_s:
            self._set_now(now_s)
        if timestamp.encode().translate(DIGITS) in TIMESTAMP_SHAPES and (
            timestamp[-1] == "Z" or timestamp[-2] < "6"  # fromisoformat takes +00:99
        ):
            try:
                if self._oldest <= _from_iso(timestamp) <= self._latest:
                    return False
            except ValueError:
                pass  # out of range, or a leap second
        at_s = epoch_s(timestamp)
        return None if at_s is None else not self._oldest_s <= at_s <= self._latest_s

    def _set_now(self, now_s: float) -> None:
        age_max_s = self._policy.age_max_s
        self._now_s, self._latest_s = now_s, now_s + AHEAD_MAX_S
        self._latest = datetime.fromtimestamp(self._latest_s, UTC)
        self._oldest_s, self._oldest = float("-inf"), datetime.min.replace(tzinfo=UTC)
        if age_max_s is not None and now_s - age_max_s > self._oldest.timestamp():
            self._oldest_s = now_s - age_max_s
            self._oldest = datetime.fromtimestamp(self._oldest_s, UTC)

    def _decode_doubtful(self, line: bytes, now_s: float) -> Decoded | Rejection:
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
        decoded = self._convert(fields, kind, now_s, custom)
        if isinstance(decoded, Decoded):
            decoded.removed = removed
        elif kind is not UnknownEvent:
            return Rejection(decoded.reason, decoded.detail, name)
        return decoded

    def _convert(
        self, fields: _Fields, kind: type[Event], now_s: float, custom: CustomType | None
    ) -> Decoded | Rejection:
        known, extras, parts = _split(fields, kind)
        wrong = _canonicalise(known)
        if wrong is None and kind is not UnknownEvent:
            unknown = extras
            if custom is not None:
                unknown = {name: extras[name] for name in extras.keys() - custom.names}
            wrong = self._overfull(unknown, parts) if unknown or parts else None
        if wrong is not None:
            return wrong
        suspect: bool | None = False
        if (timestamp := known.get("timestamp")) is not None:
            suspect = self._suspect(timestamp, now_s) if isinstance(timestamp, str) else None
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
        return Decoded(event, suspect, extras or None)

    def _overfull(self, extras: _Fields, parts: dict[str, _Fields]) -> Rejection | None:
        size = sum(len(_encode(unknown)) for unknown in (extras, *parts.values()) if unknown)
        if size <= self._policy.extra_bytes_max:
            return None
        detail = f"unknown fields: {size} bytes, at most {self._policy.extra_bytes_max}"
        return Rejection("extra_too_large", detail)


def _total_too_small(event: PerformanceMetrics) -> bool:
    total = event.tokens_total
    return total is not None and (
        total < (event.tokens_input or 0) or total < (event.tokens_output or 0)
    )


def _too_many_entries(metadata: _Fields) -> bool:
    return (
        len(metadata) > events.METADATA_ENTRIES_MAX
        and len(metadata.keys() - events.COLLECTOR_KEYS) > events.METADATA_ENTRIES_MAX
    )


def _contradiction(event: Event) -> Rejection | None:
    if event.metadata is not None and _too_many_entries(event.metadata):
        return Rejection("schema", f"metadata: more than {events.METADATA_ENTRIES_MAX} entries")
    if type(event) is PerformanceMetrics and _total_too_small(event):
        return Rejection("schema", "tokens_total: less than tokens_input or tokens_output")
    return None


def _split(fields: _Fields, kind: type[Event]) -> tuple[_Fields, _Fields, dict[str, _Fields]]:
    """Return the fields that ``kind`` knows, the others, and the others inside of its parts."""
    names = _FIELD_NAMES[kind]
    known = fields.copy()
    extras = {name: known.pop(name) for name in fields if name not in names}
    parts = {}
    for name, part in events.PARTS.get(kind, _NO_PARTS).items():
        if isinstance(value := known.get(name), dict):
            inside = value.copy()
            if unknown := {k: inside.pop(k) for k in value if k not in part.__struct_fields__}:
                known[name], parts[name] = inside, unknown
    return known, extras, parts


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
