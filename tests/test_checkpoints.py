"""The checkpointer: settled, then stored, and only then no longer in flight."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from agent.checkpoints import INTERVAL_S, Checkpointer
from agent.core.identity import Anchor, Birth, Checkpoint, digest
from agent.core.ledger import Chunk, Ledger, Row
from agent.core.policy import InFlightPolicy
from agent.core.quota import InFlight
from agent.errors import StoreError
from agent.telemetry import Metrics
from tests.fakes import FakeClock, InlineExecutor, chunks_of, turns
from tests.patience import WITHIN_S


class Source:
    """One generation of a file that is wholly known."""

    def __init__(self, client: str = "a") -> None:
        self.client = client
        self.birth = Birth(int.from_bytes(client.encode()), 2, 3, 4)
        self.ledger = Ledger(0, b"")

    def checkpoint(self) -> Checkpoint:
        at = self.ledger.watermark
        return Checkpoint(
            birth=self.birth,
            generation=0,
            watermark=at,
            fingerprint=digest(b""),
            anchor=Anchor(at, digest(self.ledger.mark[1])),
            path="client/a",
            client=self.client,
        )


@dataclass
class Disk:
    """What ``Store.save`` would have committed; ``gate`` holds a commit up, ``broken`` ends it."""

    rows: dict[str, int] = field(default_factory=dict)
    commits: int = 0
    broken: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def save(self, rows: list[Checkpoint], forgotten: list[Checkpoint]) -> None:
        self.entered.set()
        assert self.gate.wait(WITHIN_S)
        if self.broken:
            raise StoreError("checkpoint commit: disk I/O error")
        self.rows.update({row.client: row.watermark for row in rows})
        for row in forgotten:
            self.rows.pop(row.client, None)
        self.commits += 1


@dataclass
class Room:
    checkpointer: Checkpointer
    disk: Disk
    in_flight: InFlight
    clock: FakeClock
    room_again: int = 0

    def read(self, source: Source, *lengths: int) -> list[Chunk]:
        """Reserve chunks, each with one open batch; return them."""
        at = source.ledger.watermark + source.ledger.in_flight_bytes
        chunks = [
            Chunk(source.ledger, at + c.start, at + c.end, b"", 1)
            for c in chunks_of(Ledger(0, b""), *lengths)
        ]
        for chunk in chunks:
            chunk.open_batches += 1
            self.checkpointer.reserve(source, chunk)
        return chunks

    def settle(self, chunk: Chunk) -> None:
        self.checkpointer.settle([chunk])


def furnished(executor: Executor, events_max: int = 1000) -> Room:
    disk, clock = Disk(), FakeClock()
    in_flight = InFlight(InFlightPolicy(events_max=events_max))

    def committed() -> None:
        made.room_again += 1

    checkpointer = Checkpointer(
        disk.save,
        executor,
        in_flight,
        committed=committed,
        clock=clock,
        metrics=Metrics(CollectorRegistry()),
    )
    made = Room(checkpointer, disk, in_flight, clock)
    return made


@pytest.fixture
def room() -> Room:
    return furnished(InlineExecutor())


@asynccontextmanager
async def running(room: Room) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(room.checkpointer.run())
    try:
        await turns()
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - threads tell nobody
            await asyncio.sleep(0.001)


async def test_what_is_settled_is_stored(room: Room) -> None:
    source = Source()
    first, second = room.read(source, 10, 20)
    room.settle(second)
    await room.checkpointer.flush()
    assert {"a": 0} == room.disk.rows

    room.settle(first)
    await room.checkpointer.flush()

    assert {"a": 30} == room.disk.rows
    assert (0, 0) == (room.in_flight.events, room.in_flight.bytes)


async def test_one_commit_takes_everything_that_moved(room: Room) -> None:
    for n in range(5):
        (chunk,) = room.read(Source(f"{n}"), 10 + n)
        room.settle(chunk)

    await room.checkpointer.flush()

    assert {f"{n}": 10 + n for n in range(5)} == room.disk.rows
    assert 1 == room.disk.commits


async def test_a_batch_of_several_files_moves_them_all(room: Room) -> None:
    sources = [Source("a"), Source("b")]
    chunks = [room.read(source, 10)[0] for source in sources]
    room.checkpointer.settle(chunks)

    await room.checkpointer.flush()

    assert {"a": 10, "b": 10} == room.disk.rows


async def test_a_chunk_in_several_batches_waits_for_each(room: Room) -> None:
    (chunk,) = room.read(Source(), 10)
    chunk.open_batches += 1
    for watermark in (0, 10):
        room.checkpointer.settle([chunk])
        await room.checkpointer.flush()
        assert {"a": watermark} == room.disk.rows


async def test_a_source_that_is_no_file_hears_and_is_never_stored(room: Room) -> None:
    """A row of the spool is done when it is deleted there: no checkpoint knows it."""
    ledger, heard = Ledger(100, b""), 0

    def moved() -> None:
        nonlocal heard
        heard += 1

    row = Row(ledger, 100, 20, 5000)
    row.open_batches = 2
    ledger.reserve(row)
    room.in_flight.add(row)
    room.checkpointer.tell(ledger, moved)

    room.checkpointer.settle([row])
    assert (1, 100) == (heard, ledger.watermark)
    room.checkpointer.settle([row])
    await room.checkpointer.flush()

    assert (2, 120) == (heard, ledger.watermark)
    assert ({}, 0) == (room.disk.rows, room.disk.commits)
    assert 5000 == room.in_flight.bytes, "whoever deletes the row gives the room back"
    assert [row] == ledger.take_passed()


async def test_a_batch_of_a_file_and_of_the_spool_moves_both(room: Room) -> None:
    ledger, told = Ledger(0, b""), asyncio.Event()
    row = Row(ledger, 0, 7, 100)
    row.open_batches = 1
    ledger.reserve(row)
    room.checkpointer.tell(ledger, told.set)
    (chunk,) = room.read(Source(), 10)

    room.checkpointer.settle([row, chunk])
    await room.checkpointer.flush()

    assert told.is_set()
    assert 7 == ledger.watermark
    assert {"a": 10} == room.disk.rows


async def test_blank_lines_move_the_checkpoint_without_any_batch(room: Room) -> None:
    source = Source()
    room.checkpointer.reserve(source, chunks_of(source.ledger, 7)[0])

    await room.checkpointer.flush()

    assert {"a": 7} == room.disk.rows
    assert 0 == room.in_flight.bytes


async def test_bytes_are_in_flight_until_the_commit_is_done() -> None:
    """A crash before the commit sends them again: until then they count against the bound."""
    with ThreadPoolExecutor(1) as writer:
        room = furnished(writer)
        (chunk,) = room.read(Source(), 10)
        room.settle(chunk)
        room.disk.gate.clear()
        async with running(room):
            await until(room.disk.entered.is_set)
            assert 10 == room.in_flight.bytes
            assert 0 == room.room_again

            room.disk.gate.set()
            await until(lambda: room.in_flight.bytes == 0)
            assert 1 == room.room_again
            assert {"a": 10} == room.disk.rows


async def test_what_settles_during_a_commit_waits_for_the_next() -> None:
    with ThreadPoolExecutor(1) as writer:
        room = furnished(writer)
        first, second = room.read(Source(), 10, 20)
        room.settle(first)
        room.disk.gate.clear()
        async with running(room):
            await until(room.disk.entered.is_set)
            room.settle(second)
            room.disk.gate.set()
            await until(lambda: room.disk.commits == 1)
            assert {"a": 10} == room.disk.rows

            await until(lambda: room.disk.commits == 2)
            assert {"a": 30} == room.disk.rows
            await until(lambda: room.in_flight.bytes == 0)


async def test_a_failing_commit_ends_run_and_releases_nothing(room: Room) -> None:
    """Without checkpoints we must not go on reading."""
    (chunk,) = room.read(Source(), 10)
    room.settle(chunk)
    room.disk.broken = True

    with pytest.raises(StoreError, match="disk I/O error"):
        await asyncio.wait_for(room.checkpointer.run(), WITHIN_S)

    assert 10 == room.in_flight.bytes
    assert 0 == room.room_again


async def test_nothing_moved_is_no_commit(room: Room) -> None:
    await room.checkpointer.flush()
    async with running(room):
        await turns()

    assert 0 == room.disk.commits


async def test_commits_keep_their_distance_while_there_is_room(room: Room) -> None:
    room.clock.drive()
    async with running(room):
        first, second = room.read(Source(), 10, 20)
        room.settle(first)
        await turns()
        assert {"a": 10} == room.disk.rows

        room.settle(second)
        room.clock.advance(INTERVAL_S - 0.001)
        await turns()
        assert {"a": 10} == room.disk.rows

        room.clock.advance(0.001)
        await turns()
        assert {"a": 30} == room.disk.rows


async def test_whoever_waits_for_room_gets_a_commit_at_once(room: Room) -> None:
    room.clock.drive()
    async with running(room):
        first, second = room.read(Source(), 10, 20)
        room.settle(first)
        await turns()
        room.settle(second)

        room.checkpointer.hurry()
        await turns()

        assert {"a": 30} == room.disk.rows


async def test_without_room_every_acknowledgement_is_stored_at_once() -> None:
    room = furnished(InlineExecutor(), events_max=1)
    room.clock.drive()
    async with running(room):
        chunks = room.read(Source(), 10, 20, 30)
        for chunk, watermark in zip(chunks[:2], (10, 30), strict=True):
            room.settle(chunk)
            await turns()
            assert {"a": watermark} == room.disk.rows


async def test_rows_of_others_are_stored_and_forgotten_ones_deleted(room: Room) -> None:
    gone, here = Source("gone").checkpoint(), Source("here").checkpoint()
    room.checkpointer.put([gone, here])
    await room.checkpointer.flush()
    assert {"gone": 0, "here": 0} == room.disk.rows

    room.checkpointer.put([], [gone])
    await room.checkpointer.flush()

    assert {"here": 0} == room.disk.rows


async def test_the_watermark_wins_over_a_row_made_before_it_moved(room: Room) -> None:
    """A scan saw the file moved; meanwhile its lines were acknowledged. One row, the newer."""
    source = Source()
    (chunk,) = room.read(source, 10)
    room.checkpointer.put([replace(source.checkpoint(), path="client/a.1")])
    room.settle(chunk)

    await room.checkpointer.flush()

    assert {"a": 10} == room.disk.rows


async def test_a_source_may_be_idle_and_go_on(room: Room) -> None:
    source = Source()
    for end in (10, 20):
        (chunk,) = room.read(source, 10)
        room.settle(chunk)
        await room.checkpointer.flush()
        assert {"a": end} == room.disk.rows
        assert not room.checkpointer._sources


async def test_cancelling_run_loses_no_row() -> None:
    """A stop may come while the commit waits for its thread; the last flush must not miss it."""
    with ThreadPoolExecutor(1) as writer:
        room = furnished(writer)
        free = threading.Event()
        writer.submit(free.wait, WITHIN_S)
        (chunk,) = room.read(Source(), 10)
        room.settle(chunk)
        async with running(room):
            pass  # cancelled with its commit in the queue

        free.set()
        await room.checkpointer.flush()

    assert {"a": 10} == room.disk.rows


async def test_cancelling_leaves_no_task_behind(room: Room) -> None:
    async with running(room):
        (chunk,) = room.read(Source(), 10)
        room.settle(chunk)
        await turns()

    assert {asyncio.current_task()} == asyncio.all_tasks()
