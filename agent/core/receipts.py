"""What Kafka acknowledged, of which bytes of which file, and where in the topic it is. Pure.

A receipt helps to find records and proves nothing: a proof reads them. So it may be coarse. One
stands for all that was acknowledged of a generation between two writes: from its first line to its
last, and of each partition from the first ``kafka_offset`` to the last.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from agent.core.places import Life, Place

Window = tuple[int, int]
"""The first and the last number: of the records of a partition, or of a queue of the spool. For a
partition -1 and -1: the broker has the records and did not say where."""

UNTOLD: Window = (-1, -1)


class Receipt(Struct, kw_only=True, omit_defaults=True):
    """What became of lines between ``start`` and ``end`` of a generation.

    Attributes:
        at: When it was written, seconds since the epoch.
        acked: By topic and number of the partition.
        spooled: By the name of the queue: put by on this node, and settled by that.
    """

    at: float
    source: str
    generation: int
    start: int
    end: int
    acked: dict[str, dict[str, Window]] = field(default_factory=dict)
    spooled: dict[str, Window] = field(default_factory=dict)

    @property
    def life(self) -> Life:
        return self.source, self.generation


class Tally:
    """Receipts that are not written yet.

    Memory is bounded: ``windows_max`` windows at a time, one for each generation and partition.
    """

    def __init__(self, windows_max: int) -> None:
        self._windows_max = windows_max
        self._open: dict[Life, Receipt] = {}
        self.held = 0
        """Windows by now."""
        self.dropped = 0

    @property
    def lives(self) -> int:
        """Return of how many generations there are some."""
        return len(self._open)

    def acked(self, places: Iterable[Place], topic: str, partition: int, window: Window) -> None:
        """Note that the records of a batch with lines of ``places`` are in a partition."""
        for place in places:
            receipt = self._of(place)
            windows = receipt.acked.get(topic, {})
            if self._widen(receipt, place, windows, str(partition), window):
                receipt.acked[topic] = windows

    def spooled(self, places: Iterable[Place], queue: str, window: Window) -> None:
        """Note that the records of a batch with lines of ``places`` are in a queue of the spool."""
        for place in places:
            receipt = self._of(place)
            self._widen(receipt, place, receipt.spooled, queue, window)

    def take(self, at: float) -> list[Receipt]:
        """Return what there is, as of ``at``, and begin anew."""
        taken, self._open, self.held = [*self._open.values()], {}, 0
        for receipt in taken:
            receipt.at = at
        return taken

    def _of(self, place: Place) -> Receipt:
        source, generation, start, end = place
        return self._open.get(place.life) or Receipt(
            at=0.0, source=source, generation=generation, start=start, end=end
        )

    def _widen(
        self,
        receipt: Receipt,
        place: Place,
        windows: dict[str, Window],
        name: str,
        window: Window,
    ) -> bool:
        """Note a window, unless it is one too many. Return whether it was noted."""
        if name not in windows:
            if self.held >= self._windows_max:
                self.dropped += 1
                return False
            self.held += 1
        self._open[place.life] = receipt
        receipt.start, receipt.end = min(receipt.start, place.start), max(receipt.end, place.end)
        _widen(windows, name, window)
        return True


def _widen(windows: dict[str, Window], name: str, window: Window) -> None:
    before = windows.get(name, window)
    if UNTOLD in (before, window):
        windows[name] = UNTOLD  # what is somewhere must be looked for everywhere
    else:
        windows[name] = min(before[0], window[0]), max(before[1], window[1])


Partition = tuple[str, int]
"""Of which topic, and its number."""


def windows(receipts: Iterable[Receipt], apart_min: int) -> dict[Partition, list[Window]]:
    """Return where to read for what ``receipts`` say, in order; fewer than ``apart_min`` records
    between two windows are read through. ``UNTOLD`` alone: all of that partition."""
    told: dict[Partition, list[Window]] = {}
    for receipt in receipts:
        for topic, partitions in receipt.acked.items():
            for number, window in partitions.items():
                found = told.setdefault((topic, int(number)), [window])
                found[-1:] = _joined([found[-1], window], apart_min)  # mostly it is the next one
    return {partition: _joined(sorted(found), apart_min) for partition, found in told.items()}


def united(
    one: Mapping[Partition, Sequence[Window]],
    other: Mapping[Partition, Sequence[Window]],
    apart_min: int,
) -> dict[Partition, list[Window]]:
    """Return what is in either, as ``windows`` does."""
    found = {p: sorted([*one.get(p, ()), *other.get(p, ())]) for p in {*one, *other}}
    return {partition: _joined(both, apart_min) for partition, both in found.items() if both}


def _joined(found: list[Window], apart_min: int) -> list[Window]:
    if UNTOLD in found:
        return [UNTOLD]
    joined = [found[0]]
    for first, last in found[1:]:
        before = joined[-1]
        if before[0] <= first <= before[1] + apart_min:
            joined[-1] = before[0], max(before[1], last)
        else:
            joined.append((first, last))
    return joined


def encoded(receipts: Iterable[Receipt]) -> bytes:
    """Return them as lines of JSON."""
    return b"".join(_encode(receipt) + b"\n" for receipt in receipts)


def decoded(line: bytes) -> Receipt | None:
    """Return what a line says; None for one that is torn or damaged."""
    try:
        receipt = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    named = (number for windows in receipt.acked.values() for number in windows)
    sane = 0 <= receipt.start < receipt.end and all(map(str.isdecimal, named))
    return receipt if sane else None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Receipt).decode
