"""Every bound of every field: at it, within it and beyond it."""

import json
from typing import Any

import msgspec
import pytest

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import EVENT_TYPES, CustomEvent, Event, UnknownEvent
from agent.core.policy import SchemaPolicy

NOW_S = 1_795_428_000.0  # 2026-11-23T10:00:00Z
UUID = "4b8c0f9e-1111-4222-8333-444455556666"
MINIMAL: dict[str, dict[str, Any]] = {
    "user_feedback": {"session_id": "s"},
    "performance_metrics": {"model_id": "m", "latency_ms": 0},
    "model_response": {"model_id": "m"},
    "system_health": {"service_name": "s", "status": "healthy"},
    "experiment_result": {"experiment_id": UUID, "variant_id": "v"},
}
FEEDBACK, PERFORMANCE, RESPONSE, HEALTH, EXPERIMENT = MINIMAL
INTEGER_MAX = 2**63 - 1

name = (["x", "ü" * 256], ["", "x" * 257, 1, True, ["x"], {}])
uuid = (
    [UUID, UUID.upper(), UUID.replace("-", "")],
    ["", "x", UUID[:-1], UUID + "0", 1, f"{{{UUID}}}"],
)
share = ([0, 1, 0.0, 1.0, 0.5], [-0.1, 1.1, -1, 2, "0.5", True, []])
number = ([0, -1, 1.5, INTEGER_MAX, -(2**63)], ["1", True, [], {}])
count = ([0, 1, INTEGER_MAX], [-1, 1.5, "1", True, []])
amount = ([0, 0.0, 1e300, INTEGER_MAX], [-1, -0.1, "1", True, []])
text = (["", "x" * 5000], [1, True, [], {}])
flag = ([True, False], [0, 1, "true", []])

BOUNDS: list[tuple[str, str, tuple[list[Any], list[Any]]]] = [
    *((kind, "event_id", uuid) for kind in MINIMAL),
    *((kind, "schema_version", (["1.0", "", "x" * 64], ["x" * 65, 1, []])) for kind in MINIMAL),
    *(
        (
            kind,
            "metadata",
            (
                [{}, {f"k{i}": [i, {"x": None}] for i in range(64)}],
                [{f"k{i}": i for i in range(65)}, {f"k{i}": i for i in range(69)}, [], "x", 1],
            ),
        )
        for kind in MINIMAL
    ),
    *((kind, "request_id", uuid) for kind in (FEEDBACK, PERFORMANCE, RESPONSE, EXPERIMENT)),
    (FEEDBACK, "session_id", name),
    (FEEDBACK, "user_id", (["", "x" * 256], ["x" * 257, 1])),
    (FEEDBACK, "rating", ([0, 5, 0.0, 5.0, 4, 4.5], [-1, 6, -0.1, 5.1, "4", True])),
    (FEEDBACK, "thumbs", (["up", "down"], ["", "Up", "sideways", 1, True])),
    (FEEDBACK, "comment", (["", "ü" * 10_000, "a\r\n\tb"], ["x" * 10_001, 1, []])),
    (FEEDBACK, "tags", ([[], ["x"] * 64, ["ü" * 128], [""]], [["x"] * 65, ["x" * 129], [1], "x"])),
    (PERFORMANCE, "model_id", name),
    (PERFORMANCE, "latency_ms", amount),
    (PERFORMANCE, "provider", text),
    (PERFORMANCE, "tokens_input", count),
    (PERFORMANCE, "tokens_output", count),
    (PERFORMANCE, "tokens_total", count),
    (PERFORMANCE, "cost_usd", amount),
    (PERFORMANCE, "success", flag),
    (PERFORMANCE, "error_type", text),
    (PERFORMANCE, "cache_hit", flag),
    (PERFORMANCE, "custom_metrics", ([{}, {"a": 1, "b": -1.5}], [{"a": "1"}, {"a": True}, [], 1])),
    (RESPONSE, "model_id", name),
    (RESPONSE, "quality_score", ([0, 100, 87.5], [-1, 101, -0.1, 100.1, "1", True])),
    *(
        (RESPONSE, f"quality_dimensions.{part}", share)
        for part in ("accuracy", "relevance", "coherence", "completeness", "safety")
    ),
    (RESPONSE, "quality_dimensions", ([{}], [[], 1, "x"])),
    (RESPONSE, "prompt_hash", (["", "0aF9" * 2000], [1, True, [], {}])),
    (RESPONSE, "response_length", count),
    (RESPONSE, "finish_reason", text),
    (RESPONSE, "model_params", ([{}], [[], 1, "x"])),
    (RESPONSE, "model_params.temperature", amount),
    (RESPONSE, "model_params.top_p", share),
    (RESPONSE, "model_params.max_tokens", count),
    (RESPONSE, "model_params.top_k", count),
    (HEALTH, "service_name", name),
    (HEALTH, "status", (["healthy", "degraded", "unhealthy"], ["", "ok", 1, True])),
    (HEALTH, "error_rate", share),
    (HEALTH, "availability", share),
    (HEALTH, "resources", ([{}], [[], 1, "x"])),
    *(
        (HEALTH, f"resources.{part}", number)
        for part in ("cpu_percent", "memory_mb", "memory_percent", "network_mbps")
    ),
    (HEALTH, "active_requests", count),
    (EXPERIMENT, "experiment_id", uuid),
    (EXPERIMENT, "variant_id", name),
    (
        EXPERIMENT,
        "experiment_type",
        (["ab_test", "multi_armed_bandit", "parameter_tuning"], ["", "abtest", 1]),
    ),
    (EXPERIMENT, "reward", number),
    (EXPERIMENT, "metrics", ([{}], [[], 1, "x"])),
    *(
        (EXPERIMENT, f"metrics.{part}", number)
        for part in ("cost", "quality", "latency_ms", "user_satisfaction")
    ),
]
REQUIRED = [(kind, field) for kind, fields in MINIMAL.items() for field in fields]


@pytest.mark.parametrize("kind", [*EVENT_TYPES.values(), CustomEvent, UnknownEvent])
def test_what_may_be_text_of_an_app_stands_from_metadata_on(kind: type[Event]) -> None:
    """Redaction looks at nothing before it, and the agent's own keys are put in behind it."""
    of_forms = {"event_id", "request_id", "experiment_id", "timestamp", "prompt_hash"}
    before, _, _ = " ".join(kind.__struct_fields__).partition(" metadata")
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for name in {*before.split()} - of_forms:
        plain = msgspec.inspect.type_info(types[name])
        allowed = (
            msgspec.inspect.IntType,
            msgspec.inspect.FloatType,
            msgspec.inspect.BoolType,
            msgspec.inspect.NoneType,
            msgspec.inspect.LiteralType,
        )
        parts = plain.types if isinstance(plain, msgspec.inspect.UnionType) else (plain,)
        assert all(isinstance(part, allowed) for part in parts), name


def line_of(kind: str, field: str, value: Any) -> bytes:
    outer, _, inner = field.partition(".")
    fields = {"type": kind} | MINIMAL[kind] | {outer: {inner: value} if inner else value}
    return json.dumps(fields).encode()


def decode(line: bytes) -> Decoded | Rejection:
    return Decoder(SchemaPolicy()).decode(line, NOW_S)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, field, value) for kind, field, (good, _) in BOUNDS for value in good],
)
def test_a_value_within_its_bounds_is_accepted_as_written(
    kind: str, field: str, value: Any
) -> None:
    got = decode(line_of(kind, field, value))

    assert isinstance(got, Decoded), got
    kept = got.event
    for part in field.split("."):
        kept = getattr(kept, part)
    if isinstance(value, dict | list):
        return
    expected = UUID if field.endswith("_id") and value in uuid[0] else value
    assert (type(expected), expected) == (type(kept), kept)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(kind, field, value) for kind, field, (_, bad) in BOUNDS for value in bad],
)
def test_a_value_beyond_its_bounds_rejects_the_line_and_is_named(
    kind: str, field: str, value: Any
) -> None:
    got = decode(line_of(kind, field, value))

    assert isinstance(got, Rejection), got
    assert got.reason == ("event_id" if field == "event_id" else "schema")
    assert got.detail.startswith(field)
    assert got.event_type == kind


@pytest.mark.parametrize(("kind", "field"), REQUIRED)
@pytest.mark.parametrize("null", [True, False])
def test_a_required_field_must_be_there(kind: str, field: str, null: bool) -> None:
    fields = {"type": kind} | MINIMAL[kind]
    del fields[field]
    got = decode(json.dumps(fields | ({field: None} if null else {})).encode())

    assert isinstance(got, Rejection)
    assert ("schema", field) == (got.reason, got.detail.split(":")[0])


@pytest.mark.parametrize(
    ("kind", "field"), [(k, f) for k, f, _ in BOUNDS if (k, f) not in REQUIRED]
)
def test_null_counts_as_absent(kind: str, field: str) -> None:
    got = decode(line_of(kind, field, None))

    assert isinstance(got, Decoded), got


@pytest.mark.parametrize(
    ("tokens", "accepted"),
    [((5, 5, 5), True), ((5, 6, 5), False), ((6, 5, 5), False), ((0, 0, 0), True)],
)
def test_a_total_of_tokens_is_not_less_than_either_part(
    tokens: tuple[int, int, int], accepted: bool
) -> None:
    fields = dict(zip(("tokens_input", "tokens_output", "tokens_total"), tokens, strict=True))
    got = decode(json.dumps({"type": PERFORMANCE, **MINIMAL[PERFORMANCE], **fields}).encode())

    assert accepted == isinstance(got, Decoded)
