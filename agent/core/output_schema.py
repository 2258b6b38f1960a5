"""The JSON Schema of what consumers read: an event after it was enriched. Pure.

Made of ``core/events``, so it cannot say anything else than what the decoder accepts. What a schema
cannot say stands in docs/events.md.
"""

from typing import Any, Final

import msgspec

from agent.core.events import COLLECTOR_KEYS, EVENT_TYPES, KnownEvent

_ALWAYS: Final = ("event_id", "timestamp", "schema_version", "metadata")
_UUIDS: Final = ("event_id", "request_id", "experiment_id")
_OF_LINES: Final = {"default", "additionalProperties", "description"}
_VALUE: Final = {"description": "Any JSON value."}


def json_schema() -> dict[str, Any]:
    """Return the schema of the value of a record in the topic of events.

    Fields that a type does not know are allowed: they are kept. With ``schema.unknown_types: pass``
    there are records of other types too, which no branch of it describes.
    """
    (union,), parts = msgspec.json.schema_components([KnownEvent], ref_template="#/$defs/{name}")
    kinds = {kind.__name__ for kind in EVENT_TYPES.values()}
    named = {n: _enriched(of) if n in kinds else _loose(of) for n, of in parts.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "feedback event",
        "oneOf": union["anyOf"],
        "$defs": dict(sorted(named.items())),
    }


def _loose(schema: Any) -> Any:
    """Leave out what holds for a line only."""
    if isinstance(schema, list):
        return [_loose(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _loose(value) for name, value in schema.items() if name not in _OF_LINES}


def _enriched(schema: dict[str, Any]) -> dict[str, Any]:
    """Say of a type what the agent adds to a line of it."""
    schema = _loose(schema)
    fields = {name: _there(one) for name, one in schema["properties"].items()}
    for name in _UUIDS:
        if name in fields:
            fields[name] = {"type": "string", "format": "uuid"}
    fields["timestamp"] = {"type": "string", "format": "date-time"}
    fields["metadata"] = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in sorted(COLLECTOR_KEYS)},
        "required": sorted(COLLECTOR_KEYS),
        "additionalProperties": _VALUE,
    }
    required = [*schema["required"], *(n for n in _ALWAYS if n not in schema["required"])]
    return {**schema, "properties": fields, "required": required}


def _there(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out null: at the top of an event a field that is null is not written again."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if not kinds:
        return schema
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
