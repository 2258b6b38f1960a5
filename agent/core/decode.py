"""Bytes of one line in, an event or a rejection out. Total: never raises. Pure.

Two ways lead through this room and agree on every line (tests hold them to it):

    plain line   one decode in C, then a few tests of fixed shapes         most lines
    any other    decode to a dict, clean, split off what we do not know,   unknown fields, control
                 convert, and name what is wrong                           characters, bad lines

The fast one only ever accepts; whatever makes it doubt goes the slow way, so each rule that
rejects is written once. A line with unknown fields pays for both.

``Rejection.detail`` is made of our own words and the names of known fields. A message of msgspec
is read for what was expected and never passed on: it can quote the payload.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from agent.core import events
from agent.core.events import Event, ExperimentResult, KnownEvent, PerformanceMetrics, UnknownEvent
from agent.core.policy import SchemaPolicy
from agent.core.reasons import Reason

AHEAD_MAX_S: Final = 300.0
"""A timestamp further ahead of the reader's clock is suspect."""


_Fields = dict[str, Any]


class Rejection(Struct, frozen=True):
    """Why a line cannot be an event.

    ``detail`` is for people, and free of payload; ``event_type`` is one of the known ones or None.
    """

    reason: Reason
    detail: str
    event_type: str | None = None


class Decoded(Struct, gc=False):
    """An accepted line.

    Attributes:
        event: ``UnknownEvent`` is a line of an unknown type that the policy lets pass.
        suspect: The timestamp is more than ``AHEAD_MAX_S`` ahead or older than the policy allows.
        extras: Unknown top-level fields, to be redacted and shipped like the rest.
        removed: Control characters that were taken out of strings and keys.
    """

    event: Event
    suspect: bool = False
    extras: dict[str, Any] | None = None
    removed: int = 0


_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)  # a UnicodeDecodeError is a ValueError

_UUID_TABLE = bytes.maketrans(b"0123456789abcdef", b"0" * 16)
_UUID_SHAPE = b"00000000-0000-0000-0000-000000000000"
_UUID_LENIENT = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}(?:\1[0-9a-f]{4}){2}\1[0-9a-f]{12}")

_from_iso = datetime.fromisoformat  # bound once: the look-up costs as much as the call
_DIGITS_TABLE = bytes.maketrans(b"0123456789", b"0" * 10)
_TIMESTAMP_SHAPES = frozenset(
    b"0000-00-00T00:00:00" + fraction + offset
    for fraction in (b"", *(b"." + b"0" * digits for digits in range(1, 10)))
    for offset in (b"Z", b"+00:00", b"-00:00")
)
_TIMESTAMP = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]"
    r"([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(\.[0-9]+)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)

_BACKSLASH, _DEL = 0x5C, 0x7F
_C1_RAW = re.compile(rb"\xc2[\x80-\x9f]")
_ESCAPED = re.compile(rb"\\(?:[bf]|u00(?:0[0-8bcefBCEF]|1[0-9a-fA-F]|7[fF]|[89][0-9a-fA-F]))")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_encode = msgspec.json.Encoder().encode
_any_object: Callable[[bytes], _Fields] = msgspec.json.Decoder(
    dict[str, events.json_at(2)]  # type: ignore[misc]
).decode
_TOO_DEEP: Final = Rejection("too_deep", f"nested deeper than {events.DEPTH_MAX}")
_UUID_REASONS: Final[dict[str, Reason]] = {
    "event_id": "event_id",
    "request_id": "schema",
    "experiment_id": "schema",
}
_ENTRIES_MAX: Final = events.METADATA_ENTRIES_MAX
_FIELD_NAMES: Final[dict[type[Event], frozenset[str]]] = {
    UnknownEvent: frozenset(UnknownEvent.__struct_fields__),
    **{kind: frozenset({"type", *kind.__struct_fields__}) for kind in events.EVENT_TYPES.values()},
}
_KNOWN_NAMES: Final = frozenset[str]().union(
    *_FIELD_NAMES.values(),
    *(part.__struct_fields__ for parts in events.PARTS.values() for part in parts.values()),
)
_NO_PARTS: Final[dict[str, type[events.Part]]] = {}
_MISSING = re.compile(r"Object missing required field `([a-z_]+)`")
_PATH = re.compile(r" - at `\$((?:\.[a-z_]+|\[[0-9]+\]|\[\.\.\.\])*)`\Z")
_EXPECTED = re.compile(
    r"Expected `([a-z |]+)`(?:, got `[a-z]+`)?"
    r"((?: of length)? [<>]=? -?[0-9]+(?:\.[0-9]+)?)?(?: - at `|\Z)"
)


def epoch_s(timestamp: str) -> float | None:
    """Return seconds since 1970 UTC of an RFC 3339 timestamp with offset, None if it is not one.

    RFC 3339, 5.6: lower-case t and z are allowed, and so is second 60. The year 0000 counts as
    the year 4, the first leap year that Python knows.
    """
    match = _TIMESTAMP.fullmatch(timestamp)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, off_hours, off_minutes = match.groups()
    try:
        date = datetime(int(year) or 4, int(month), int(day), int(hour), int(minute), tzinfo=UTC)
    except ValueError:
        return None
    offset_s = 0
    if sign:
        offset_s = int(off_hours) * 3600 + int(off_minutes) * 60
    whole = date.timestamp() + int(second) - (offset_s if sign == "+" else -offset_s)
    return whole + float(fraction) if fraction else whole


def canonical_uuid(text: str) -> str | None:
    """Return a UUID in canonical lower case, None if ``text`` is none.

    Accepted in either case, with all of its four hyphens or without any.
    """
    lower = text.lower()
    if not lower.isascii() or _UUID_LENIENT.fullmatch(lower) is None:
        return None
    bare = lower.replace("-", "")
    return f"{bare[:8]}-{bare[8:12]}-{bare[12:16]}-{bare[16:20]}-{bare[20:]}"


class Decoder:
    """Decode lines under one policy. Its only state is the last ``now_s`` and what follows of it:
    best called with one reading of the clock per chunk."""

    def __init__(self, policy: SchemaPolicy) -> None:
        self._policy = policy
        self._plain = msgspec.json.Decoder(KnownEvent).decode
        self._set_now(0.0)

    def decode(self, line: bytes, now_s: float) -> Decoded | Rejection:
        """Decode one line, without its newline; ``now_s`` is seconds since 1970 UTC. Total."""
        # An integer, because ``b"x" in line`` costs five times as much.
        if (_BACKSLASH in line or _DEL in line or not line.isascii()) and _may_hold_controls(line):
            return self._decode_doubtful(line, now_s)
        try:
            event = self._plain(line)
        except _ERRORS:
            return self._decode_doubtful(line, now_s)
        event_id, request_id, kind = event.event_id, event.request_id, type(event)
        if (
            (event_id is not None and event_id.encode().translate(_UUID_TABLE) != _UUID_SHAPE)
            or (
                request_id is not None and request_id.encode().translate(_UUID_TABLE) != _UUID_SHAPE
            )
            or (kind is ExperimentResult and _not_canonical(event.experiment_id))
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
        if timestamp.encode().translate(_DIGITS_TABLE) in _TIMESTAMP_SHAPES and (
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
        except _ERRORS:
            return _refuse(line)
        removed = 0
        if _may_hold_controls(line):
            fields, removed = _cleaned(fields)
        if fields.get("session_id") is None and "session" in fields:
            fields["session_id"] = fields.pop("session")
        name = fields.get("type")
        if not isinstance(name, str):
            return Rejection("schema", "type: required" if name is None else "type: expected str")
        kind: type[Event] = events.EVENT_TYPES.get(name, UnknownEvent)
        if kind is UnknownEvent and self._policy.unknown_types == "dead_letter":
            return Rejection("unknown_type", "type: not one of the known types")
        decoded = self._convert(fields, kind, now_s)
        if isinstance(decoded, Decoded):
            decoded.removed = removed
        elif kind is not UnknownEvent:
            return Rejection(decoded.reason, decoded.detail, name)
        return decoded

    def _convert(self, fields: _Fields, kind: type[Event], now_s: float) -> Decoded | Rejection:
        known, extras, parts = _split(fields, kind)
        wrong = _canonicalise(known)
        if wrong is None and kind is not UnknownEvent:
            wrong = self._overfull(extras, parts)
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
            return Rejection("schema", _explain(str(error)))
        wrong = _contradiction(event)
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


def _not_canonical(text: str) -> bool:
    return text.encode().translate(_UUID_TABLE) != _UUID_SHAPE


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


def _may_hold_controls(line: bytes) -> bool:
    """Return False only if no string of the line decodes to a control character."""
    return (
        _DEL in line
        or (_BACKSLASH in line and _ESCAPED.search(line) is not None)
        or (not line.isascii() and _C1_RAW.search(line) is not None)
    )


def _cleaned(fields: _Fields) -> tuple[_Fields, int]:
    """Take control characters out of all strings and keys; return how many there were."""
    removed = 0

    def clean(value: Any) -> Any:
        nonlocal removed
        if isinstance(value, str):
            value, count = _CONTROLS.subn("", value)
            removed += count
        elif isinstance(value, dict):
            return {clean(key): clean(inner) for key, inner in value.items()}
        elif isinstance(value, list):
            return [clean(inner) for inner in value]
        return value

    return clean(fields), removed


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
        if value is None or (isinstance(value, str) and not _not_canonical(value)):
            continue
        canonical = canonical_uuid(value) if isinstance(value, str) else None
        if canonical is None:
            return Rejection(reason, f"{name}: not a UUID")
        known[name] = canonical
    return None


def _refuse(line: bytes) -> Rejection:
    """Name the input limit that a line breaks which is no JSON object within all of them."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Rejection("invalid_utf8", f"at byte {error.start}")
    try:
        value = msgspec.json.decode(line)
    except RecursionError:
        return _TOO_DEEP
    except _ERRORS:
        return _refuse_text(text)
    level, depth = [value], 1
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict | list):
                if depth > events.DEPTH_MAX:
                    return _TOO_DEEP
                inner.extend(item.values() if isinstance(item, dict) else item)
            elif isinstance(item, int) and not events.INTEGER_MIN <= item <= events.INTEGER_MAX:
                return Rejection("number", "an integer beyond 64 bits")
        level, depth = inner, depth + 1
    return Rejection("not_an_object", "JSON, but not an object")


def _refuse_text(text: str) -> Rejection:
    """Name what msgspec cannot read at all; Python's parser is laxer about numbers and surrogates.

    What it reads and we refused is therefore one of these two.
    """
    try:
        _encode(json.loads(text, parse_int=_zero, parse_float=_zero, parse_constant=_zero))
    except RecursionError:
        return _TOO_DEEP
    except UnicodeEncodeError:
        return Rejection("invalid_utf8", "a lone surrogate")
    except json.JSONDecodeError as error:
        return Rejection("invalid_json", f"at character {error.pos}")
    return Rejection("number", "not finite, or beyond 64 bits")


def _zero(_number: str) -> int:
    return 0


def _explain(message: str) -> str:
    """Say in our words, with names of known fields only, what msgspec's ``message`` says."""
    if missing := _MISSING.match(message):
        return f"{missing[1]}: required"
    at = _PATH.search(message)
    path = at[1].removeprefix(".").replace("[...]", "[]") if at else ""
    assert _KNOWN_NAMES.issuperset(re.findall("[a-z_]+", path)), "paths name our own fields only"
    expected = _EXPECTED.match(message)
    wanted = f"expected {expected[1]}{expected[2] or ''}" if expected else "not an allowed value"
    return f"{path}: {wanted}"
