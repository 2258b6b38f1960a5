"""Live, spooling or replaying: where the lines of now go while the spool holds older ones. Pure.

    LIVE       nothing is spooled; lines go to Kafka
    SPOOLING   Kafka is away; lines go to the spool's tail
    REPLAYING  Kafka is back; the spool goes to Kafka, and lines still go to its tail, or they
               would overtake what is spooled (invariants 3 and 10)

The mode is derived from what is true at the moment, and stored nowhere.
"""

from enum import Enum

TAIL_SHARE = 0.5
"""Of the records replayed, how many new ones may join the tail meanwhile: so the spool empties."""


class Mode(Enum):
    LIVE = "live"
    SPOOLING = "spooling"
    REPLAYING = "replaying"


def mode_of(*, outage: bool, spooled: bool) -> Mode:
    if outage:
        return Mode.SPOOLING
    return Mode.REPLAYING if spooled else Mode.LIVE


class Tail:
    """How much may be added to the spool's tail while its head is replayed.

    Without a ``share`` there is no limit: the spool then empties when little enough comes in.
    """

    def __init__(self, share: float | None) -> None:
        self._share = share
        self._credit = 0.0

    def replayed(self, records: int) -> None:
        if self._share is not None:
            self._credit += self._share * records

    def appended(self, records: int) -> None:
        self._credit -= records

    def rest(self) -> None:
        """Forget: nothing is being replayed."""
        self._credit = 0.0

    @property
    def may_grow(self) -> bool:
        return self._share is None or self._credit > 0
