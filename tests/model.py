"""A disk, a Kafka and an agent that can die between any two steps, driven by a seed.

The agent's rooms are the real ones: registry, sources, harvesters, chunker, delivery, checkpointer.
What touches the world is replaced: files, broker, store and clock. A program of some dozens of
steps appends, rotates, truncates, deletes, reads, delivers, commits, kills; after every step
the invariants of the design are checked, and at the end that every line has arrived.
"""

import random
import re
from collections import defaultdict
from typing import NamedTuple, cast

import pytest
from prometheus_client import CollectorRegistry

from agent import wire
from agent.builders import Builders
from agent.checkpoints import Checkpointer
from agent.chunk import Chunker, ChunkPolicy
from agent.core.batch import Batch, Pace
from agent.core.breaker import Breaker
from agent.core.delivery import Action, Close, Connect, Delivery, Phase, Refuse, Send
from agent.core.discovery import Scan, Seen
from agent.core.identity import Birth, Checkpoint
from agent.core.policy import (
    MIB,
    BatchPolicy,
    BreakerPolicy,
    InFlightPolicy,
    RetryPolicy,
    SchemaPolicy,
)
from agent.core.quota import InFlight
from agent.core.record import RecordPolicy
from agent.harvester import Harvester
from agent.intake import Worker
from agent.opener import Descriptor, Refused
from agent.registry import Registry
from agent.sources import Sources
from agent.telemetry import Metrics
from tests.fakes import FakeClock, FakeTopic, InlineExecutor

PARTITIONS = 6
EVENTS_MAX = 24
CHUNK_BYTES = 200  # two lines: several chunks of a file are in flight at once
PATHS = ("acme/a.jsonl", "acme/b.jsonl", "globex/a.jsonl")

Life = tuple[int, int]
"""One content of one file: which inode ever made, and how often it was truncated before."""


class Line(NamedTuple):
    number: int
    end: int


class Inode:
    """A file's content and the whole lines in it. ``epoch`` counts its truncations."""

    def __init__(self, number: int, born_ns: int) -> None:
        self.birth = Birth(number, born_ns, 0, 1)
        self.content = bytearray()
        self.lines: list[Line] = []
        self.epoch = 0
        self.changes = 0  # stands for the mtime
        self.torn: tuple[int, bytes] | None = None  # a line half written: number, the rest

    def truncate(self) -> None:
        self.content.clear()
        self.lines.clear()
        self.torn = None
        self.changes += 1
        self.epoch += 1


class OpenFile:
    """What ``opener.Descriptor`` is to the agent."""

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.birth = inode.birth

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.inode.content[offset : offset + length])

    def size(self) -> int:
        return len(self.inode.content)

    def links(self) -> int:
        return 1

    def close(self) -> None:
        pass


class Broker:
    """A topic's partitions, and the sequence rule of real Kafka for each producer."""

    def __init__(self) -> None:
        self.down = False
        self.log: defaultdict[tuple[str, int], list[int]] = defaultdict(list)  # line numbers
        self.arrived: set[int] = set()
        self.broken: set[tuple[int, int]] = set()  # (producer, partition) after a failed batch
        self.proven: set[tuple[int, int]] = set()

    def append(self, topic: str, producer: int, batch: Batch) -> bool:
        """Take the batch, or refuse it as real Kafka does after an earlier one has failed."""
        key = producer, batch.partition
        if key in self.broken and key in self.proven:
            return False
        self.proven.add(key)
        for record in wire.records(batch):
            number = number_of(record.value)
            self.log[topic, batch.partition].append(number)
            self.arrived.add(number)
        return True


class Sent(NamedTuple):
    batch: Batch
    appended: bool


class Exit:
    """One outlet as the loop drives it: the machine, one producer's life, what is on the wire."""

    def __init__(self, topic: str, world: "World", node: "Node") -> None:
        self.topic = topic
        self.world = world
        self.node = node
        self.delivery = Delivery(
            RetryPolicy(backoff_s=1.0, backoff_max_s=2.0),
            Breaker(BreakerPolicy(cooldown_s=3.0), world.clock.monotonic),
            split=lambda batch: wire.split(batch, PLAIN),
            retire_s=5.0,
            clock=world.clock.monotonic,
            jitter=world.random.random,
        )
        self.producer = world.next_producer()
        self.on_wire: list[Sent] = []

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(batch):
                    assert self.delivery.phase is Phase.LIVE
                    self.world.check_generations(batch)
                    self.on_wire.append(Sent(batch, appended=False))
                case Connect():
                    up = not self.world.broker.down
                    self.producer = self.world.next_producer()
                    machine = self.delivery
                    self.do(machine.connected(PARTITIONS) if up else machine.connect_failed("x"))
                case Close():
                    self.world.crashed_or_retired(self.node)
                    self.on_wire.clear()
                    self.do(self.delivery.closed())
                case Refuse():
                    raise AssertionError("nothing is refused here")

    def deliver(self) -> None:
        """Let everything that is on the wire arrive and be acknowledged, and what follows it."""
        while self.on_wire:
            sent = self.on_wire.pop(0)
            broker = self.world.broker
            if sent.appended or broker.append(self.topic, self.producer, sent.batch):
                actions = self.delivery.acked(sent.batch)
                self.node.checkpointer.settle(sent.batch)
                self.do(actions)
            else:
                self.do(self.delivery.failed(sent.batch, "sequence"))

    def first_of(self, partition: int, *, appended: bool) -> Sent | None:
        """Return the oldest batch on the wire to ``partition``, if it stands where asked for."""
        sent = next((s for s in self.on_wire if s.batch.partition == partition), None)
        if not appended and sent is not None and sent.appended:
            sent = next(
                (s for s in self.on_wire if s.batch.partition == partition and not s.appended), None
            )
        return sent if sent is not None and sent.appended == appended else None


PLAIN = wire.codec("none", None)


class Node:
    """One life of the agent's process."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.in_flight = InFlight(InFlightPolicy(events_max=EVENTS_MAX, bytes_max=MIB))
        self.events = Exit("events", world, self)
        self.dead_letters = Exit("dead_letters", world, self)
        self.checkpointer = Checkpointer(
            lambda rows, forgotten: None,
            InlineExecutor(),
            self.in_flight,
            committed=lambda: None,
            clock=world.clock,
            metrics=world.metrics,
        )
        self.registry = Registry(
            world.stored.values(),
            line_bytes_max=4096,
            forget_after_s=1e9,
            clock=world.clock,
            metrics=world.metrics,
        )
        self.sources = Sources(
            world.open_file,
            self.registry,
            line_bytes_max=4096,
            descriptors_max=2,
            start_at_end=False,
            metrics=world.metrics,
        )
        topic = FakeTopic(PARTITIONS, MIB)
        pace = Pace(BatchPolicy(records_max=2, age_min_s=0.5))
        builders = [
            Builders(lambda: topic, PLAIN, pace, bytes_max=4096, partitioner="crc32")
            for _ in range(2)
        ]
        policy = ChunkPolicy(
            node="n1",
            schema=SchemaPolicy(),
            record=RecordPolicy(version="1", hostname="n1"),
            line_bytes_max=4096,
            event_time=False,
        )
        chunker = Chunker(policy, *builders, clock=world.clock, metrics=world.metrics)
        self.worker = Worker(self.sources, chunker)
        self.epochs: dict[int, int] = {}  # harvester -> the truncations its file had when it began
        self.harvesters: list[Harvester] = []  # keeps the ids above unique

    def turn(self) -> None:
        """Read as the intake does: if there is room, and hand over what was made."""
        if self.in_flight.full:
            sealed = self.worker.chunker.seal_all()
        else:
            turn = self.worker.turn()
            sealed = turn.sealed
            if turn.chunk is not None:
                assert turn.harvester is not None
                self.world.note(turn.harvester, turn.chunk.start, turn.chunk.end)
                self.checkpointer.reserve(turn.harvester, turn.chunk)
            self.checkpointer.put(turn.changes.rows, turn.changes.forgotten)
            if turn.changes.begun:
                self.commit()
        self.admit(sealed.events, sealed.dead_letters)
        for harvester in self.open_harvesters():
            if id(harvester) not in self.epochs:
                self.harvesters.append(harvester)
                self.epochs[id(harvester)] = inode_of(harvester).epoch
        bound = EVENTS_MAX + CHUNK_BYTES // 15
        assert self.in_flight.events <= bound, "invariant 4: more in flight than configured"

    def admit(self, events: list[Batch], dead_letters: list[Batch]) -> None:
        for batch in events:
            self.events.do(self.events.delivery.admit(batch))
        for batch in dead_letters:
            self.dead_letters.do(self.dead_letters.delivery.admit(batch))

    def open_harvesters(self) -> list[Harvester]:
        return [f.harvester for f in self.sources.open_files() if f.harvester is not None]

    def has_read(self, inode: Inode, end: int) -> bool:
        """Return whether the line that ends at ``end`` was handed out in this life."""
        return any(
            inode_of(h) is inode and self.epochs.get(id(h)) == inode.epoch and h.cursor.start >= end
            for h in self.open_harvesters()
        )

    def holds_open(self, inode: Inode) -> bool:
        return any(inode_of(h) is inode for h in self.open_harvesters())

    def commit(self) -> None:
        rows, _, passed = self.checkpointer.collect()
        for row in rows:
            self.world.store(row)
        self.checkpointer.stored(passed)

    def tick(self) -> None:
        for outlet in (self.events, self.dead_letters):
            outlet.do(outlet.delivery.tick())


def inode_of(harvester: Harvester) -> Inode:
    return cast(OpenFile, harvester.file).inode


class World:
    """Everything that outlives the agent, and the oracle."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance that can be had again
        self.clock = FakeClock()
        self.metrics = Metrics(CollectorRegistry())
        self.broker = Broker()
        self.files: dict[str, Inode] = {}
        self.inodes: list[Inode] = []
        self.stored: dict[tuple[str, int], Checkpoint] = {}
        # What was read of each generation, as far as a restart would not read it again.
        self.handed: defaultdict[tuple[str, int], list[Line]] = defaultdict(list)
        self.read: set[int] = set()
        self.life_of: dict[int, Life] = {}  # line number -> the content it belongs to
        self.excused: set[int] = set()
        self.excused_by_crash: set[int] = set()
        self.lines = 0
        self.copies_allowed = 0
        self._producers = 0
        self.node = Node(self)

    def next_producer(self) -> int:
        self._producers += 1
        return self._producers

    # ---- what apps and people do to files

    def append(self, path: str, count: int, *, bad: bool = False) -> None:
        """Write ``count`` lines; the first of them may be the rest of a torn one."""
        inode = self._written_to(path)
        for _ in range(count):
            number, rest = inode.torn or self._next_line(bad=bad)
            inode.torn = None
            inode.content += rest
            inode.changes += 1
            inode.lines.append(Line(number, len(inode.content)))
            self.life_of[number] = self.inodes.index(inode), inode.epoch

    def tear(self, path: str) -> None:
        """Write the first half of a line."""
        inode = self._written_to(path)
        if inode.torn is None:
            number, body = self._next_line(bad=False)
            half = len(body) // 2
            inode.content += body[:half]
            inode.changes += 1
            inode.torn = number, body[half:]

    def _next_line(self, *, bad: bool) -> tuple[int, bytes]:
        self.lines += 1
        return self.lines, line_of(self.lines, bad=bad)

    def _written_to(self, path: str) -> Inode:
        inode = self.files.get(path)
        if inode is None:
            # The file system hands out a freed inode at once; only the birth differs.
            held = [inode_of(h) for h in self.node.open_harvesters()]
            used = {i.birth.inode for i in (*self.files.values(), *held)}
            number = next(n for n in range(1, 100) if n not in used)
            inode = self.files[path] = Inode(number, 1 + len(self.inodes))
            self.inodes.append(inode)
        return inode

    def rotate(self, path: str) -> None:
        if path in self.files:
            self.files[f"{path}.{len(self.inodes)}.{self.lines}"] = self.files.pop(path)

    def truncate(self, path: str) -> None:
        inode = self.files.get(path)
        if inode is not None:
            self._destroy(inode, still_readable=False)
            inode.truncate()

    def delete(self, path: str) -> None:
        inode = self.files.pop(path, None)
        if inode is not None:
            self._destroy(inode, still_readable=self.node.holds_open(inode))

    def _destroy(self, inode: Inode, *, still_readable: bool) -> None:
        """Lines that nobody has read are excused; read ones only if the agent dies too early."""
        for line in inode.lines:
            if still_readable or self.node.has_read(inode, line.end):
                self.excused_by_crash.add(line.number)
            else:
                self.excused.add(line.number)

    # ---- what the agent sees of the disk

    def scan(self) -> Scan:
        seen = tuple(
            Seen(path, path.split("/")[0], i.birth.inode, 1, len(i.content), i.changes)
            for path, i in self.files.items()
        )
        return Scan(files=seen)

    def open_file(self, path: str) -> Descriptor | Refused:
        inode = self.files.get(path)
        if inode is None:
            return Refused("gone")
        return cast(Descriptor, OpenFile(inode))

    # ---- the oracle

    def note(self, harvester: Harvester, start: int, end: int) -> None:
        """Write down which lines a chunk holds, from the disk itself."""
        inode = inode_of(harvester)
        held = [line for line in inode.lines if start < line.end <= end]
        assert held, "a chunk holds at least one line"
        assert held[-1].end == end, "a chunk must end with a line"
        self.handed[harvester.base.source_id, harvester.base.generation] += held
        self.read |= {line.number for line in held}

    def store(self, row: Checkpoint) -> None:
        """Commit a row, and check that nothing below its watermark is unknown."""
        key = row.source_id, row.generation
        before = self.stored.get(key)
        if before is not None and before.watermark > row.watermark:
            return  # as the store does
        for line in self.handed[key]:
            assert line.end > row.watermark or line.number in self.broker.arrived, (
                f"invariant 1: stored {row.watermark}, but line {line.number} never arrived"
            )
        self.stored[key] = row

    def settle_everything(self) -> None:
        """Let everything that was read arrive, and commit it."""
        node = self.node
        node.tick()
        node.admit(*node.worker.chunker.seal_all())
        node.events.deliver()
        node.dead_letters.deliver()
        node.commit()

    def crashed_or_retired(self, node: Node) -> None:
        self.copies_allowed += node.in_flight.events

    def crash(self) -> None:
        self.crashed_or_retired(self.node)
        self.excused |= self.excused_by_crash - self.broker.arrived
        for key, lines in self.handed.items():
            row = self.stored.get(key)
            lines[:] = [line for line in lines if row is not None and line.end <= row.watermark]
        self.node = Node(self)

    def check_generations(self, batch: Batch) -> None:
        """Nothing of a later generation leaves before a crash would find its number on disk."""
        for record in wire.records(batch):
            _, source_id, generation, *_ = dict(record.headers)["source"].decode().split(";")
            assert generation == "0" or (source_id, int(generation)) in self.stored, (
                f"generation {generation} of {source_id} is sent, but not stored"
            )

    def check_order(self) -> None:
        for (topic, partition), log in self.broker.log.items():
            last: dict[Life, int] = {}
            for number in dict.fromkeys(log):  # first deliveries only
                life = self.life_of[number]
                assert last.get(life, -1) < number, (
                    f"invariant 3: line {number} after {last[life]} in {topic} {partition}"
                )
                last[life] = number

    def check_copies(self) -> None:
        copies = sum(len(log) for log in self.broker.log.values()) - len(self.broker.arrived)
        assert copies <= self.copies_allowed, (
            f"invariant 5: {copies} copies, at most {self.copies_allowed} were in flight"
        )

    def check_all_arrived(self) -> None:
        for number in self.life_of.keys() - self.excused:
            assert number in self.read, f"line {number} was never read"
            assert number in self.broker.arrived, f"line {number} was lost"


_ID = "00000000-0000-4000-8000-%012d"


def line_of(number: int, *, bad: bool) -> bytes:
    if bad:
        return b"line %d is bad\n" % number
    event_id = _ID % number
    return (
        f'{{"type":"user_feedback","event_id":"{event_id}","session_id":"s{number % 5}"}}\n'
    ).encode()


_NUMBER = re.compile(rb"8000-([0-9]{12})|line ([0-9]+) is bad")


def number_of(value: bytes) -> int:
    """Return the number of the line that a record was made of."""
    found = _NUMBER.search(value)
    assert found is not None, value
    return int(found[1] or found[2])


STEPS = {
    "append": 20,
    "torn": 3,
    "bad": 3,
    "rotate": 4,
    "truncate": 2,
    "delete": 2,
    "scan": 12,
    "turn": 40,
    "broker": 30,
    "ack": 30,
    "fail": 2,
    "outage": 1,
    "recover": 3,
    "commit": 20,
    "crash": 3,
    "time": 10,
    "seal": 3,
}


class Program:
    """Some dozens of random steps, then a friendly end; raises where an invariant breaks."""

    def __init__(self, seed: int, length: int = 90) -> None:
        self.world = World(seed)
        chosen = self.world.random.choices(list(STEPS), list(STEPS.values()), k=length)
        self.steps = ["append", "append", "scan", *chosen]

    def run(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.core.lines.CHUNK_BYTES", CHUNK_BYTES)
            for step in self.steps:
                getattr(self, step)()
            self.finish()

    def path(self) -> str:
        return self.world.random.choice(PATHS)

    def any_path(self) -> str:
        return self.world.random.choice([*self.world.files] or list(PATHS))

    def append(self) -> None:
        path = self.path()
        self.world.append(path, self.world.random.randint(1, 12))
        self.world.node.sources.hint(path)

    def torn(self) -> None:
        self.world.tear(self.path())

    def bad(self) -> None:
        self.world.append(self.path(), 1, bad=True)

    def rotate(self) -> None:
        self.world.rotate(self.path())

    def truncate(self) -> None:
        self.world.truncate(self.path())

    def delete(self) -> None:
        self.world.delete(self.any_path())

    def scan(self) -> None:
        self.world.node.sources.apply(self.world.scan())

    def turn(self) -> None:
        self.world.node.turn()

    def seal(self) -> None:
        self.world.node.admit(*self.world.node.worker.chunker.seal_all())

    def exit(self) -> Exit:
        node = self.world.node
        return self.world.random.choice([node.events, node.events, node.dead_letters])

    def broker(self) -> None:
        """A batch reaches the broker; its acknowledgement is still on the way."""
        outlet, broker = self.exit(), self.world.broker
        sent = outlet.first_of(self.world.random.randrange(PARTITIONS), appended=False)
        if sent is None or broker.down:
            return
        if broker.append(outlet.topic, outlet.producer, sent.batch):
            outlet.on_wire[outlet.on_wire.index(sent)] = Sent(sent.batch, appended=True)
        else:
            outlet.on_wire.remove(sent)
            outlet.do(outlet.delivery.failed(sent.batch, "sequence"))

    def ack(self) -> None:
        outlet = self.exit()
        sent = outlet.first_of(self.world.random.randrange(PARTITIONS), appended=True)
        if sent is not None:
            outlet.on_wire.remove(sent)
            actions = outlet.delivery.acked(sent.batch)
            self.world.node.checkpointer.settle(sent.batch)
            outlet.do(actions)

    def fail(self) -> None:
        """The broker refuses a batch for a reason of its own, and so all that follow it."""
        outlet, partition = self.exit(), self.world.random.randrange(PARTITIONS)
        sent = outlet.first_of(partition, appended=False)
        if sent is not None:
            self.world.broker.broken.add((outlet.producer, partition))
            outlet.on_wire.remove(sent)
            outlet.do(outlet.delivery.failed(sent.batch, "broker_storage"))

    def outage(self) -> None:
        self.world.broker.down = True

    def recover(self) -> None:
        self.world.broker.down = False

    def commit(self) -> None:
        self.world.node.commit()

    def crash(self) -> None:
        self.world.crash()

    def time(self) -> None:
        self.world.clock.advance(self.world.random.choice((0.1, 0.6, 2.0, 6.0)))
        self.world.node.tick()

    def finish(self) -> None:
        """The world turns friendly: everything on disk must arrive."""
        world = self.world
        world.broker.down = False
        for path in list(world.files):
            if world.files[path].torn is not None:
                world.append(path, 1)
        for _ in range(400):
            world.clock.advance(3.0)
            self.scan()
            for _ in range(8):
                world.node.turn()
            world.settle_everything()
            if world.node.sources.idle and self._quiet():
                break
        else:
            raise AssertionError("the agent never came to rest")
        self.scan()
        world.check_order()
        world.check_copies()
        world.check_all_arrived()

    def _quiet(self) -> bool:
        node = self.world.node
        queued = node.events.delivery.queued + node.dead_letters.delivery.queued
        waiting = self.world.life_of.keys() - self.world.excused - self.world.read
        return not (queued or node.in_flight.events or waiting)
