"""The schema that consumers generate code from takes every record, and not everything."""

import json
from typing import Any

import pytest

from agent.core import events
from agent.core.decode import Decoded, Decoder
from agent.core.output_schema import json_schema
from agent.core.policy import SchemaPolicy
from agent.core.redact import Redaction, Redactor
from agent.demo.app import make_line
from tests.core.test_record import recorder

SCHEMA = json_schema()
NOW_S = 1_800_000_000.0
KINDS: dict[str, Any] = {
    "string": str, "object": dict, "array": list, "boolean": bool, "integer": int,
    "number": (int, float), "null": type(None),
}  # fmt: skip
SAID = {"title", "description", "format", "$schema", "$defs"}


def problem(value: Any, schema: dict[str, Any]) -> str | None:  # noqa: C901, PLR0912  a table of keywords
    """Say where ``value`` breaks ``schema``; knows the keywords that ours uses, and no other."""
    for word, of in schema.items():
        match word:
            case "$ref":
                found = problem(value, SCHEMA["$defs"][of.rpartition("/")[2]])
            case "oneOf" | "anyOf":
                fits = sum(problem(value, one) is None for one in of)
                found = None if fits == 1 or (fits and word == "anyOf") else f"{fits} fit"
            case "type":
                wrong = isinstance(value, bool) and of in {"integer", "number"}
                found = f"no {of}" if wrong or not isinstance(value, KINDS[of]) else None
            case "enum":
                found = None if value in of else f"none of {of}"
            case "required":
                found = next((f"{name} missing" for name in of if name not in value), None)
            case "properties":
                found = next(
                    (p for n, s in of.items() if n in value and (p := problem(value[n], s))), None
                )
            case "additionalProperties":
                rest = value.keys() - schema.get("properties", {}).keys()
                found = next((p for name in rest if (p := problem(value[name], of))), None)
            case "items":
                found = next((p for one in value if (p := problem(one, of))), None)
            case "minimum":
                found = f"below {of}" if value < of else None
            case "maximum":
                found = f"above {of}" if value > of else None
            case "minLength":
                found = "too short" if len(value) < of else None
            case "maxLength":
                found = "too long" if len(value) > of else None
            case "maxItems":
                found = "too many" if len(value) > of else None
            case _:
                assert word in SAID, word
                found = None
        if found:
            return found
    return None


def value_of(line: bytes) -> Any:
    """Return the value of the record that is made of ``line``, None where it is rejected."""
    decoded = Decoder(SchemaPolicy()).decode(line, NOW_S)
    if not isinstance(decoded, Decoded):
        return None
    assert decoded is Redactor(Redaction(version="1")).event(decoded)
    _, value, _ = recorder().record(decoded, line, 0, len(line) + 1, "2026-01-01T00:00:00Z")
    return json.loads(value)


def test_every_record_of_the_app_fits() -> None:
    seen = set()
    for seq in range(500):
        value = value_of(make_line(1, "a", file=0, seq=seq, now_ns=int(NOW_S * 1e9))[:-1])
        if value is not None:
            assert problem(value, SCHEMA) is None, value
            seen.add(value["type"])
    assert events.EVENT_TYPES.keys() == seen


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"user_feedback","session_id":"s","rating":null,"unknown":[{"a":null}]}',
        b'{"type":"user_feedback","session":"s","metadata":{"client":7,"x":[1,null,"y"]}}',
        b'{"type":"system_health","service_name":"s","status":"healthy","resources":{"gpu":null}}',
        b'{"type":"performance_metrics","model_id":"m","latency_ms":0,"custom_metrics":{"x":-1.5}}',
    ],
)
def test_what_is_kept_of_an_odd_line_fits_too(line: bytes) -> None:
    value = value_of(line)
    assert value is not None
    assert problem(value, SCHEMA) is None


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": None}, {"timestamp": None}, {"metadata": {}}, {"type": "other"},
        {"rating": 6}, {"rating": "4"}, {"thumbs": "sideways"}, {"session_id": ""},
        {"tags": ["x"] * 65}, {"comment": None},
    ],
)  # fmt: skip
def test_what_the_agent_never_sends_does_not_fit(change: dict[str, Any]) -> None:
    value = value_of(b'{"type":"user_feedback","session_id":"s","rating":4,"comment":"x"}')
    assert problem(value, SCHEMA) is None
    assert problem({**value, **change}, SCHEMA) is not None


def test_every_field_of_every_type_is_in_it() -> None:
    for name, kind in events.EVENT_TYPES.items():
        of = SCHEMA["$defs"][kind.__name__]
        assert {"type", *kind.__struct_fields__} == of["properties"].keys()
        assert [name] == of["properties"]["type"]["enum"]


def test_what_markers_made_longer_fits_too() -> None:
    comment = ("::1 " * 2500).strip()
    value = value_of(b'{"type":"user_feedback","session_id":"s","comment":"%b"}' % comment.encode())
    assert comment != value["comment"]
    assert problem(value, SCHEMA) is None
    assert problem(value | {"comment": "x" * 10_001}, SCHEMA) is not None
