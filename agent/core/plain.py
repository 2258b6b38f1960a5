"""Lines that leave no doubt, many at once: a loop in C, then each test of a fixed shape over all of
their texts as one. Pure.

It only ever accepts. What it does not, ``core/decode`` looks at one by one, and says why.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar, cast

from agent.core.controls import BACKSLASH, DEL, may_hold_controls
from agent.core.diagnosis import UNREADABLE
from agent.core.events import (
    COLLECTOR_KEYS,
    METADATA_ENTRIES_MAX,
    Event,
    ExperimentResult,
    KnownEvent,
    ModelResponse,
    PerformanceMetrics,
)
from agent.core.formats import HEX_DIGITS, UUID_SHAPE, is_canonical_uuid, is_hex
from agent.core.recency import Recency

TRACEPARENT: Final = "traceparent"
"""What in ``metadata`` or beside it becomes a header."""

T = TypeVar("T")


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
    special = [
        at
        for at, line in enumerate(lines)
        if BACKSLASH in line or DEL in line or not line.isascii()
    ]
    for at in special:
        if may_hold_controls(lines[at]):
            found[at] = None
    return found


class Columns(NamedTuple):
    """Of many events what every event has, field by field."""

    ids: Sequence[str | None]
    request_ids: Sequence[str | None]
    times: Sequence[str | None]
    versions: Sequence[str | None]
    metadata: Sequence[dict[str, Any] | None]

    @classmethod
    def of(cls, events: Sequence[KnownEvent]) -> "Columns":
        return cls(*zip(*map(_COLUMNS, events), strict=True)) if events else cls((), (), (), (), ())


def all_right(events: Sequence[KnownEvent], of: Columns, recency: Recency) -> bool:
    """Return True only if each is ``right``, and its timestamp is not suspect."""
    return (
        _are_uuids(_present(of.ids))
        and _are_uuids(_present(of.request_ids))
        and recency.are_recent(_present(of.times))
        and max(map(len, _present(of.metadata)), default=0) <= METADATA_ENTRIES_MAX
        and not any(map(_contradicts, [one for one in events if type(one) in _CHECKED_KINDS]))
    )


def all_complete(of: Columns) -> bool:
    """Return whether ``is_complete`` says so of each, and each is ``right``: no id is empty."""
    return (
        all(of.ids)
        and all(of.times)
        and of.versions.count(None) == len(of.versions)
        and len(metadata := _present(of.metadata)) == len(of.metadata)
        and all(map(_OURS.isdisjoint, metadata))
    )


def is_complete(event: Event) -> bool:
    """Return whether an event has all that it is shipped with, and in it nothing that the agent
    replaces or makes a header of."""
    return (
        event.event_id is not None
        and event.timestamp is not None
        and event.schema_version is None
        and event.metadata is not None
        and _OURS.isdisjoint(event.metadata)
    )


def right(event: KnownEvent) -> bool:
    """Return whether an event is what C could not check, whatever its timestamp."""
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


def _present(column: Sequence[T | None]) -> Sequence[T]:
    """Return what is there of ``column``; mostly all of it is.

    ``all`` asks no element whether it equals another, and takes a quarter of the time of ``in``.
    """
    if all(column):
        return cast("Sequence[T]", column)
    return [one for one in column if one is not None]


def _are_uuids(texts: Sequence[str]) -> bool:
    """Return True only if each is a canonical UUID. No text can make up for its neighbour: one that
    holds a newline has one too many."""
    shapes = "\n".join(texts).encode().translate(HEX_DIGITS)
    return shapes == b"\n".join([UUID_SHAPE] * len(texts))


def _contradicts(event: KnownEvent) -> bool:
    """Return whether one of ``_CHECKED_KINDS`` is not what its type says in what C cannot check."""
    if type(event) is PerformanceMetrics:
        return event.tokens_total is not None and total_too_small(event)
    if type(event) is ModelResponse:
        return event.prompt_hash is not None and not is_hex(event.prompt_hash)
    return type(event) is ExperimentResult and not is_canonical_uuid(event.experiment_id)


_COLUMNS: Final[Callable[[Any], tuple[Any, ...]]] = attrgetter(
    "event_id", "request_id", "timestamp", "schema_version", "metadata"
)
_CHECKED_KINDS: Final = frozenset({ExperimentResult, ModelResponse, PerformanceMetrics})
_OURS: Final = COLLECTOR_KEYS | {TRACEPARENT}
