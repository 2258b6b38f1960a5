"""Lines that leave no doubt, many at once: a loop in C, then each test of a fixed shape over all of
their texts as one. Pure.

It only ever accepts. What it does not, ``core/decode`` looks at one by one, and says why.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final

from agent.core.controls import BACKSLASH, DEL, may_hold_controls
from agent.core.diagnosis import UNREADABLE
from agent.core.events import METADATA_ENTRIES_MAX, ExperimentResult, KnownEvent, PerformanceMetrics
from agent.core.formats import HEX_DIGITS, UUID_SHAPE, is_canonical_uuid
from agent.core.recency import Recency


def plain_events(
    lines: Sequence[bytes], decode: Callable[[bytes], KnownEvent]
) -> list[KnownEvent | None]:
    """Return the event of each line, None for one in doubt."""
    found: list[KnownEvent | None] = []
    events = map(decode, lines)
    while True:
        try:
            found.extend(events)  # keeps what it has when a line is bad; ``events`` is behind it
        except UNREADABLE:
            found.append(None)
        else:
            break
    for at, line in enumerate(lines):
        if (BACKSLASH in line or DEL in line or not line.isascii()) and may_hold_controls(line):
            found[at] = None
    return found


def all_right(events: Sequence[KnownEvent], recency: Recency) -> bool:
    """Return True only if each is what C could not check, and its timestamp is not suspect."""
    ids = [event.event_id for event in events if event.event_id is not None]
    request_ids = [event.request_id for event in events if event.request_id is not None]
    timestamps = [event.timestamp for event in events if event.timestamp is not None]
    metadata = [len(event.metadata) for event in events if event.metadata is not None]
    return (
        _are_uuids(ids)
        and _are_uuids(request_ids)
        and recency.are_recent(timestamps)
        and max(metadata, default=0) <= METADATA_ENTRIES_MAX
        and not any(type(event) in _CHECKED_KINDS and _contradicts(event) for event in events)
    )


def right(event: KnownEvent) -> bool:
    """Return the same for one event, whatever its timestamp."""
    event_id, request_id, metadata = event.event_id, event.request_id, event.metadata
    return (
        (event_id is None or is_canonical_uuid(event_id))
        and (request_id is None or is_canonical_uuid(request_id))
        and (metadata is None or len(metadata) <= METADATA_ENTRIES_MAX)
        and not _contradicts(event)
    )


def total_too_small(event: PerformanceMetrics) -> bool:
    total = event.tokens_total
    return total is not None and (
        total < (event.tokens_input or 0) or total < (event.tokens_output or 0)
    )


def _are_uuids(texts: list[str]) -> bool:
    """Return True only if each is a canonical UUID. No text can make up for its neighbour: one that
    holds a newline has one too many."""
    shapes = "\n".join(texts).encode().translate(HEX_DIGITS)
    return shapes == b"\n".join(repeat(UUID_SHAPE, len(texts)))


def _contradicts(event: KnownEvent) -> bool:
    """Return whether one of ``_CHECKED_KINDS`` is wrong in what no type can say."""
    if type(event) is PerformanceMetrics:
        return total_too_small(event)
    return type(event) is ExperimentResult and not is_canonical_uuid(event.experiment_id)


_CHECKED_KINDS: Final = frozenset({ExperimentResult, PerformanceMetrics})
