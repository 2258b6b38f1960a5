"""Following files: what is open, what is said, and that one bad file stops no other."""

import pytest

from agent.core.policy import MIB
from agent.core.quota import Room
from agent.worker import Orders
from tests.model import EVENTS_MAX, Inode, OpenFile, World

ORDERS = Orders(room=Room(EVENTS_MAX, MIB), direct=(True, True), replayed=([], []))


@pytest.fixture
def world() -> World:
    return World(seed=1)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def turn(world: World) -> None:
    world.undisturbed(lambda: world.node.intake._turn(ORDERS))


def read_everything(world: World) -> None:
    world.node.sources.apply(world.disk.scan())
    while not world.node.sources.idle:
        turn(world)


def failing(world: World, monkeypatch: pytest.MonkeyPatch, inode: Inode) -> None:
    """Let the disk fail under ``inode`` once it is open."""
    world.node.sources.apply(world.disk.scan())
    while not world.node.sources.idle:
        turn(world)
    pread = OpenFile.pread

    def broken(self: OpenFile, length: int, offset: int) -> bytes:
        if self.inode is inode:
            raise OSError(5, "Input/output error")
        return pread(self, length, offset)

    monkeypatch.setattr(OpenFile, "pread", broken)


def test_a_disk_that_fails_under_one_file_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, not at every read; and the process lives on."""
    world.disk.append("acme/a.jsonl", 1)
    world.disk.append("acme/b.jsonl", 1)
    failing(world, monkeypatch, world.disk.files["acme/a.jsonl"])
    world.disk.append("acme/a.jsonl", 2)
    world.disk.append("acme/b.jsonl", 2)

    for _ in range(3):
        read_everything(world)

    assert ["file.refused"] == logged(caplog)
    assert 4 == len(world.read)


def test_a_file_that_could_not_be_read_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another write: nothing else would ever tell of the lines that wait."""
    world.disk.append("acme/a.jsonl", 1)
    with monkeypatch.context() as patch:
        failing(world, patch, world.disk.files["acme/a.jsonl"])
        world.disk.append("acme/a.jsonl", 2)
        read_everything(world)
    assert 1 == len(world.read)

    read_everything(world)

    assert 3 == len(world.read)


def test_no_more_files_are_open_than_configured(world: World) -> None:
    """The model's agent may hold two; a third waits until one is settled to its end."""
    for n in range(5):
        world.disk.append(f"acme/{n}.jsonl", 1)

    for _ in range(5):
        read_everything_that_fits(world)
        assert len(world.node.open_harvesters()) <= 2
        world.settle_everything()

    assert 5 == len(world.read)


def read_everything_that_fits(world: World) -> None:
    world.node.sources.apply(world.disk.scan())
    for _ in range(10):
        turn(world)


def test_without_room_for_another_file_there_is_nothing_to_do_but_wait(world: World) -> None:
    """While Kafka is away nothing is closed; turning on and on would burn a core meanwhile."""
    for n in range(3):
        world.disk.append(f"acme/{n}.jsonl", 1)
    read_everything_that_fits(world)

    assert world.node.sources.waiting
    assert not world.node.sources.idle
    assert world.node.worker.turn(ORDERS).wait_s > 0


def test_while_files_are_closed_for_others_nobody_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More files than descriptors, and a few are opened in each turn: to wait after each would make
    ten thousand files take a quarter of a minute."""
    monkeypatch.setattr("agent.sources.OPENINGS_A_TURN", 1)
    for n in range(4):
        world.disk.append(f"acme/{n}.jsonl", 1)
    read_everything_that_fits(world)
    assert world.node.sources.waiting
    world.settle_everything()

    turn(world)

    assert 3 == len(world.read)
    assert not world.node.sources.waiting, "there was room, there may be more"


def test_a_stop_reads_to_where_files_end_and_chases_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app that writes faster than we ship must not keep a stop from ending."""
    monkeypatch.setattr("agent.core.lines.CHUNK_BYTES", 200)  # two lines, against six written
    world.disk.append("acme/a.jsonl", 6)
    world.node.sources.apply(world.disk.scan())
    turn(world)
    world.node.sources.limit()

    for _ in range(8):
        world.disk.append("acme/a.jsonl", 6)
        turn(world)

    assert world.node.sources.idle
    assert len(world.read) in (6, 7)


def test_a_hint_for_a_path_nobody_knows_is_nothing(world: World) -> None:
    world.node.sources.hint("acme/unknown.jsonl")

    turn(world)

    assert world.node.sources.idle


def test_a_file_that_was_rotated_between_scan_and_open_is_not_taken_for_the_old_one(
    world: World,
) -> None:
    """The path of a scan may lead to another file by the time it is opened."""
    world.disk.append("acme/a.jsonl", 1)
    scan = world.disk.scan()
    world.disk.rotate("acme/a.jsonl")
    world.disk.append("acme/a.jsonl", 1)

    world.node.sources.apply(scan)
    turn(world)
    assert [] == world.node.open_harvesters()

    read_everything(world)
    assert 2 == len(world.read)
