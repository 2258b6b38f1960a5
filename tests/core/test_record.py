import json
import uuid
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.body import Headers, body
from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import Event
from agent.core.keys import NAMESPACE
from agent.core.policy import SchemaPolicy
from agent.core.record import Origin, Recorder, RecordPolicy
from agent.core.redact import FAILED, Redaction, Redactor
from agent.core.redaction_rules import Rule
from agent.core.writing import write_all

NOW_S = 1_795_428_000.0  # 2026-11-23T10:00:00Z
NOW = "2026-11-23T10:00:00Z"
UUID = "4b8c0f9e-1111-4222-8333-444455556666"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ORIGIN = Origin(
    node="node-7",
    client="checkout",
    source_id="8a7f",
    generation=2,
    inode=11,
    birth_ns=12,
    inode_generation=None,
)
OWN = {
    "collector_id": "node-7",
    "collector_version": "1.2.3",
    "hostname": "host-7",
    "client": "checkout",
}

BAD = Rejection("invalid_json", "at character 0")


def recorder(origin: Origin = ORIGIN, **policy: Any) -> Recorder:
    return Recorder(RecordPolicy(version="1.2.3", hostname="host-7", **policy), origin)


def line_of(**fields: Any) -> bytes:
    return json.dumps({"type": "user_feedback", "session_id": "s"} | fields).encode()


def record(
    line: bytes, using: Recorder | None = None, start: int = 100
) -> tuple[bytes | None, dict[str, Any], dict[str, bytes]]:
    decoded = Decoder(SchemaPolicy(unknown_types="pass")).decode(line, NOW_S)
    assert isinstance(decoded, Decoded), decoded
    end = start + len(line) + 1
    key, value, headers = (using or recorder()).record(decoded, line, start, end, NOW)
    assert len(headers) == len(dict(headers))
    return key, json.loads(value), dict(headers)


def test_a_full_line_is_shipped_with_who_collected_it_and_where_it_stood() -> None:
    line = line_of(event_id=UUID.upper(), timestamp=NOW, rating=4, metadata={"app": "web"})
    key, value, headers = record(line)

    assert UUID.encode() == key
    assert value == {
        "type": "user_feedback",
        "event_id": UUID,
        "timestamp": NOW,
        "schema_version": "1.0",
        "metadata": {"app": "web", **OWN},
        "session_id": "s",
        "rating": 4,
    }
    assert headers == {
        "event_type": b"user_feedback",
        "schema_version": b"1.0",
        "source": b"1;8a7f;2;100;%d" % (101 + len(line)),
    }


def test_a_pod_cannot_pose_as_another() -> None:
    using = recorder()
    _, value, _ = record(line_of(metadata={"client": "billing", "hostname": "x", "a": 1}), using)

    assert {"a": 1, **OWN} == value["metadata"]
    assert using.overwritten == 2


def test_flags_become_headers() -> None:
    _, value, headers = record(line_of(schema_version="2.1"))
    assert (b"agent", b"2.1") == (headers["timestamp_source"], headers["schema_version"])
    assert (NOW, "2.1") == (value["timestamp"], value["schema_version"])

    _, value, headers = record(line_of(timestamp="2026-11-23T10:05:01Z"))
    assert headers["timestamp_suspect"] == b"1"
    assert "timestamp_source" not in headers

    _, value, headers = record(b'{"type":"custom","x":[1]}')
    assert (b"custom", b"unknown") == (headers["event_type"], headers["schema"])
    assert ("custom", [1], OWN) == (value["type"], value["x"], value["metadata"])


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize(
    ("trace", "valid"),
    [
        (TRACE, True),
        (TRACE.upper(), False),
        ("ff" + TRACE[2:], False),
        (TRACE + "-00", False),
        ("00-" + "0" * 32 + TRACE[35:], False),
        (TRACE[:36] + "0" * 16 + TRACE[52:], False),
        (7, False),
    ],
)
def test_a_valid_trace_context_is_passed_on(trace: Any, valid: bool, outer: bool) -> None:
    fields = {"traceparent": trace}
    _, _, headers = record(line_of(**fields) if outer else line_of(metadata=fields))

    assert (TRACE.encode() if valid else None) == headers.get("traceparent")
    assert valid is ([*headers][-1] == "traceparent"), "there wire looks for it"


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("event_id", UUID.encode()),
        ("session_id", b"s"),
        ("client", b"checkout"),
        ("none", None),
        ("rating", b"4.5"),
        ("type", b"user_feedback"),
        ("team", b"blue"),
        ("absent", None),
    ],
)
def test_the_key_is_the_configured_field(field: str, key: bytes | None) -> None:
    line = line_of(event_id=UUID, rating=4.5, team="blue")

    assert key == record(line, recorder(key=field))[0]


def test_a_derived_id_is_the_standard_uuid5() -> None:
    line = line_of()
    name = f"node-7\0{11}\0{12}\0None\0{2}\0{100}\0{line.decode()}"

    _, value, _ = record(line)

    assert str(uuid.uuid5(uuid.UUID(bytes=NAMESPACE), name)) == value["event_id"]


@given(st.binary(max_size=60), st.integers(0, 2**63))
def test_a_derived_id_is_stable_and_tells_places_and_lines_apart(line: bytes, start: int) -> None:
    first = recorder().derived_id(line, start)
    others = [
        recorder().derived_id(line, start + 1),
        recorder().derived_id(line + b"0", start),
        *(
            Recorder(
                RecordPolicy(version="1", hostname="h"),
                Origin(**{f: getattr(ORIGIN, f) for f in ORIGIN.__struct_fields__} | changed),
            ).derived_id(line, start)
            for changed in (
                {"node": "node-8"},
                {"inode": 1},
                {"birth_ns": None},
                {"inode_generation": 1},
                {"generation": 3},
            )
        ),
    ]

    assert first == recorder().derived_id(line, start)
    assert len({first, *others}) == 8
    assert str(uuid.UUID(first)) == first


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=6), json_values, max_size=64),
    st.dictionaries(st.text(max_size=6), json_values, max_size=3),
    st.integers(0, 70),
)
def test_what_is_shipped_is_an_acceptable_line_again_and_ships_the_same(
    metadata: dict[str, Any], extras: dict[str, Any], more: int
) -> None:
    metadata |= {f"k{i}": i for i in range(min(more, 64 - len(metadata)))}
    line = json.dumps(extras | json.loads(line_of(metadata=metadata))).encode()
    decoder, using = Decoder(SchemaPolicy()), recorder()
    first = decoder.decode(line, NOW_S)
    if isinstance(first, Rejection):
        assert first.reason in {"schema", "event_id"}  # a name of ours, drawn by chance
        return
    _, value, _ = using.record(first, line, 0, 1, NOW)

    again = decoder.decode(value, NOW_S)

    assert isinstance(again, Decoded), again
    assert value == using.record(again, value, 5, 6, "2000-01-01T00:00:00Z")[1]


def lines_of_any_kind() -> st.SearchStrategy[bytes]:
    some = {"team": "blue", "traceparent": TRACE, "prompt_hash": "no hash", "n": [1, {"x": None}]}
    ids = st.none() | st.uuids().map(str)
    common = st.fixed_dictionaries(
        {},
        optional={
            "event_id": ids,
            "request_id": ids,
            "timestamp": st.none() | st.sampled_from([NOW, "2026-11-23T12:30:00Z"]),
            "schema_version": st.none() | st.sampled_from(["1.0", "2.1"]),
            "metadata": st.none()
            | st.dictionaries(
                st.sampled_from(["app", "client", "traceparent", "{"]), json_values, max_size=3
            ),
            **{name: st.just(value) for name, value in some.items()},
        },
    )
    kinds: list[dict[str, Any]] = [
        {"type": "user_feedback", "session_id": "s", "comment": '{"metadata":{ ' + "x" * 5000},
        {"type": "model_response", "model_id": "m", "prompt_hash": "{"},
        {"type": "system_health", "service_name": "s", "status": "healthy"},
        {"type": "experiment_result", "experiment_id": UUID, "variant_id": "{"},
        {"type": "none of ours"},
    ]
    return st.builds(
        lambda kind, more: json.dumps(kind | more).encode(), st.sampled_from(kinds), common
    )


@given(
    st.lists(lines_of_any_kind(), min_size=1, max_size=6),
    st.sampled_from(["event_id", "client", "none", "session_id", "schema_version", "team"]),
    st.booleans(),
)
def test_records_made_together_are_those_that_are_made_alone(
    lines: list[bytes], key: str, redacted: bool
) -> None:
    """Most events are written as bytes at once, and must not differ from the others."""
    redactor = Redactor(Redaction(version="7")) if redacted else None
    policy = RecordPolicy(version="1", hostname="h", key=key)
    using = Recorder(policy, ORIGIN, redactor)
    places = [*pairwise(accumulate((len(line) + 1 for line in lines), initial=70))]
    decoder = Decoder(SchemaPolicy(unknown_types="pass"))
    alone = [
        using.record(decoded, line, *place, NOW)
        for decoded, line, place in zip(
            decoder.decode_all(lines, NOW_S), lines, places, strict=True
        )
        if not isinstance(decoded, Rejection)
    ]
    found = decoder.decode_all(lines, NOW_S)
    assert not any(isinstance(one, Rejection) for one in found)

    using.complete(found, lines, places, NOW)
    keys, bodies = using.records(cast("list[Event | Decoded]", found), write_all(found), places)

    expected = [(key, body(key, value, headers)) for key, value, headers in alone]
    assert expected == [*zip(keys, bodies, strict=True)]


def dead_letter(
    line: bytes, using: Recorder | None = None, length: int | None = None
) -> tuple[bytes, dict[str, bytes]]:
    rejection = Rejection("schema", "rating: expected int <= 5", "user_feedback")
    headers: Headers
    _, value, headers = (using or recorder()).dead_letter(line, rejection, 7, 99, length)
    return value, dict(headers)


def test_a_dead_letter_says_why_and_from_where_and_stays_json() -> None:
    line = rb'{"a":"\u0061\u0040b\/\u00e9\u200b\ud83d\ude00 \u0022 \\u0040 \u0000\n\ud800"}'
    value, headers = dead_letter(line)

    assert value.decode() == ('{"a":"a@b/é\u200b\U0001f600 ' + r'\u0022 \\u0040 \u0000\n\ud800"}')
    assert json.loads(line) == json.loads(value)
    assert headers == {
        "reason": b"schema",
        "detail": b"rating: expected int <= 5",
        "source": b"1;8a7f;2;7;99",
        "client": b"checkout",
        "collector_id": b"node-7",
        "event_type": b"user_feedback",
    }


def test_a_line_that_is_not_utf8_gives_no_bytes() -> None:
    line = b"secret \xff"
    value, headers = dead_letter(line, recorder(hash_key=b"k1"))
    other, _ = dead_letter(line, recorder(hash_key=b"k2"))

    assert json.loads(value)["length"] == 8
    assert b"secret" not in value
    assert value != other
    assert "cut" not in headers


@given(st.text(min_size=300, max_size=600), st.integers(0, 2400))
def test_a_cut_gives_up_the_last_characters_before_it(text: str, bytes_max: int) -> None:
    line = text.replace("\\", "/").encode()
    value, headers = dead_letter(line, recorder(dead_letter_bytes_max=bytes_max))

    if len(line) <= bytes_max:
        assert (line, None) == (value, headers.get("cut"))
        return
    assert str(len(line)).encode() == headers["cut"]
    shown = line[:bytes_max].decode(errors="ignore")
    assert shown[:-256] == value.decode()


def test_a_torn_beginning_of_a_line_is_a_cut() -> None:
    value, headers = dead_letter(b"x" * 300 + "é".encode()[:1], length=9000)

    assert (b"x" * 44, b"9000") == (value, headers["cut"])


def redacting(*custom: Rule) -> Recorder:
    redactor = Redactor(Redaction(version="7", custom=custom))
    policy = RecordPolicy(version="1", hostname="h", dead_letter_bytes_max=1000)
    return Recorder(policy, ORIGIN, redactor)


def test_a_dead_letter_is_redacted_as_text_after_its_cut() -> None:
    line = rb'{"comment":"\n\u006ao@example.com","n":"' + b"x" * 2000
    _, value, headers = redacting().dead_letter(line, BAD, 0, len(line) + 1)

    assert value.startswith(rb'{"comment":"\n[EMAIL]","n":"xxx')
    assert (b"7", b"%d" % len(line)) == (dict(headers)["redaction"], dict(headers)["cut"])


def test_markers_do_not_make_a_dead_letter_longer_than_allowed() -> None:
    line = b"::1 " * 240
    _, value, headers = redacting().dead_letter(line, BAD, 0, len(line) + 1)

    assert value.startswith(b"[IPV6] [IPV6]")
    assert len(value) <= 1000
    assert "cut" in dict(headers)


def test_a_redactor_that_fails_lets_no_payload_out() -> None:
    def failing(_: str) -> Iterator[tuple[int, int]]:
        raise ValueError("secret")

    broken = redacting(Rule("mine", failing, str))
    for why in (BAD, FAILED):
        place, value, headers = broken.dead_letter(b"secret", why, 3, 10)
        assert {"length", "hash"} == json.loads(value).keys()
        assert b"redaction_failed" == dict(headers)["reason"]
        assert b"secret" not in value + repr((place, headers)).encode()


def test_an_event_says_which_rules_it_went_through() -> None:
    _, _, headers = record(line_of(), redacting())
    assert b"7" == headers["redaction"]
    assert "redaction" not in record(line_of())[2]
