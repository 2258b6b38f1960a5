"""When the intake may read: room, and the seam between the spool and Kafka."""

import math

import pytest

from agent.core.ledger import Chunk
from agent.core.lines import Piece
from agent.core.policy import MIB
from agent.core.quota import Room
from agent.core.seam import Mode
from agent.core.tracing import ChunkSpan
from agent.harvester import Followed, Truncated
from agent.rejects import Source
from agent.worker import Orders
from tests.fakes import FakeTopic
from tests.model import CHUNK_BYTES, EVENTS_MAX, World

TO_TAIL = Orders(room=Room(EVENTS_MAX, MIB), direct=(False, True), replayed=([], []))


@pytest.fixture
def world() -> World:
    """A node that knows both topics; nothing stands still or fails by chance."""
    made = World(seed=1)
    made.calm = True
    for outlet in made.node.exits:
        outlet.topic = FakeTopic(partitions=6, message_bytes_max=1 << 20)
    return made


def turn(world: World) -> bool:
    """Let the intake do what it would. Return whether it did anything."""
    done = []

    async def once() -> None:
        done.append(await world.node.intake.turn() is not None)

    world.undisturbed(once)
    return done == [True]


def others_have_just_left(world: World) -> None:
    """Let what is read from now on wait for its window."""
    for stream in world.node.worker.streams:
        stream.tail._rests_until_s = math.inf


def test_the_last_lines_of_the_tail_go_before_any_other(world: World) -> None:
    """The spool is empty and Kafka answers, but the tail has an open batch: a line that went to
    Kafka now would overtake the one in it (invariant 3)."""
    node = world.node
    world.disk.append("acme/a.jsonl", 1)
    node.sources.apply(world.disk.scan())
    others_have_just_left(world)
    world.undisturbed(lambda: node.intake._turn(TO_TAIL))
    assert (Mode.LIVE, 1) == (node.ways[0].mode, node.worker.streams[0].tail.open)
    world.disk.append("acme/a.jsonl", 1)
    node.sources.hint("acme/a.jsonl")

    assert not turn(world), "nothing is read"
    assert 1 == len(world.read)
    assert 0 == node.worker.streams[0].tail.open, "it was sent off"
    assert 1 == node.ways[0].spooled_records, "into the spool, as the older ones were"
    assert Mode.REPLAYING is node.ways[0].mode


def test_reading_waits_for_room_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backpressure: what is in flight is bounded, and settling it is all that it takes."""
    monkeypatch.setattr("agent.core.lines.CHUNK_BYTES", CHUNK_BYTES)
    node = world.node
    world.disk.append("acme/a.jsonl", 3 * EVENTS_MAX)
    node.sources.apply(world.disk.scan())
    for _ in range(3 * EVENTS_MAX):
        turn(world)
    stopped_at = len(world.read)
    assert EVENTS_MAX <= stopped_at < 3 * EVENTS_MAX
    assert stopped_at == node.in_flight.events
    node.check_bounds()

    for _ in range(20):
        world.clock.advance(1.0)
        world.settle_everything()
        for _ in range(EVENTS_MAX):
            turn(world)

    assert 3 * EVENTS_MAX == len(world.read)
    world.settle_everything()
    assert 0 == node.in_flight.events


def test_one_turn_reads_of_each_file_that_is_ready(world: World) -> None:
    """A hand-over between the threads costs as much as dozens of lines: of many files that get a
    line now and then, each would pay for its own."""
    for name in "ab":
        world.disk.append(f"acme/{name}.jsonl", 1)
    world.node.sources.apply(world.disk.scan())

    assert turn(world)

    assert 2 == len(world.read)


def test_a_turn_ends_after_some_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sealed leaves at its end, and whoever waits for the worker is next."""
    monkeypatch.setattr("agent.core.lines.CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr("agent.worker.BYTES_ALONE", 1)
    world.disk.append("acme/a.jsonl", EVENTS_MAX)
    world.node.sources.apply(world.disk.scan())

    assert turn(world)

    assert 0 < len(world.read) < EVENTS_MAX // 2
    assert world.node.pace.behind


def test_a_turn_is_shorter_once_somebody_writes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog may take its time; whoever writes a line now should not wait for it."""
    monkeypatch.setattr("agent.core.lines.CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr("agent.worker.BYTES_A_TURN", 1)
    node = world.node
    world.disk.append("acme/a.jsonl", EVENTS_MAX)
    node.sources.apply(world.disk.scan())
    read = node.sources.read

    def while_others_write(followed: Followed) -> Piece | Truncated | None:
        node.sources.hint("acme/b.jsonl")
        return read(followed)

    with monkeypatch.context() as patch:
        patch.setattr(node.sources, "read", while_others_write)
        assert turn(world)
    first = len(world.read)
    assert turn(world)

    assert 0 < first < EVENTS_MAX // 2
    assert EVENTS_MAX == len(world.read), "nobody writes any more"


def test_a_file_that_is_truncated_between_two_reads_of_a_turn_loses_nothing_that_was_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ledger knows of the first read only after the turn: until then its generation lives."""
    monkeypatch.setattr("agent.core.lines.CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(world, "note", lambda *_: None)  # the disk has the lines no more
    node, path = world.node, "acme/a.jsonl"
    world.disk.append(path, EVENTS_MAX // 2)
    node.sources.apply(world.disk.scan())
    fill = node.worker.chunker.fill

    def once_truncated(source: Source, piece: Piece, span: ChunkSpan | None = None) -> Chunk:
        if not world.disk.files[path].epoch:
            world.disk.truncate(path)
            world.disk.append(path, 1)
        return fill(source, piece, span)

    monkeypatch.setattr(node.worker.chunker, "fill", once_truncated)

    assert turn(world)
    of_the_first = node.in_flight.events
    assert turn(world)

    assert 0 < of_the_first < EVENTS_MAX // 2
    assert of_the_first + 1 == node.in_flight.events
    assert {0, 1} == {h.base.generation for h in node.harvesters.values()}
    world.settle_everything()
    assert 0 == node.in_flight.events


def test_a_turn_without_rows_wakes_no_spooler(world: World) -> None:
    """A spooler that is woken may wake the intake: in an outage the two ran in circles."""
    node = world.node
    world.disk.append("acme/a.jsonl", 1)
    node.sources.apply(world.disk.scan())
    others_have_just_left(world)
    for way in node.ways:
        way._woken.clear()

    world.undisturbed(lambda: node.intake._turn(TO_TAIL))

    assert 1 == len(world.read)
    assert not any(way._woken.is_set() for way in node.ways)
