"""What holds for lines of a type that a schema describes, whatever the schema says."""

import json
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import EVENT_TYPES, CustomEvent, json_at
from agent.core.policy import SchemaPolicy
from agent.core.reasons import REASONS
from agent.core.record import Recorder, RecordPolicy
from agent.core.redact import Redaction, Redactor
from agent.core.redaction_rules import Rule
from agent.core.schemas import CustomType, Schemas
from tests.core.test_decode import FULL, NOW_S, UUID, pieces
from tests.core.test_record import NOW, ORIGIN

ORDER: dict[str, Any] = {"type": "order", "order_id": "a", "amount": 3}
NAMES = frozenset({"order_id", "amount", "items"})


def order_id_is_text(fields: dict[str, Any]) -> str | None:
    return None if isinstance(fields.get("order_id"), str) else "order_id: type"


def anything(_fields: dict[str, Any]) -> str | None:
    return None


def schemas(**types: CustomType) -> Schemas:
    return Schemas(MappingProxyType(types), "1")


ONE = schemas(order=CustomType(NAMES, order_id_is_text))


def decode(
    line: bytes | dict[str, Any], using: Schemas | None = ONE, **policy: Any
) -> Decoded | Rejection:
    body = line if isinstance(line, bytes) else json.dumps(line).encode()
    return Decoder(SchemaPolicy(**policy), using).decode(body, NOW_S)


def accepted(line: bytes | dict[str, Any], using: Schemas = ONE, **policy: Any) -> Decoded:
    got = decode(line, using, **policy)
    assert isinstance(got, Decoded), got
    return got


def record(
    decoded: Decoded, **policy: Any
) -> tuple[bytes | None, dict[str, Any], dict[str, bytes]]:
    recorder = Recorder(RecordPolicy(version="1", hostname="h", **policy), ORIGIN)
    key, value, headers = recorder.record(decoded, b"line", 0, 5, NOW)
    return key, json.loads(value), dict(headers)


def test_a_line_of_a_custom_type_is_an_event_of_that_type() -> None:
    got = accepted(ORDER | {"event_id": UUID.upper(), "items": [None]})
    _, value, headers = record(got)

    assert CustomEvent(type="order", event_id=UUID).event_id == value["event_id"]
    assert ("order", "a", 3, [None]) == tuple(
        value[name] for name in ("type", "order_id", "amount", "items")
    )
    assert b"order" == headers["event_type"]
    assert "schema" not in headers


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"event_id": "x"}, "event_id"),
        ({"timestamp": "yesterday"}, "schema"),
        ({"schema_version": "x" * 65}, "schema"),
        ({"metadata": []}, "schema"),
        ({"metadata": dict.fromkeys(map(str, range(65)))}, "schema"),
        ({"order_id": None}, "schema"),
    ],
)
def test_what_is_said_of_every_line_holds_and_the_schema(
    fields: dict[str, Any], reason: str
) -> None:
    got = decode(ORDER | fields)

    assert isinstance(got, Rejection)
    assert (reason, "order") == (got.reason, got.event_type)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"type":"order","order_id":"a","items":' + b"[" * 10 + b"]" * 10 + b"}", "too_deep"),
        (b'{"type":"order","order_id":"a","amount":9223372036854775808}', "number"),
        (b'{"type":"order","order_id":"\xff"}', "invalid_utf8"),
        (b'{"type":"orders"}', "unknown_type"),
    ],
)
def test_input_limits_hold_for_custom_types(line: bytes, reason: str) -> None:
    got = decode(line)

    assert isinstance(got, Rejection)
    assert reason == got.reason


def test_a_schema_sees_the_line_as_it_was_written() -> None:
    """But for control characters: what else were there to say of a null or a name?"""
    seen: list[dict[str, Any]] = []

    def note(fields: dict[str, Any]) -> str | None:
        seen.append(fields)
        return None

    line = {"type": "x", "session": "s", "event_id": UUID.upper(), "a\x00": "b\x01", "n": None}
    got = accepted(line, schemas(x=CustomType(frozenset(), note)))

    assert [line | {"a": "b"}] == [{"a\x00": "b\x01"} | fields for fields in seen]
    assert ({"session": "s", "a": "b", "n": None}, 2) == (got.extras, got.removed)


@pytest.mark.parametrize("replaced", [["user_feedback"], list(EVENT_TYPES)])
def test_a_schema_takes_the_place_of_a_built_in_type(replaced: list[str]) -> None:
    """Also where the line would be a good one without it."""
    whole, none = (CustomType(NAMES, wrong) for wrong in (anything, lambda _: "no: never"))
    for name in replaced:
        line = {"type": name, "rating": 99, "request_id": 7}
        assert CustomEvent(type=name) == accepted(line, schemas(**{name: whole})).event
    for line in FULL:
        if line["type"] in replaced:
            got = decode(line, schemas(**dict.fromkeys(replaced, none)))
            assert Rejection("schema", "no: never", line["type"]) == got


@given(st.sampled_from(FULL), st.data())
def test_built_in_types_are_what_they_were(whole: dict[str, Any], data: st.DataObject) -> None:
    others = [name for name in EVENT_TYPES if name != whole["type"]]
    names = data.draw(st.lists(st.sampled_from([*others, "order"]), unique=True))
    line = whole | {data.draw(st.sampled_from(sorted(whole))): data.draw(st.sampled_from([1, "x"]))}
    line["type"] = whole["type"]
    using = schemas(**dict.fromkeys(names, CustomType(NAMES, anything)))

    assert decode(line, None) == decode(line, using)


def test_only_fields_that_the_schema_does_not_name_are_capped() -> None:
    named = ORDER | {"items": ["x" * 1000]}

    accepted(named, extra_bytes_max=0)
    got = decode(named | {"more": 1}, extra_bytes_max=9)
    assert Rejection("extra_too_large", "unknown fields: 10 bytes, at most 9", "order") == got


@pytest.mark.parametrize(
    ("field", "key"),
    [("order_id", b"a"), ("amount", b"3"), ("type", b"order"), ("event_id", UUID.encode())],
)
def test_the_key_may_be_any_field_of_a_custom_type(field: str, key: bytes) -> None:
    assert key == record(accepted(ORDER | {"event_id": UUID}), key=field)[0]


def test_texts_and_names_are_redacted_and_the_type_is_not() -> None:
    """The type comes from the configuration; consumers choose by it."""
    mail = "jo@example.com"
    order = Rule("word", lambda text: iter([(0, 5)] if text.startswith("order") else []), str)
    redactor = Redactor(Redaction(version="1", custom=(order,)))
    decoded = accepted(ORDER | {"order_id": mail, mail: {mail: [mail]}, "event_id": UUID})

    assert decoded is redactor.event(decoded)
    _, value, headers = record(decoded)
    assert ("order", b"order") == (value["type"], headers["event_type"])
    assert ("[EMAIL]", {"[EMAIL]": ["[EMAIL]"]}) == (value["[WORD]_id"], value["[EMAIL]"])
    assert mail not in json.dumps(value)


@given(st.binary(max_size=100), st.data())
def test_decode_is_total_with_schemas(noise: bytes, data: st.DataObject) -> None:
    """And no schema sees what breaks a limit."""

    def within(fields: dict[str, Any]) -> str | None:
        assert fields["type"] == "order"
        assert json.loads(json.dumps(fields)) == fields
        assert not any(c in json.dumps(fields, ensure_ascii=False) for c in "\x7f\x80\x9f")
        msgspec.convert(fields, dict[str, json_at(2)])  # type: ignore[misc]
        return "never"

    using = schemas(order=CustomType(NAMES, within))
    line = json.dumps(ORDER | {"items": [1.5, "é"], "timestamp": NOW}).encode()
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(line)))
        line = line[:start] + data.draw(pieces) + line[start + data.draw(st.integers(0, 9)) :]
    for body in (line, noise):
        got = decode(body, using)
        assert isinstance(got, Rejection)
        assert got.reason in REASONS
