"""Every frozen policy: the numbers that steer the rooms. Units stand last in each name.

The configuration's sections are these classes, so a bound lives in one place.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Seconds = Annotated[float, Meta(ge=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(min_length=1, max_length=249)]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


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
    attempts_max: Annotated[int, Meta(ge=1, le=100)] = 3
    """Lives of producers in a row without an acknowledgement before events go to the spool."""
    backoff_s: PositiveSeconds = 1.0
    backoff_max_s: PositiveSeconds = 30.0


class BreakerPolicy(Policy, frozen=True):
    failures_max: Annotated[int, Meta(ge=1)] = 5
    cooldown_s: PositiveSeconds = 30.0
    ack_age_max_s: Annotated[float, Meta(gt=0, le=120)] = 30.0


class ClientQuotaPolicy(Policy, frozen=True):
    """What each client may have of the agent. None: no limit."""

    events_per_s: Annotated[float, Meta(gt=0)] | None = None
    bytes_per_s: Annotated[int, Meta(ge=KIB)] | None = None
    burst_s: Annotated[float, Meta(gt=0, le=3600)] = 2.0
    """How many seconds' worth of either a client that was quiet may have at once."""


class ReceiptsPolicy(Policy, frozen=True):
    """What is kept of acknowledgements, for a proof of delivery."""

    enabled: bool = True
    keep_s: PositiveSeconds = 259_200.0
    bytes_max: Annotated[int, Meta(ge=MIB)] = 64 * MIB
    write_s: Annotated[float, Meta(ge=0.01, le=3600)] = 10.0
    """Between two writes; what a crash may take of them."""


class SpoolPolicy(Policy, frozen=True):
    enabled: bool = True
    bytes_max: Annotated[int, Meta(ge=MIB)] | None = None
    """Of its records, compressed. None: the smaller of 1 GiB and 5 % of the file system."""
    disk_free_min: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """Share of the file system that stays free, whatever ``bytes_max`` allows."""
    when_full: Literal["stop", "drop_oldest"] = "stop"
