"""Every frozen policy: the numbers that steer the rooms. Units stand last in each name.

The configuration's sections are these classes, so a bound lives in one place.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(min_length=1, max_length=249)]

KIB, MIB = 1 << 10, 1 << 20


class Policy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: immutable, and a misspelt key is an error, not a default."""


class SchemaPolicy(Policy, frozen=True):
    unknown_types: Literal["dead_letter", "pass"] = "dead_letter"
    age_max_s: PositiveSeconds | None = None
    extra_bytes_max: Annotated[int, Meta(ge=0, le=768 * KIB)] = 16384


class BatchPolicy(Policy, frozen=True):
    records_max: Annotated[int, Meta(ge=1)] = 100
    """Where the adaptive size starts; a backlog grows it up to ``bytes_max``."""
    bytes_max: Annotated[int, Meta(ge=16 * KIB, le=16 * MIB)] = 256 * KIB
    """Of one batch, before compression."""
    age_min_s: Annotated[float, Meta(gt=0, le=10)] = 0.01
    age_max_s: Annotated[float, Meta(gt=0, le=60)] = 10.0


class InFlightPolicy(Policy, frozen=True):
    events_max: Annotated[int, Meta(ge=1)] = 10_000
    bytes_max: Annotated[int, Meta(ge=MIB)] = 32 * MIB


class RetryPolicy(Policy, frozen=True):
    backoff_s: PositiveSeconds = 1.0
    backoff_max_s: PositiveSeconds = 30.0


class BreakerPolicy(Policy, frozen=True):
    failures_max: Annotated[int, Meta(ge=1)] = 5
    cooldown_s: PositiveSeconds = 30.0
    ack_age_max_s: PositiveSeconds = 30.0
