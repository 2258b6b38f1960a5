"""Why a line or a record becomes a dead letter. The list is closed; consumers may rely on it."""

from typing import Literal, get_args

Reason = Literal[
    "oversize",
    "invalid_utf8",
    "invalid_json",
    "not_an_object",
    "too_deep",
    "number",
    "unknown_type",
    "schema",
    "event_id",
    "extra_too_large",
    "unterminated",
    "redaction_failed",
    "refused_too_large",
    "refused_invalid",
]
"""``refused_*`` are Kafka's answer to a record; the others reject a line before it is sent."""

REASONS: tuple[Reason, ...] = get_args(Reason)
