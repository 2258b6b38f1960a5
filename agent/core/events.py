"""The five event types, with every bound that a line must keep. Pure.

Bounds are msgspec ``Meta``, so one pass in C decodes a line and checks it; lengths count
characters. What C cannot say (the form of a UUID and of a timestamp, a total that is not less than
its parts) is checked by ``core/decode``. Numbers stay as they were written: 4 is not 4.0. A field
that is null counts as absent, and an absent one is not written again.

The order of the fields is the order in which they are written: first what holds no text of an app's
own (ids, times, numbers, closed lists), then ``metadata``, then all other text. So what may hold
personal data is one stretch of an encoded event, from ``metadata`` on, and redaction looks at that
stretch of many events at once: ``core/encode``. Tests hold each type to it.
"""

from types import GenericAlias
from typing import Annotated, Any, ClassVar, Final, Literal

from msgspec import Meta, Struct

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
"""Signed 64 bits: what a consumer in Java, Go or SQL reads without loss."""
DEPTH_MAX = 10
"""Of objects and arrays in a line; the top object is 1."""
METADATA_ENTRIES_MAX = 64
SCHEMA_VERSION: Final = "1.0"
"""Of a line that names none, and not kept with an event: whoever ships it says it."""

COLLECTOR_KEYS: Final = frozenset({"collector_id", "collector_version", "hostname", "client"})
"""What the agent itself writes into ``metadata``. They do not count as entries: a shipped event
that is read again must not be rejected for them."""

Integer = Annotated[int, Meta(ge=INTEGER_MIN, le=INTEGER_MAX)]
Number = Integer | float
Scalar = str | Number | bool | None


def json_at(depth: int) -> Any:
    """Return the type of a JSON value that, where it is a container, stands at ``depth``.

    Depth and the range of integers thus are part of the type and cost no walk in Python.
    """
    if depth > DEPTH_MAX:
        return Scalar
    inner = json_at(depth + 1)
    return Scalar | GenericAlias(list, (inner,)) | GenericAlias(dict, (str, inner))


_MetadataValue = json_at(3)
Metadata = Annotated[
    dict[str, _MetadataValue],  # type: ignore[valid-type]
    Meta(max_length=METADATA_ENTRIES_MAX + len(COLLECTOR_KEYS)),
]
SchemaVersion = Annotated[str, Meta(max_length=64)]
"""Bounded because it becomes a header."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Amount = Annotated[int, Meta(ge=0, le=INTEGER_MAX)] | Annotated[float, Meta(ge=0)]
Share = Annotated[int, Meta(ge=0, le=1)] | Annotated[float, Meta(ge=0, le=1)]
Stars = Annotated[int, Meta(ge=0, le=5)] | Annotated[float, Meta(ge=0, le=5)]
Score = Annotated[int, Meta(ge=0, le=100)] | Annotated[float, Meta(ge=0, le=100)]


class Part(Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """An object inside an event. Where a line has other fields in it, ``core/decode`` puts a
    plain dict in its place that keeps them."""


class QualityDimensions(Part):
    accuracy: Share | None = None
    relevance: Share | None = None
    coherence: Share | None = None
    completeness: Share | None = None
    safety: Share | None = None


class ModelParams(Part):
    temperature: Amount | None = None
    top_p: Share | None = None
    max_tokens: Count | None = None
    top_k: Count | None = None


class Resources(Part):
    cpu_percent: Number | None = None
    memory_mb: Number | None = None
    memory_percent: Number | None = None
    network_mbps: Number | None = None


class ExperimentMetrics(Part):
    cost: Number | None = None
    quality: Number | None = None
    latency_ms: Number | None = None
    user_satisfaction: Number | None = None


class Common(Struct, gc=False, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """What every event may hold.

    ``event_id``, ``request_id`` and ``experiment_id`` are UUIDs in canonical lower case,
    ``timestamp`` is RFC 3339 with its offset as it was written: ``core/decode`` sees to both.
    Each type has ``metadata`` and ``schema_version`` too, between its numbers and its texts.
    """

    event_id: str | None = None
    timestamp: str | None = None


class UserFeedback(Common, tag="user_feedback", kw_only=True):
    request_id: str | None = None
    rating: Stars | None = None
    thumbs: Literal["up", "down"] | None = None
    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    session_id: Name
    user_id: Annotated[str, Meta(max_length=256)] | None = None
    comment: Annotated[str, Meta(max_length=10_000)] | None = None
    tags: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)] | None = None


class PerformanceMetrics(Common, tag="performance_metrics", kw_only=True):
    """``tokens_total``, where given, is not less than ``tokens_input`` nor ``tokens_output``."""

    request_id: str | None = None
    latency_ms: Amount
    tokens_input: Count | None = None
    tokens_output: Count | None = None
    tokens_total: Count | None = None
    cost_usd: Amount | None = None
    success: bool | None = None
    cache_hit: bool | None = None
    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    model_id: Name
    provider: str | None = None
    error_type: str | None = None
    custom_metrics: dict[str, Number] | None = None


class ModelResponse(Common, tag="model_response", kw_only=True):
    """``prompt_hash`` stands among the ids, which it is where it is hexadecimal: redaction looks at
    it by itself where it is not."""

    request_id: str | None = None
    prompt_hash: str | None = None
    quality_score: Score | None = None
    response_length: Count | None = None
    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    model_id: Name
    quality_dimensions: QualityDimensions | None = None
    finish_reason: str | None = None
    model_params: ModelParams | None = None


class SystemHealth(Common, tag="system_health", kw_only=True):
    status: Literal["healthy", "degraded", "unhealthy"]
    error_rate: Share | None = None
    availability: Share | None = None
    active_requests: Count | None = None
    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    service_name: Name
    resources: Resources | None = None
    request_id: ClassVar[None] = None


class ExperimentResult(Common, tag="experiment_result", kw_only=True):
    experiment_id: str
    request_id: str | None = None
    experiment_type: Literal["ab_test", "multi_armed_bandit", "parameter_tuning"] | None = None
    reward: Number | None = None
    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    variant_id: Name
    metrics: ExperimentMetrics | None = None


class UnknownEvent(Common, kw_only=True):
    """A line of a type we do not know, where the policy lets it pass: all but the common fields,
    the name of its type included, stands in ``Decoded.extras``."""

    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    request_id: ClassVar[None] = None


class CustomEvent(Common, kw_only=True):
    """A line of a type that a team's own JSON Schema describes: what the schema says of it stands
    in ``Decoded.extras``. The name of the type comes from the configuration: it is no payload."""

    metadata: Metadata | None = None
    schema_version: SchemaVersion | None = None
    type: str
    request_id: ClassVar[None] = None


KnownEvent = UserFeedback | PerformanceMetrics | ModelResponse | SystemHealth | ExperimentResult
Event = KnownEvent | CustomEvent | UnknownEvent

EVENT_TYPES: Final[dict[str, type[KnownEvent]]] = {
    "user_feedback": UserFeedback,
    "performance_metrics": PerformanceMetrics,
    "model_response": ModelResponse,
    "system_health": SystemHealth,
    "experiment_result": ExperimentResult,
}

PARTS: Final[dict[type[Event], dict[str, type[Part]]]] = {
    ModelResponse: {"quality_dimensions": QualityDimensions, "model_params": ModelParams},
    SystemHealth: {"resources": Resources},
    ExperimentResult: {"metrics": ExperimentMetrics},
}
