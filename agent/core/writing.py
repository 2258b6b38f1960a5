"""An event as JSON, but for what the agent adds: all that may be an app's own text in one stretch.
Pure.

Redaction looks at that stretch of many events at once, and then it is shipped: ``core/record`` puts
the agent's own metadata in front of it.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from agent.core import events
from agent.core.decode import Decoded
from agent.core.diagnosis import Rejection
from agent.core.events import Event

Found = Event | Decoded | Rejection
"""What became of a line so far."""

Written = tuple[bytes, bytes]
"""An event as JSON, but for what the agent adds: what stands before ``metadata``, and what is in it
and behind it. All that may be text of an app's own is in the second part."""

PLAIN: Final = frozenset(events.EVENT_TYPES.values())
METADATA: Final = b',"metadata":{'
"""What stands between the parts of ``Written``, and is in neither."""


def are_plain(found: Sequence[Found]) -> bool:
    """Return whether each is an event of which nothing more is to be said."""
    return PLAIN.issuperset(map(type, found))


def write(one: Found) -> Written:
    """Write an event that is complete as JSON; nothing is written of a rejection."""
    if isinstance(one, Rejection):
        return _NOTHING
    value = _encode(one.event if isinstance(one, Decoded) else one)
    if isinstance(one, Decoded) and one.extras:
        value = b"%b,%b" % (value[:-1], _encode(one.extras)[1:])
    at = value.find(_BRACE, 1)  # metadata is the first object inside of an event: ``core/events``
    return value[: at - _NAME_BYTES], value[at + 1 :]


def write_all(found: Sequence[Found]) -> list[Written]:
    """Return what ``write`` does of each."""
    if not are_plain(found):
        return [*map(write, found)]
    values = [*map(_encode, found)]
    braces = [value.find(_BRACE, 1) for value in values]
    return [
        (value[: at - _NAME_BYTES], value[at + 1 :])
        for value, at in zip(values, braces, strict=True)
    ]


_encode = msgspec.json.Encoder().encode
_NAME_BYTES: Final = len(METADATA) - 1
_BRACE: Final = b"{"
_NOTHING: Final = b"", b""
