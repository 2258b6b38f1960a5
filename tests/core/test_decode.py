import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.decode import _LONGER_MAX, Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import KnownEvent, ModelResponse, UnknownEvent, UserFeedback
from agent.core.formats import epoch_s
from agent.core.policy import SchemaPolicy
from agent.core.reasons import REASONS

NOW_S = 1_795_428_000.0  # 2026-11-23T10:00:00Z
UUID = "4b8c0f9e-1111-4222-8333-444455556666"
LINE = b'{"type":"user_feedback","session_id":"s"}'
FULL: list[dict[str, Any]] = [
    {
        "type": "user_feedback", "event_id": UUID, "timestamp": "2026-11-23T09:59:00.120+02:00",
        "session_id": "s", "request_id": UUID, "user_id": "u", "rating": 4.5, "thumbs": "up",
        "comment": "a\r\nb \u00e9\u0001\u0085", "tags": ["x", "y"],
        "metadata": {"a": {"b": [1, None]}},
    },
    {
        "type": "performance_metrics", "model_id": "m", "latency_ms": 12, "tokens_input": 1,
        "tokens_output": 2, "tokens_total": 3, "success": True, "custom_metrics": {"q": 1},
    },
    {
        "type": "model_response", "model_id": "m", "quality_dimensions": {"accuracy": 1},
        "model_params": {"temperature": 0.5, "stop": ["x"]}, "schema_version": "2.0",
    },
    {
        "type": "system_health", "service_name": "s", "status": "healthy",
        "resources": {"cpu_percent": 5.5}, "active_requests": 3, "region": "eu",
    },
    {
        "type": "experiment_result", "experiment_id": UUID, "variant_id": "v",
        "experiment_type": "ab_test", "reward": -1.5, "metrics": {"cost": 1},
    },
]  # fmt: skip


def decode(line: bytes | dict[str, Any], **policy: Any) -> Decoded | Rejection:
    body = line if isinstance(line, bytes) else json.dumps(line).encode()
    return Decoder(SchemaPolicy(**policy)).decode(body, NOW_S)


def accepted(line: bytes | dict[str, Any], **policy: Any) -> Decoded:
    got = decode(line, **policy)
    assert isinstance(got, Decoded), got
    return got


def rejected(line: bytes | dict[str, Any], **policy: Any) -> Rejection:
    got = decode(line, **policy)
    assert isinstance(got, Rejection), got
    return got


def feedback(**fields: Any) -> dict[str, Any]:
    return {"type": "user_feedback", "session_id": "s"} | fields


def nested(depth: int, opening: bytes = b'{"a":', closing: bytes = b"}") -> bytes:
    """Return a JSON value of so many containers."""
    return opening * (depth - 1) + b"[0]" + closing * (depth - 1)


def with_value(value: bytes, field: bytes = b"x") -> bytes:
    return LINE[:-1] + b',"' + field + b'":' + value + b"}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(LINE[:-1], "invalid_json", id="torn"),
        pytest.param(b"\xef\xbb\xbf" + LINE, "invalid_json", id="byte-order-mark"),
        pytest.param(LINE + LINE, "invalid_json", id="two-objects"),
        pytest.param(with_value(b'"\x01"'), "invalid_json", id="raw-control"),
        pytest.param(with_value(b"01"), "invalid_json", id="leading-zero"),
        pytest.param(b"\xff\xfe", "invalid_utf8", id="not-utf8"),
        pytest.param(with_value(b'"\xff"'), "invalid_utf8", id="bad-byte"),
        pytest.param(with_value(b'"\xed\xa0\x80"'), "invalid_utf8", id="raw-surrogate"),
        pytest.param(with_value(b'"\\ud800"'), "invalid_utf8", id="high-surrogate"),
        pytest.param(with_value(b'"\\udc00 "'), "invalid_utf8", id="low-surrogate"),
        pytest.param(with_value(b'"\\ud800\\u0041"'), "invalid_utf8", id="broken-pair"),
        pytest.param(b'{"\\ud800":1}', "invalid_utf8", id="surrogate-in-key"),
        pytest.param(b"[1]", "not_an_object", id="array"),
        pytest.param(b'"x"', "not_an_object", id="string"),
        pytest.param(b" null ", "not_an_object", id="null"),
        pytest.param(with_value(b"NaN"), "number", id="nan"),
        pytest.param(with_value(b"-Infinity"), "number", id="infinity"),
        pytest.param(with_value(b"1e999"), "number", id="overflow"),
        pytest.param(with_value(b"9" * 30), "number", id="long-integer"),
        pytest.param(with_value(b"9" * 9000), "number", id="very-long-integer"),
        pytest.param(with_value(b"9223372036854775808"), "number", id="2**63"),
        pytest.param(with_value(b"-9223372036854775809"), "number", id="-2**63-1"),
        pytest.param(with_value(b'{"a":18446744073709551616}', b"metadata"), "number", id="deep"),
        pytest.param(with_value(b"1e999", b"rating"), "number", id="overflow-known-field"),
        pytest.param(with_value(b"9223372036854775808", b"rating"), "number", id="2**63-known"),
        pytest.param(b"[" * 100_000, "too_deep", id="open-brackets"),
        pytest.param(with_value(nested(10)), "too_deep", id="11"),
        pytest.param(with_value(nested(10), b"metadata"), "too_deep", id="11-metadata"),
        pytest.param(with_value(nested(300, b"[", b"]")), "too_deep", id="arrays"),
        pytest.param(b'{"type":"nonsense"}', "unknown_type", id="unknown-type"),
        pytest.param(b"{}", "schema", id="no-type"),
        pytest.param(b'{"type":1}', "schema", id="type-not-a-string"),
        pytest.param(b'{"type":null}', "schema", id="type-null"),
        pytest.param(with_value(b'"x"', b"event_id"), "event_id", id="event-id"),
        pytest.param(with_value(b"7", b"event_id"), "event_id", id="event-id-number"),
        pytest.param(with_value(b'"' + b"x" * 16384 + b'"'), "extra_too_large", id="extra"),
    ],
)
def test_each_broken_rule_has_its_reason(line: bytes, reason: str) -> None:
    assert reason == rejected(line).reason


@pytest.mark.parametrize("field", [b"x", b"metadata"])
def test_ten_levels_and_64_bits_are_within_the_limits(field: bytes) -> None:
    accepted(with_value(nested(9), field))
    accepted(with_value(b'{"a":[9223372036854775807,-9223372036854775808]}', field))


def test_surrounding_white_space_is_json() -> None:
    assert accepted(b" \t" + LINE + b" \r").event == UserFeedback(session_id="s")


@pytest.mark.parametrize(
    ("timestamp", "at_s"),
    [
        ("2026-11-23T10:00:00Z", NOW_S),
        ("2026-11-23T10:00:00.250Z", NOW_S + 0.25),
        ("2026-11-23t10:00:00z", NOW_S),
        ("2026-11-23T12:30:00+02:30", NOW_S),
        ("2026-11-23T07:30:00-02:30", NOW_S),
        ("2026-11-23T10:00:00-00:00", NOW_S),
        ("2026-11-23T09:59:60Z", NOW_S),
        ("2026-11-23T10:00:00." + "0" * 40 + "Z", NOW_S),
        ("2024-02-29T00:00:00Z", 1709164800.0),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:60-23:59", None),
        ("0000-02-29T00:00:00Z", None),
    ],
)
def test_a_timestamp_of_rfc_3339_is_kept_as_written(timestamp: str, at_s: float | None) -> None:
    assert accepted(feedback(timestamp=timestamp)).event.timestamp == timestamp
    assert accepted(feedback(timestamp=timestamp, x=1)).event.timestamp == timestamp
    assert at_s is None or at_s == epoch_s(timestamp)


@pytest.mark.parametrize(
    "timestamp",
    [
        "", "2026-11-23", "2026-11-23T10:00Z", "2026-11-23T10:00:00", "2026-11-23 10:00:00Z",
        "2026-11-23T10:00:00+0200", "2026-11-23T10:00:00+02", "2026-11-23T10:00:00.Z",
        "2026-11-23T10:00:00,5Z", "20261123T100000Z", "2026-W47-1T10:00:00Z",
        "2026-02-29T10:00:00Z",
        "2026-13-01T10:00:00Z", "2026-00-01T10:00:00Z", "2026-11-31T10:00:00Z",
        "2026-11-23T24:00:00Z", "2026-11-23T10:60:00Z", "2026-11-23T10:00:61Z",
        "2026-11-23T10:00:00+24:00", "2026-11-23T10:00:00+00:60", "2026-11-23T10:00:00+00:00:30",
        "2026-11-23T10:00:00Z\n", "\uff12026-11-23T10:00:00Z", "2026-11-23T10:00:00+00:00Z",
        1795428000, {},
    ],
)  # fmt: skip
def test_no_other_timestamp_is_accepted(timestamp: Any) -> None:
    got = rejected(feedback(timestamp=timestamp))

    assert ("schema", "timestamp") == (got.reason, got.detail.split(":")[0])


@pytest.mark.parametrize(
    ("timestamp", "age_max_s", "suspect"),
    [
        ("2026-11-23T10:05:00Z", None, False),
        ("2026-11-23T10:05:00.001Z", None, True),
        ("2026-11-23T12:05:00.001+02:00", None, True),
        ("2026-11-23T10:04:60Z", None, False),
        ("2026-11-23T10:05:60Z", None, True),
        ("1970-01-01T00:00:00Z", None, False),
        ("0001-01-01T00:00:00+23:59", None, False),
        ("2026-11-23T09:00:00Z", 3600.0, False),
        ("2026-11-23T08:59:59.999Z", 3600.0, True),
        ("0001-01-01T00:00:00Z", 1e12, False),
    ],
)
def test_a_time_far_from_now_is_kept_and_flagged(
    timestamp: str, age_max_s: float | None, suspect: bool
) -> None:
    for line in (feedback(timestamp=timestamp), feedback(timestamp=timestamp, x=1)):
        assert suspect == accepted(line, age_max_s=age_max_s).suspect


def test_what_is_suspect_follows_the_clock() -> None:
    decoder, line = Decoder(SchemaPolicy()), json.dumps(feedback(timestamp="2026-11-23T10:06:00Z"))
    before, after = (decoder.decode(line.encode(), NOW_S + later) for later in (0, 60))

    assert isinstance(before, Decoded)
    assert isinstance(after, Decoded)
    assert (True, False) == (before.suspect, after.suspect)


@pytest.mark.parametrize(
    ("text", "kept", "removed"),
    [
        (r"a\u0000b", "ab", 1),
        (r"\b\f\u001f\u007f\u0080\u009F", "", 6),
        ("a\x7f\x80\x9fb", "ab", 3),
        (r"a\r\n\tb\u0009\u000a\u000D", "a\r\n\tb\t\n\r", 0),
        (r"C:\\bin\\u0001", r"C:\bin\u0001", 0),
        ("\u00a0\u00e9\u00c2\u00a9 \\u00e9", "\u00a0\u00e9\u00c2\u00a9 é", 0),
    ],
)
def test_control_characters_are_removed_and_counted(text: str, kept: str, removed: int) -> None:
    got = accepted(with_value(f'"{text}"'.encode(), b"comment"))

    assert (kept, removed) == (got.event.comment, got.removed)  # type: ignore[union-attr]


def test_a_key_cannot_hide_behind_a_control_character() -> None:
    line = rb'{"type":"user_feedback","session_id":"s","metadata":{"cli\u0000ent":["\u0001"]},'
    got = accepted(line + rb'"rat\u0000ing":4}')

    assert got.event == UserFeedback(session_id="s", rating=4, metadata={"client": [""]})
    assert (None, 3) == (got.extras, got.removed)


def test_length_is_counted_after_control_characters_are_gone() -> None:
    assert accepted(feedback(comment="x" * 10_000 + "\x00")).removed == 1


def test_unknown_fields_are_kept_beside_the_event() -> None:
    got = accepted(feedback(team="blue", nested={"a": [1, None]}, request_id=UUID.upper()))

    assert {"team": "blue", "nested": {"a": [1, None]}} == got.extras
    assert got.event == UserFeedback(session_id="s", request_id=UUID)


def test_unknown_fields_inside_of_a_part_are_kept_in_it() -> None:
    params: Any = {"temperature": 0.5, "stop": ["x"], "top_k": None}
    got = accepted({"type": "model_response", "model_id": "m", "model_params": params})

    assert isinstance(got.event, ModelResponse)
    assert (params, None) == (got.event.model_params, got.extras)
    params["top_p"] = 2
    got_bad = rejected({"type": "model_response", "model_id": "m", "model_params": params})
    assert got_bad.detail == "model_params.top_p: expected int <= 1"


@pytest.mark.parametrize("outer", [True, False])
def test_unknown_fields_are_capped_by_their_encoded_size(outer: bool) -> None:
    unknown = {"x": "é" * 10}  # {"x":"..."} is 8 bytes and the text
    line = {"type": "model_response", "model_id": "m"}
    whole = line | unknown if outer else line | {"model_params": unknown}

    accepted(whole, extra_bytes_max=28)
    got = rejected(whole, extra_bytes_max=27)
    assert ("extra_too_large", "unknown fields: 28 bytes, at most 27") == (got.reason, got.detail)


@pytest.mark.parametrize(
    ("fields", "session_id", "extras"),
    [
        ({"session": "a"}, "a", None),
        ({"session": "a", "session_id": None}, "a", None),
        ({"session": "a", "session_id": "b"}, "b", {"session": "a"}),
    ],
)
def test_session_is_read_as_session_id(
    fields: dict[str, Any], session_id: str, extras: dict[str, Any] | None
) -> None:
    got = accepted({"type": "user_feedback"} | fields)

    assert (UserFeedback(session_id=session_id), extras) == (got.event, got.extras)


def test_the_last_of_duplicate_keys_wins() -> None:
    assert accepted(with_value(b'"t"', b"session_id")).event == UserFeedback(session_id="t")
    assert accepted(with_value(b'7,"rating":4', b"rating")).event == UserFeedback(
        session_id="s", rating=4
    )
    assert rejected(with_value(b'"system_health"', b"type")).event_type == "system_health"


def test_an_unknown_type_passes_where_the_policy_says_so() -> None:
    line = {"type": "custom", "event_id": UUID.upper(), "x": "a\x00", "metadata": {"k": 1}}
    got = accepted(line, unknown_types="pass", extra_bytes_max=0)

    assert got.event == UnknownEvent(event_id=UUID, metadata={"k": 1})
    assert ({"type": "custom", "x": "a"}, 1) == (got.extras, got.removed)
    bad = rejected(line | {"timestamp": "x"}, unknown_types="pass")
    assert ("schema", None) == (bad.reason, bad.event_type)


@given(st.binary(max_size=200))
@example(b'{"type":"user_feedback","session_id":"s","timestamp":"\xc3\xa9"}')
def test_decode_is_total_on_any_bytes(line: bytes) -> None:
    for unknown_types in ("dead_letter", "pass"):
        got = decode(line, unknown_types=unknown_types)
        assert isinstance(got, Decoded) or got.reason in REASONS


pieces = st.sampled_from(
    [
        b"",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\",
        b"\\u00",
        b"\\ud800",
        b"\xc2\x80",
        b"\xff",
        b"null",
        b"1e999",
        b"-",
        b"9" * 20,
        b":",
        b",",
        b"\x7f",
        b'"type":',
        b'"metadata":{"a":',
        b"NaN",
    ]
)


@given(st.sampled_from(FULL), st.data())
def test_decode_is_total_on_lines_that_were_damaged(
    whole: dict[str, Any], data: st.DataObject
) -> None:
    line = json.dumps(whole, ensure_ascii=data.draw(st.booleans())).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(line)))
        end = data.draw(st.integers(start, min(len(line), start + 12)))
        line = line[:start] + data.draw(pieces) + line[end:]

    got = decode(line)

    assert isinstance(got, Decoded) or got.reason in REASONS


@given(st.sampled_from(FULL), st.data())
def test_both_ways_through_the_room_agree(whole: dict[str, Any], data: st.DataObject) -> None:
    """An unknown field sends a line the slow way; but for the field, nothing may change."""
    field = data.draw(st.sampled_from(sorted(whole)))
    odd: st.SearchStrategy[Any] = st.sampled_from(
        [None, "", "x", UUID, UUID.upper(), -1, 0, 6, 2**63, 1.5, True, [], {}]
    )
    line = whole | {field: data.draw(st.just(whole[field]) | odd)}

    plain, slow = decode(line), decode(line | {"zz": 1})

    if isinstance(plain, Decoded):
        assert isinstance(slow, Decoded)
        assert (plain.event, plain.suspect) == (slow.event, slow.suspect)
        assert (plain.extras or {}) | {"zz": 1} == slow.extras
    else:
        assert plain == slow


CANARY = "zq7canary"
planted = st.recursive(
    st.sampled_from([CANARY, f"{CANARY} - at `$.{CANARY}`", f"Expected `{CANARY}`", 1, None]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just(CANARY), inner, max_size=1),
    max_leaves=4,
)


@given(st.sampled_from(FULL), st.data())
def test_a_detail_never_holds_payload(whole: dict[str, Any], data: st.DataObject) -> None:
    line = dict(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        field = data.draw(st.sampled_from([*sorted(whole), CANARY]))
        part = whole.get(field)
        if isinstance(part, dict) and part:
            line[field] = part | {data.draw(st.sampled_from([*part, CANARY])): data.draw(planted)}
        else:
            line[field] = data.draw(planted)
    body = json.dumps(line).encode() + data.draw(st.sampled_from([b"", b"", b"x"]))

    got = decode(body, extra_bytes_max=data.draw(st.sampled_from([0, 16384])))

    assert isinstance(got, Decoded) or CANARY not in repr(got)


def test_every_known_type_has_a_full_line_here() -> None:
    kinds = {type(accepted(whole).event) for whole in FULL}

    assert set(KnownEvent.__args__) == kinds


TOGETHER = [
    *(json.dumps(fields).encode() for fields in FULL),
    *(LINE, b"", b"{", b"[1]", b"[" * 99_000, b'{"type":"taxi"}', b'{"type":"user_feedback"}'),
    *(
        json.dumps(feedback(**fields)).encode()
        for fields in (
            {"event_id": UUID},
            {"event_id": UUID.upper()},
            {"event_id": UUID[:-1]},
            {"event_id": "0" + UUID},
            {"event_id": UUID + "\n" + UUID},
            {"event_id": ""},
            {"request_id": "x"},
            {"timestamp": "2026-11-23T10:00:00Z"},
            {"timestamp": "2026-11-23T12:00:00Z"},
            {"timestamp": "2026-02-30T10:00:00Z"},
            {"timestamp": "2026-11-23T10:00:00Z\n2026-11-23T10:00:00Z"},
            {"timestamp": ""},
            {"metadata": dict.fromkeys(map(str, range(65)), 0)},
            {"comment": "\u0001"},
            {"x": 1},
        )
    ),
    b'{"type":"performance_metrics","model_id":"m","latency_ms":1,"tokens_input":2,"tokens_total":1}',
    b'{"type":"experiment_result","experiment_id":"x","variant_id":"v"}',
]


@given(st.lists(st.sampled_from(TOGETHER), max_size=8))
@example([TOGETHER[len(FULL) + 9], TOGETHER[len(FULL) + 10]])
def test_lines_together_are_what_each_is_alone(lines: list[bytes]) -> None:
    """Of many at once each shape is tested in one text: none may make up for its neighbour, as one
    id that is too short would for the next one that is too long."""
    decoder = Decoder(SchemaPolicy(age_max_s=3600))
    together = decoder.decode_all(lines, NOW_S)
    alone = [decoder.decode(line, NOW_S) for line in lines]
    assert alone == [
        one if isinstance(one, Decoded | Rejection) else Decoded(one) for one in together
    ]


@given(st.text(max_size=20) | st.floats(allow_nan=False, allow_infinity=False) | st.integers())
@example(1e16)
@example(1e-5)
@example("\x7f")
def test_no_value_grows_by_more_than_is_allowed_for(value: Any) -> None:
    """Unknown fields are not measured where they cannot be too many."""
    shortest = [json.dumps(value), json.dumps(value, ensure_ascii=False), f"{value:g}" if
                isinstance(value, float) else json.dumps(value)]  # fmt: skip
    for text in shortest:
        try:
            encoded = msgspec.json.encode(msgspec.json.decode(text))
        except msgspec.DecodeError:
            continue  # a control character, or an exponent beyond all
        assert len(encoded) <= _LONGER_MAX * len(text.encode())
