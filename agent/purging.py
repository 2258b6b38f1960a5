"""Dead letters of this node's store are dropped because an operator wants it: by what they are.

A row holds many of them. One of which some go is sealed again with the others, in their order. Its
lines were settled when it was put by, so no checkpoint waits for any of them.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from agent import wire
from agent.core.batch import Batch
from agent.core.revival import STORE, Letter, Wanted
from agent.queue import Queue
from agent.rows import Stored
from agent.spooler import READ_RECORDS, Spooler

QUEUE = "dead_letters"


class Tally(NamedTuple):
    """``records`` are those that go, or would; ``stay``: as many more are on their way to Kafka."""

    records: int = 0
    stay: int = 0


class Sifted(NamedTuple):
    """A row of which something goes, and what is kept of it."""

    row: Stored
    kept: list[wire.Record]

    @property
    def dropped(self) -> int:
        return self.row.records - len(self.kept)

    def left(self, codec: wire.Codec) -> Batch | None:
        """Return what is to lie in its place; None: nothing."""
        batch = self.row.batch
        assert batch is not None, "nothing goes of what is lost"
        return wire.reseal(batch, self.kept, codec) if self.kept else None


def sift(rows: Iterable[Stored], wanted: Wanted) -> list[Sifted]:
    """Return the rows in which a letter matches; what matches nothing is left out."""
    found = []
    for row in rows:
        if row.batch is None:
            continue
        kept = [
            one
            for number, one in enumerate(wire.records(row.batch), row.seq)
            if not wanted.matches(_letter(number, one))
        ]
        if len(kept) < row.records:
            found.append(Sifted(row, kept))
    return found


def moment(at_ms: int | None) -> str | None:
    """Return a bound of ``Wanted`` as the audit log has times."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- with the agent up


async def counted(
    way: Spooler, wanted: Wanted, *, on_their_way_only: bool = False
) -> AsyncGenerator[Tally, None]:
    """Count what would go, and yield how far that is after each page."""
    tally, at = Tally(), 0
    while not (on_their_way_only and at >= way.read_to) and (rows := await way.page(at)):
        at = _end(rows)
        for one in await asyncio.to_thread(sift, rows, wanted):
            if one.row.seq < way.read_to:
                tally = tally._replace(stay=tally.stay + one.dropped)
            else:
                tally = tally._replace(records=tally.records + one.dropped)
        yield tally


async def purged(
    way: Spooler, wanted: Wanted, codec: wire.Codec, note: Callable[[int], None]
) -> AsyncGenerator[Tally, None]:
    """Drop them; yield how far that is after each page. What is on its way to Kafka stays.

    Args:
        note: Called once with how many went, in whatever way it ends.
    """
    stay = dropped = 0
    at: int | None = 0

    def thinned(rows: list[Stored]) -> list[tuple[Stored, Batch | None]]:
        nonlocal dropped
        sifted = sift(rows, wanted)
        dropped += sum(one.dropped for one in sifted)
        return [(one.row, one.left(codec)) for one in sifted]

    async for before in counted(way, wanted, on_their_way_only=True):
        stay = before.stay
    try:
        if wanted.everything:
            dropped, at = await way.purge(), None
        while at is not None:
            yield Tally(dropped, stay)
            at = await way.thin(at, thinned)
        yield Tally(dropped, stay)
    finally:
        if dropped:
            note(dropped)


# ---- with the agent down


def count(queue: Queue, wanted: Wanted) -> int:
    """Return how many match. Blocks."""
    if wanted.everything:
        return queue.records
    return sum(one.dropped for rows in _pages(queue) for one in sift(rows, wanted))


def purge(queue: Queue, wanted: Wanted, codec: wire.Codec) -> None:
    """Drop them. Blocks. Cut short, some are gone and nothing else is."""
    if not wanted.everything:
        for rows in _pages(queue):
            queue.thin([(one.row, one.left(codec)) for one in sift(rows, wanted)])
    if wanted.everything or not queue.records:
        queue.drop_below(queue.end)


def _pages(queue: Queue) -> Iterator[list[Stored]]:
    at = queue.head
    while rows := queue.oldest(at, READ_RECORDS):
        at = _end(rows)
        yield rows


def _end(rows: list[Stored]) -> int:
    return rows[-1].seq + rows[-1].records


def _letter(number: int, one: wire.Record) -> Letter:
    return Letter(
        id=f"{STORE}:{number}",
        timestamp_ms=one.timestamp_ms,
        value=one.value,
        headers=dict(one.headers),
    )
