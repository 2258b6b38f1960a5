"""Who an event is to Kafka: its id, where its line brings none, and the key of its record. Pure."""

from collections.abc import Callable
from hashlib import sha1
from typing import Any, Final

import msgspec

from agent.core import events
from agent.core.events import Event

NAMESPACE: Final = bytes.fromhex("5b0f4d1c9f6e5a1b8d3c7a42e6f01d95")
"""Of the UUIDv5 of lines without ``event_id``. Never to change: the same line read twice, also by
a later version, has the same id."""


def uuid5(name: bytes) -> str:
    """Return the UUIDv5 of ``name`` in ``NAMESPACE``."""
    digest = sha1(NAMESPACE + name, usedforsecurity=False).hexdigest()
    return (
        f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}"
        f"-{_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"
    )


def key_of(name: str, client: str) -> Callable[[Event, dict[str, Any] | None], bytes | None]:
    """Return what computes the key; a field that a line lacks gives it no key."""
    constant = {"none": None, "client": client.encode()}

    def event_id(event: Event, _extras: dict[str, Any] | None) -> bytes | None:
        return event.event_id.encode() if event.event_id is not None else None

    def fixed(_event: Event, _extras: dict[str, Any] | None) -> bytes | None:
        return constant[name]

    def field(event: Event, extras: dict[str, Any] | None) -> bytes | None:
        value = getattr(event, name) if name in event.__struct_fields__ else None
        if value is None and extras:
            value = extras.get(name)
        if value is None and name in {"schema_version", "type"}:
            version = name == "schema_version"
            value = events.SCHEMA_VERSION if version else event.__struct_config__.tag
        if value is None:
            return None
        return value.encode() if isinstance(value, str) else _encode(value)

    if name == "event_id":
        return event_id
    return fixed if name in constant else field


_encode = msgspec.json.Encoder().encode
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
