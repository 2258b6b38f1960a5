"""Whether the time that an event gives is near enough to the reader's clock. Pure."""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from agent.core.formats import DIGITS, TIMESTAMP_SHAPES, epoch_s

AHEAD_MAX_S: Final = 300.0
"""A timestamp further ahead of the reader's clock is suspect."""

_UTC_SHAPES: Final = frozenset(shape for shape in TIMESTAMP_SHAPES if shape.endswith(b"Z"))
_from_iso = datetime.fromisoformat  # bound once: the look-up costs as much as the call


class Recency:
    """Judge timestamps against ``set_now``, in seconds since 1970 UTC.

    ``age_max_s``: an older timestamp is suspect; None: none is too old.
    """

    def __init__(self, age_max_s: float | None) -> None:
        self._age_max_s = age_max_s
        self._now_s: float | None = None
        self.set_now(0.0)

    def set_now(self, now_s: float) -> None:
        if now_s == self._now_s:
            return
        self._now_s, self._latest_s = now_s, now_s + AHEAD_MAX_S
        self._latest = datetime.fromtimestamp(self._latest_s, UTC)
        self._oldest_s, self._oldest = float("-inf"), datetime.min.replace(tzinfo=UTC)
        if self._age_max_s is not None and now_s - self._age_max_s > self._oldest.timestamp():
            self._oldest_s = now_s - self._age_max_s
            self._oldest = datetime.fromtimestamp(self._oldest_s, UTC)

    def are_recent(self, timestamps: Sequence[str]) -> bool:
        """Return True only if ``suspect`` says False of each."""
        if not timestamps:
            return True
        # No text can make up for its neighbour: one that holds a newline has no shape of the list.
        shapes = "\n".join(timestamps).encode().translate(DIGITS)
        shape = shapes[: len(timestamps[0])]
        if shape not in _UTC_SHAPES or shapes != b"\n".join([shape] * len(timestamps)):
            return False
        try:
            deque(map(_from_iso, timestamps), maxlen=0)
        except ValueError:  # out of range, or a leap second
            return False
        # of one shape, they are in the order of their texts
        first, last = _from_iso(min(timestamps)), _from_iso(max(timestamps))
        return self._oldest <= first and last <= self._latest

    def suspect(self, timestamp: str) -> bool | None:
        """Return whether the timestamp is too far from now, None if it is malformed."""
        if timestamp.encode().translate(DIGITS) in TIMESTAMP_SHAPES and (
            timestamp[-1] == "Z" or timestamp[-2] < "6"  # fromisoformat takes +00:99
        ):
            try:
                if self._oldest <= _from_iso(timestamp) <= self._latest:
                    return False
            except ValueError:
                pass  # out of range, or a leap second
        at_s = epoch_s(timestamp)
        return None if at_s is None else not self._oldest_s <= at_s <= self._latest_s
