"""A disk, a Kafka and an agent that can die between any two steps, driven by a seed.

The agent's rooms are the real ones: registry, sources, harvesters, chunker, intake, spoolers with
their queues, delivery, checkpointer. What touches the world is replaced: files, broker, store and
clock. The intake and the two spoolers are tasks that a program drives by hand from one await to
the next, so that anything may happen while a thread works for them. A program of some dozens of
steps appends, rotates, truncates, deletes, reads, delivers, spools, replays, commits, kills; after
every step the invariants of the design are checked, and at the end that every line has arrived.
"""

import asyncio
import random
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pytest
from prometheus_client import CollectorRegistry

from agent import spool, wire
from agent.builders import Builders, Stream, repartition
from agent.checkpoints import Checkpointer
from agent.chunk import Chunker, ChunkPolicy
from agent.core.batch import Batch, Pace
from agent.core.breaker import Breaker
from agent.core.delivery import Action, Close, Connect, Delivery, Phase, Refuse, Send
from agent.core.discovery import Scan, Seen, file_key
from agent.core.identity import Birth, Checkpoint
from agent.core.ledger import Row
from agent.core.partition import crc32_partition
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
from agent.core.seam import TAIL_SHARE, Mode
from agent.harvester import Harvester
from agent.intake import Intake
from agent.opener import Descriptor, Refused
from agent.queue import Limits, Queue
from agent.registry import Registry
from agent.sink import Outlet
from agent.sources import Sources
from agent.spooler import Spooler, SpoolRules
from agent.telemetry import SINKS, Metrics
from agent.worker import Turn, Worker
from tests.fakes import FakeClock, FakeTopic, InlineExecutor, no_deletion, unlimited_turns
from tests.tracing import Traced

PARTITIONS = 6
EVENTS_MAX = 24
CHUNK_BYTES = 200  # two lines: several chunks of a file are in flight at once
CHUNK_LINES_MAX = CHUNK_BYTES // 15
BYTES_ALONE = 2 * CHUNK_BYTES  # a chunk or two, or a few reads that find less
READ_RECORDS = 6
ROWS_MAX = 8
"""Of what is replayed, in flight at once: less than of lines, so that it is reached."""
STALE_S = 20.0
ABSENT_S = 5.0
PAUSES = 0.2
"""How often a task stands still before or after what a thread does for it."""
PATHS = ("acme/a.jsonl", "acme/b.jsonl", "globex/a.jsonl")

T = TypeVar("T")

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
        self.changes = born_ns << 32  # stands for the mtime: no other file ever had the same
        self.links = 1
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
        return self.inode.links

    def disk_bytes(self) -> int:
        return len(self.inode.content)

    def beyond_hole(self, offset: int) -> int:
        return offset

    def close(self) -> None:
        pass


class Broker:
    """Two topics' partitions, and the sequence rule of real Kafka for each producer."""

    def __init__(self) -> None:
        self.down = False
        self.partitions = dict.fromkeys(SINKS, PARTITIONS)
        self.made = 0  # how often a topic was made anew
        # Line numbers by topic, which one of that name, and partition: all, and first deliveries.
        self.log: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
        self.first: defaultdict[tuple[str, int, int], list[int]] = defaultdict(list)
        self.arrived: set[int] = set()
        self.broken: set[tuple[int, int]] = set()  # (producer, partition) after a failed batch
        self.proven: set[tuple[int, int]] = set()

    def append(self, topic: str, producer: int, batch: Batch) -> bool:
        """Take the batch, or refuse it as real Kafka does after an earlier one has failed."""
        key = producer, batch.partition
        if key in self.broken and key in self.proven:
            return False
        self.proven.add(key)
        for number in numbers_of(batch):
            self.log[topic, self.made, batch.partition].append(number)
            if number not in self.arrived:
                self.first[topic, self.made, batch.partition].append(number)
            self.arrived.add(number)
        return True

    def make_again(self, partitions: int) -> None:
        """Delete the topics and make them with another number of partitions."""
        self.made += 1
        self.partitions = dict.fromkeys(SINKS, partitions)


class Sent(NamedTuple):
    batch: Batch
    appended: bool


class Exit:
    """One outlet as the loop drives it: the machine, one producer's life, what is on the wire."""

    def __init__(self, name: str, world: "World", node: "Node", absent_s: float) -> None:
        self.name = name
        self.world = world
        self.node = node
        self.topic: FakeTopic | None = None
        self.delivery = Delivery(
            RetryPolicy(
                backoff_s=1.0, backoff_max_s=2.0, attempts_max=2 if name == "events" else 1
            ),
            Breaker(
                BreakerPolicy(cooldown_s=3.0, ack_age_max_s=8.0),
                world.clock.monotonic,
                world.random.random,
            ),
            split=lambda batch: wire.split(batch, PLAIN),
            repartition=partial(repartition, partitioner="crc32", codec=PLAIN, bytes_max=4096),
            retire_s=5.0,
            bytes_per_s_max=None,
            start_s=world.start_s,
            absent_s=absent_s,
            clock=world.clock.monotonic,
            jitter=world.random.random,
        )
        self.producer = world.next_producer()
        self.on_wire: list[Sent] = []
        self.pending: Callable[[], None] | None = None  # what answers later

    def admit(self, *batches: Batch) -> None:
        for batch in batches:
            self.do(self.delivery.admit(batch))

    @property
    def problem(self) -> str | None:
        if self.delivery.phase is not Phase.LIVE:
            return self.delivery.reason or "connecting"
        return self.delivery.outage

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(batch):
                    assert self.delivery.phase is Phase.LIVE
                    self.world.check_sent(self, batch)
                    self.on_wire.append(Sent(batch, appended=False))
                case Connect():
                    self._later(self._connected)
                case Close():
                    self.world.retired(self.on_wire)
                    self.on_wire.clear()
                    self._later(lambda: self.do(self.delivery.closed()))
                case Refuse():
                    raise AssertionError("nothing is refused here")

    def tick(self) -> None:
        if self.pending is not None:
            answer, self.pending = self.pending, None
            answer()
        else:
            self.do(self.delivery.tick())

    def deliver(self) -> None:
        """Let everything that is on the wire arrive and be acknowledged, and what follows it."""
        while self.on_wire:
            sent = self.on_wire.pop(0)
            broker = self.world.broker
            if sent.appended or broker.append(self.name, self.producer, sent.batch):
                self.acked(sent.batch)
            else:
                self.do(self.delivery.failed(sent.batch, "sequence"))

    def acked(self, batch: Batch) -> None:
        actions = self.delivery.acked(batch)
        self.node.checkpointer.settle(batch.chunks)
        self.do(actions)

    def first_of(self, partition: int, *, appended: bool) -> Sent | None:
        """Return the oldest batch on the wire to ``partition``, if it stands where asked for."""
        sent = next((s for s in self.on_wire if s.batch.partition == partition), None)
        if not appended and sent is not None and sent.appended:
            sent = next(
                (s for s in self.on_wire if s.batch.partition == partition and not s.appended), None
            )
        return sent if sent is not None and sent.appended == appended else None

    def _later(self, answer: Callable[[], None]) -> None:
        if self.world.random.random() < PAUSES and not self.world.calm:
            self.pending = answer
        else:
            answer()

    def _connected(self) -> None:
        broker = self.world.broker
        self.producer = self.world.next_producer()
        if broker.down:
            self.do(self.delivery.connect_failed("x"))
        else:
            self.topic = FakeTopic(broker.partitions[self.name], MIB)
            self.do(self.delivery.connected(self.topic.partitions))


class WatchedQueue(Queue):
    """The real queue. A connection in memory that outlives the node stands for the disk."""

    def __init__(self, name: str, world: "World") -> None:
        super().__init__(world.database, name, world.bounds.get(name, (0, 0)), Path())
        assert self.lost == 0, f"{self.lost} records of {name} are missing"
        self._world = world
        self._rows = world.rows[name]

    def full(self, limits: Limits) -> str | None:
        return "disk_free_min" if self._world.disk_full else super().full(limits)

    def put(self, batches: Iterable[Batch]) -> None:
        at, batches = self.end, list(batches)
        super().put(batches)
        for batch in batches:
            self._world.check_generations(batch)
            self._rows[at] = numbers_of(batch)
            self._world.spooled.update(self._rows[at])
            at += batch.count

    def drop_below(self, seq: int) -> None:
        for start in [start for start in self._rows if start < seq]:
            for number in self._rows.pop(start):
                assert number in self._world.broker.arrived | self._world.excused, (
                    f"line {number} left the spool and never arrived"
                )
        super().drop_below(seq)

    def drop_oldest(self, start: int, bytes_min: int) -> int:
        held = {stored.seq for stored in self.oldest(start, self.end) if stored.batch is not None}
        dropped = super().drop_oldest(start, bytes_min)
        left = {stored.seq for stored in self.oldest(start, self.end) if stored.batch is not None}
        doomed = [number for seq in held - left for number in self._rows[seq]]
        assert dropped == len(doomed), "what is dropped is counted"
        self._world.excused.update(doomed)
        self._world.dropped.update(doomed)
        return dropped


class Pause:
    """Awaited by a task that stands still until a program goes on with it."""

    def __await__(self) -> Generator[None]:
        yield


class Turnstile:
    """A lock for tasks without an event loop."""

    def __init__(self) -> None:
        self.taken = False

    async def __aenter__(self) -> None:
        while self.taken:
            await Pause()
        self.taken = True

    async def __aexit__(self, *_: object) -> None:
        self.taken = False


class Task:
    """One of the event loop's tasks, begun again and again."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._begin = begin
        self._running: Coroutine[Any, Any, object] | None = None

    @property
    def resting(self) -> bool:
        return self._running is None

    def go_on(self) -> None:
        """Let it run until it stands still or is done."""
        if self._running is None:
            self._running = self._begin()
        try:
            self._running.send(None)
        except StopIteration:
            self._running = None

    def kill(self) -> None:
        if self._running is not None:
            self._running.close()


PLAIN = wire.codec("none", None)


class _Checkpointer(Checkpointer):
    """Commits where the real one would hand over to its thread."""

    def __init__(self, node: "Node", in_flight: InFlight, world: "World") -> None:
        super().__init__(
            lambda rows, forgotten: None,
            InlineExecutor(),
            in_flight,
            committed=lambda: None,
            clock=world.clock,
            metrics=world.metrics,
        )
        self._node = node

    async def flush(self) -> None:
        self._node.commit()


class Node:
    """One life of the agent's process."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.in_flight = InFlight(InFlightPolicy(events_max=EVENTS_MAX, bytes_max=MIB))
        self.harvesters: dict[int, Harvester] = {}  # all of this life, by id, which stays unique
        self.checkpointer = _Checkpointer(self, self.in_flight, world)
        self.registry = Registry(
            world.stored.values(),
            line_bytes_max=4096,
            forget_after_s=1e9,
            clock=world.clock,
            metrics=world.metrics,
        )
        self.sources = Sources(
            world.disk.open_file,
            self.registry,
            line_bytes_max=4096,
            descriptors_max=2,
            start_at_end=False,
            deletion=no_deletion(world.clock, world.metrics),
            clock=world.clock,
            turns=unlimited_turns(world.clock, world.metrics),
            metrics=world.metrics,
        )
        self.queues = {name: WatchedQueue(name, world) for name in SINKS}
        self.ways = self._way("events"), self._way("dead_letters")
        self.exits = tuple(cast(Exit, way.outlet) for way in self.ways)
        self.pace = Pace(BatchPolicy(records_max=2, age_min_s=0.5))
        self.worker = Worker(self.sources, self._chunker(), self.pace)
        self.intake = Intake(
            self.worker,
            self._in_worker,
            ways=self.ways,
            checkpointer=self.checkpointer,
            in_flight=self.in_flight,
        )
        self.intake._turning = cast(asyncio.Lock, Turnstile())
        self.reading = Task(self.intake.turn)
        self.spooling = [Task(partial(_turn_of, way)) for way in self.ways]

    def _way(self, name: str) -> Spooler:
        world, queue = self.world, self.queues[name]
        absent_s = 0.0 if queue.records else ABSENT_S
        way = Spooler(
            cast(Outlet, Exit(name, world, self, absent_s)),
            queue,
            self._in_store,
            world.rules[name],
            in_flight=InFlight(InFlightPolicy(events_max=ROWS_MAX, bytes_max=MIB)),
            settle=self.checkpointer.settle,
            changed=lambda: None,
            metrics=world.metrics,
        )
        way._busy = cast(asyncio.Lock, Turnstile())
        self.checkpointer.tell(way.ledger, way.moved)
        return way

    def _chunker(self) -> Chunker:
        pace = self.pace
        streams = [
            Stream(
                Builders(
                    partial(getattr, way.outlet, "topic"),
                    PLAIN,
                    pace,
                    bytes_max=4096,
                    partitioner="crc32",
                ),
                Builders(lambda: None, PLAIN, pace, bytes_max=4096, partitioner="none"),
            )
            for way in self.ways
        ]
        policy = ChunkPolicy(
            node="n1",
            schema=SchemaPolicy(),
            record=RecordPolicy(version="1", hostname="n1"),
            line_bytes_max=4096,
            event_time=False,
        )
        chunker = Chunker(policy, *streams, clock=self.world.clock, metrics=self.world.metrics)
        chunker.trace(Traced(0.5).tracer)  # whoever is watched must not do other things
        return chunker

    async def _in_worker(self, work: Callable[[], T]) -> T:
        await self.world.pause()
        made = work()
        for harvester in self.open_harvesters():
            if id(harvester) not in self.harvesters:
                self.harvesters[id(harvester)] = harvester
                self.world.disk.opened(harvester)
        for harvester, chunk in made.chunks if isinstance(made, Turn) else ():
            self.world.note(harvester, chunk.start, chunk.end)
        await self.world.pause()
        return made

    async def _in_store(self, work: Callable[[], T]) -> T:
        await self.world.pause()
        done = work()
        await self.world.pause()
        return done

    def scan(self, scan: Scan) -> None:
        if self.reading.resting:  # else it would wait for the turn's end
            Task(partial(self.intake.take_in, scan)).go_on()

    def seal(self) -> None:
        if self.reading.resting:
            self.world.undisturbed(self.intake.seal)

    def check_bounds(self) -> None:
        bound = EVENTS_MAX + CHUNK_LINES_MAX
        assert self.in_flight.events <= bound, "invariant 4: more in flight than configured"
        for way in self.ways:
            # What was in flight when the outage began is in flight as rows too, or is read at once.
            assert way.in_flight.events <= max(bound, ROWS_MAX + READ_RECORDS), "invariant 4: rows"

    def rest(self) -> None:
        """Let every task come to an end; nothing stands still any more."""
        tasks = [self.reading, *self.spooling]
        while not all(task.resting for task in tasks):
            for task in tasks:
                if not task.resting:
                    task.go_on()

    def kill(self) -> None:
        for task in (self.reading, *self.spooling):
            task.kill()

    def open_harvesters(self) -> list[Harvester]:
        return [f.harvester for f in self.sources.opened if f.harvester is not None]

    def commit(self) -> None:
        rows, _, passed = self.checkpointer.collect()
        for row in rows:
            self.world.store(row)
        self.world.bounds = {name: (q.head, q.end) for name, q in self.queues.items()}
        self.checkpointer.stored(passed)

    def tick(self) -> None:
        for outlet in self.exits:
            outlet.tick()


async def _turn_of(way: Spooler) -> None:
    async with way._busy:
        await way._turn()


class Disk:
    """The files, and which whole lines they hold. A simulated one, of ``Inode``s."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.files: dict[str, Inode] = {}
        self.inodes: list[Inode] = []
        self._epochs: dict[Harvester, int] = {}  # the truncations its file had when it began

    def append(self, path: str, count: int, *, bad: bool = False) -> None:
        """Write ``count`` lines; the first of them may be the rest of a torn one."""
        inode = self._written_to(path)
        for _ in range(count):
            number, rest = inode.torn or self.world.next_line(bad=bad)
            inode.content += rest
            inode.changes += 1
            self._written(inode, number)

    def _written(self, inode: Inode, number: int) -> None:
        inode.torn = None
        inode.lines.append(Line(number, len(inode.content)))
        self.world.life_of[number] = self.inodes.index(inode), inode.epoch

    def tear(self, path: str) -> None:
        """Write the first part of a line, enough to know it by."""
        inode = self._written_to(path)
        if inode.torn is None:
            number, body = self.world.next_line(bad=False)
            cut = body.index(b'"session_id"')
            inode.content += body[:cut]
            inode.changes += 1
            inode.torn = number, body[cut:]

    def _written_to(self, path: str) -> Inode:
        inode = self.files.get(path)
        if inode is None:
            # The file system hands out a freed inode at once; only the birth differs.
            held = [inode_of(h) for h in self.world.node.open_harvesters()]
            used = {i.birth.inode for i in (*self.files.values(), *held)}
            number = next(n for n in range(1, 100) if n not in used)
            inode = self.files[path] = Inode(number, 1 + len(self.inodes))
            self.inodes.append(inode)
        return inode

    def rotate(self, path: str) -> None:
        if path in self.files:
            self.files[f"{path}.{len(self.inodes)}.{self.world.lines}"] = self.files.pop(path)

    def truncate(self, path: str) -> None:
        inode = self.files.get(path)
        if inode is not None:
            self._destroy(inode, still_readable=False)
            inode.truncate()

    def delete(self, path: str) -> None:
        inode = self.files.pop(path, None)
        if inode is not None:
            inode.links = 0
            if inode.torn is not None:  # what there is of it is all there will be
                self._written(inode, inode.torn[0])
            self._destroy(inode, still_readable=self._holds_open(inode))

    def _destroy(self, inode: Inode, *, still_readable: bool) -> None:
        """Lines that nobody has read are excused; read ones only if the agent dies too early."""
        for line in inode.lines:
            if still_readable or self._has_read(inode, line.end):
                self.world.excused_by_crash.add(line.number)
            else:
                self.world.excused.add(line.number)

    def scan(self) -> Scan:
        seen = tuple(
            Seen(path, path.split("/")[0], file_key(1, i.birth.inode), len(i.content), i.changes)
            for path, i in self.files.items()
        )
        return Scan(files=seen)

    def open_file(self, path: str) -> Descriptor | Refused:
        inode = self.files.get(path)
        if inode is None:
            return Refused("gone")
        return cast(Descriptor, OpenFile(inode))

    def opened(self, harvester: Harvester) -> None:
        """Note that the agent began to read a file."""
        self._epochs[harvester] = inode_of(harvester).epoch

    def crashed(self) -> None:
        """Take back what the agent held that is dead now."""

    def complete(self) -> None:
        """Let apps end the lines they have begun."""
        for path in [path for path, inode in self.files.items() if inode.torn is not None]:
            self.append(path, 1)

    def close(self) -> None:
        pass

    def lines_of(self, harvester: Harvester, start: int, end: int) -> list[Line]:
        """Return the lines in a chunk that the agent read."""
        held = [line for line in inode_of(harvester).lines if start < line.end <= end]
        assert held, "a chunk holds at least one line"
        assert held[-1].end == end, "a chunk must end with a line"
        return held

    def _has_read(self, inode: Inode, end: int) -> bool:
        """Return whether the line that ends at ``end`` was handed out in this life."""
        return any(
            inode_of(h) is inode and self._epochs.get(h) == inode.epoch and h.cursor.start >= end
            for h in self.world.node.open_harvesters()
        )

    def _holds_open(self, inode: Inode) -> bool:
        return any(inode_of(h) is inode for h in self.world.node.open_harvesters())


def inode_of(harvester: Harvester) -> Inode:
    return cast(OpenFile, harvester.file).inode


class World:
    """Everything that outlives the agent, and the oracle."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - chance that can be had again
        self.clock = self.make_clock()
        self.metrics = METRICS
        self.broker = Broker()
        self.disk_full = False
        self.calm = False
        self.start_s = self.random.choice((0.0, 0.0, 4.0))
        self.rules = {"events": self._rules(TAIL_SHARE), "dead_letters": self._rules(None)}
        self.database = sqlite3.connect(":memory:")
        spool._migrate(self.database, Path("spool.db"))
        self.bounds: dict[str, tuple[int, int]] = {}  # of the queues, as the checkpoints know them
        self.rows: dict[str, dict[int, list[int]]] = {name: {} for name in SINKS}
        self.spooled: set[int] = set()  # lines that were ever committed in the spool
        self.disk = self.make_disk()
        self.stored: dict[tuple[str, int], Checkpoint] = {}
        # What was read of each generation, as far as a restart would not read it again.
        self.handed: defaultdict[tuple[str, int], list[Line]] = defaultdict(list)
        self.read: set[int] = set()
        self.life_of: dict[int, Life] = {}  # line number -> the content it belongs to
        self.excused: set[int] = set()
        self.dropped: set[int] = set()  # by a full spool: a crash may bring them back, but late
        self.excused_by_crash: set[int] = set()
        self.lines = 0
        self.copies_allowed = 0
        self._producers = 0
        self.node = Node(self)
        self.node.tick()

    def _rules(self, tail_share: float | None) -> SpoolRules:
        bytes_max = self.random.choice((MIB, MIB, 3000))
        return SpoolRules(
            enabled=tail_share is None or self.random.random() < 0.9,
            limits=Limits(bytes_max, 0.0),
            drop_oldest=self.random.random() < 0.1,
            tail_share=tail_share,
        )

    def make_clock(self) -> FakeClock:
        return FakeClock()

    def make_disk(self) -> "Disk":
        return Disk(self)

    async def pause(self) -> None:
        if not self.calm and self.random.random() < PAUSES:
            await Pause()

    def undisturbed(self, begin: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a task from its begin to its end."""
        calm, self.calm = self.calm, True
        Task(begin).go_on()
        self.calm = calm

    def next_producer(self) -> int:
        self._producers += 1
        return self._producers

    def next_line(self, *, bad: bool) -> tuple[int, bytes]:
        """Return a line that nobody wrote before, and its number."""
        self.lines += 1
        return self.lines, line_of(self.lines, bad=bad)

    def note(self, harvester: Harvester, start: int, end: int) -> None:
        """Write down which lines a chunk holds, from the disk itself."""
        held = self.disk.lines_of(harvester, start, end)
        self.handed[harvester.base.source_id, harvester.base.generation] += held
        self.read |= {line.number for line in held}

    def store(self, row: Checkpoint) -> None:
        """Commit a row, and check that nothing below its watermark is unknown."""
        key = row.source_id, row.generation
        before = self.stored.get(key)
        if before is not None and before.watermark > row.watermark:
            return  # as the store does
        for line in self.handed[key]:
            safe = line.number in self.broker.arrived or line.number in self.spooled
            assert line.end > row.watermark or safe, (
                f"invariant 1: stored {row.watermark}, but line {line.number} never arrived"
            )
        self.stored[key] = row

    def settle_everything(self) -> None:
        """Let everything that was read arrive, and commit it."""
        node = self.node
        node.tick()
        node.seal()
        for outlet in node.exits:
            outlet.deliver()
        for task in node.spooling:
            task.go_on()
        node.commit()

    def retired(self, on_wire: list[Sent]) -> None:
        """What was out is unknown: what of it arrived goes twice."""
        self.copies_allowed += sum(sent.batch.count for sent in on_wire if sent.appended)

    def crash(self) -> None:
        node = self.node
        node.kill()
        self.disk.crashed()
        in_flight = [node.in_flight, *(way.in_flight for way in node.ways)]
        self.copies_allowed += sum(count.events for count in in_flight)
        self.excused |= self.excused_by_crash - self.broker.arrived - self.spooled
        for key, lines in self.handed.items():
            row = self.stored.get(key)
            lines[:] = [line for line in lines if row is not None and line.end <= row.watermark]
        self.node = Node(self)
        self.node.tick()

    def in_file_order(self, queue: Queue) -> bool:
        """Return whether first deliveries are in file order if all of ``queue`` is replayed."""
        waiting: list[tuple[bool, int]] = []
        for stored in queue.oldest(queue.head, queue.end):
            if stored.batch is not None:
                parted = stored.batch.partition >= 0
                waiting += [(parted, number) for number in numbers_of(stored.batch)]
        sorted_first = sorted(number for parted, number in waiting if parted)
        replayed = [*sorted_first, *(number for parted, number in waiting if not parted)]
        known = self.broker.arrived | self.excused
        first = [number for number in dict.fromkeys(replayed) if number not in known]
        reached: dict[Life, int] = {}
        for number in first:
            if reached.get(self.life_of[number], 0) > number:
                return False
            reached[self.life_of[number]] = number
        missing = self.life_of.keys() - known - set(first)
        return all(number > reached.get(self.life_of[number], 0) for number in missing)

    def check_sent(self, outlet: Exit, batch: Batch) -> None:
        self.check_generations(batch)
        assert outlet.topic is not None
        for record in wire.records(batch):
            assert record.key is not None
            at = crc32_partition(record.key, outlet.topic.partitions)
            assert batch.partition == at, f"{record.key!r} goes to {batch.partition}, not to {at}"
        if not isinstance(batch.chunks[0], Row):
            self.check_overtakes_nothing(outlet.name, batch)

    def check_overtakes_nothing(self, topic: str, batch: Batch) -> None:
        waiting: dict[Life, int] = {}
        for numbers in self.rows[topic].values():
            for number in numbers:
                if number not in self.broker.arrived and number not in self.excused:
                    life = self.life_of[number]
                    waiting[life] = min(number, waiting.get(life, number))
        if waiting:
            for number in numbers_of(batch):
                older = waiting.get(self.life_of[number], number)
                assert older >= number, f"invariant 10: {number} sent, {older} is in the spool"

    def check_generations(self, batch: Batch) -> None:
        """Nothing of a later generation leaves before a crash would find its number on disk."""
        for record in wire.records(batch):
            _, source_id, generation, *_ = dict(record.headers)["source"].decode().split(";")
            assert generation == "0" or (source_id, int(generation)) in self.stored, (
                f"generation {generation} of {source_id} is sent, but not stored"
            )

    def check_order(self) -> None:
        for (topic, _, partition), log in self.broker.first.items():
            last: dict[Life, int] = {}
            for number in (number for number in log if number not in self.dropped):
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


METRICS = Metrics(CollectorRegistry())
"""Of all programs: what they count is never looked at."""

_NUMBER = re.compile(rb"8000-([0-9]{12})|line ([0-9]+) is bad")


def number_of(value: bytes) -> int:
    """Return the number of the line that a record was made of."""
    found = _NUMBER.search(value)
    assert found is not None, value
    return int(found[1] or found[2])


def numbers_of(batch: Batch) -> list[int]:
    return [number_of(record.value) for record in wire.records(batch)]


STEPS = {
    "append": 20,
    "torn": 3,
    "bad": 3,
    "rotate": 4,
    "truncate": 2,
    "delete": 2,
    "scan": 12,
    "turn": 45,
    "spool": 30,
    "broker": 30,
    "ack": 30,
    "fail": 2,
    "outage": 3,
    "recover": 4,
    "fill_disk": 1,
    "empty_disk": 3,
    "commit": 20,
    "crash": 3,
    "make_topics_again": 2,
    "time": 14,
    "seal": 3,
}


STORM = STEPS | {"spool": 45, "outage": 6, "recover": 9, "time": 30, "crash": 2}
"""Outages come and go."""


class Program:
    """Some dozens of random steps, then a friendly end; raises where an invariant breaks."""

    scripts = (STEPS, 90), (STORM, 200)

    def __init__(self, seed: int) -> None:
        self.world = self.make_world(seed)
        weights, length = self.world.random.choice(self.scripts)
        chosen = self.world.random.choices(list(weights), list(weights.values()), k=length)
        self.steps = ["append", "append", "scan", *chosen]

    def make_world(self, seed: int) -> World:
        return World(seed)

    def run(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.core.lines.CHUNK_BYTES", CHUNK_BYTES)
            patch.setattr("agent.worker.BYTES_A_TURN", CHUNK_BYTES // 2)
            patch.setattr("agent.worker.BYTES_ALONE", BYTES_ALONE)
            patch.setattr("agent.worker.READ_BYTES", CHUNK_BYTES // 4)
            patch.setattr("agent.strangers.LATELY_MAX", 2)
            patch.setattr("agent.spooler.READ_RECORDS", READ_RECORDS)
            patch.setattr("agent.core.delivery.STALE_S", STALE_S)
            try:
                for step in self.steps:
                    self.step(step)
                    self.world.node.check_bounds()
                self.finish()
            finally:
                self.world.node.kill()
                self.world.disk.close()
                self.world.database.close()

    def step(self, name: str) -> None:
        getattr(self, name)()

    def path(self) -> str:
        return self.world.random.choice(PATHS)

    def any_path(self) -> str:
        return self.world.random.choice([*self.world.disk.files] or list(PATHS))

    def append(self) -> None:
        path = self.path()
        self.world.disk.append(path, self.world.random.randint(1, 12))
        self.world.node.sources.hint(path)

    def torn(self) -> None:
        self.world.disk.tear(self.path())

    def bad(self) -> None:
        self.world.disk.append(self.path(), 1, bad=True)

    def rotate(self) -> None:
        self.world.disk.rotate(self.path())

    def truncate(self) -> None:
        self.world.disk.truncate(self.path())

    def delete(self) -> None:
        self.world.disk.delete(self.any_path())

    def scan(self) -> None:
        self.world.node.scan(self.world.disk.scan())

    def turn(self) -> None:
        self.world.node.reading.go_on()

    def spool(self) -> None:
        events, dead_letters = self.world.node.spooling
        self.world.random.choice([events, events, dead_letters]).go_on()

    def seal(self) -> None:
        self.world.node.seal()

    def exit(self) -> Exit:
        events, dead_letters = self.world.node.exits
        return self.world.random.choice([events, events, dead_letters])

    def broker(self) -> None:
        """A batch reaches the broker; its acknowledgement is still on the way."""
        outlet, broker = self.exit(), self.world.broker
        sent = outlet.first_of(self.world.random.randrange(PARTITIONS), appended=False)
        if sent is None or broker.down:
            return
        if broker.append(outlet.name, outlet.producer, sent.batch):
            outlet.on_wire[outlet.on_wire.index(sent)] = Sent(sent.batch, appended=True)
        else:
            outlet.on_wire.remove(sent)
            outlet.do(outlet.delivery.failed(sent.batch, "sequence"))

    def ack(self) -> None:
        outlet = self.exit()
        sent = outlet.first_of(self.world.random.randrange(PARTITIONS), appended=True)
        if sent is not None:
            outlet.on_wire.remove(sent)
            outlet.acked(sent.batch)

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

    def fill_disk(self) -> None:
        self.world.disk_full = True

    def empty_disk(self) -> None:
        self.world.disk_full = False

    def commit(self) -> None:
        self.world.node.commit()

    def crash(self) -> None:
        self.world.crash()

    def make_topics_again(self) -> None:
        """Topics of another number of partitions meet the agent when it starts.

        Only while the spool is in file order. What was in flight when an outage began is in the
        order of the old partitions: a crash before the rest of it is written down too leaves holes
        between the lines, and what fills them comes later.
        """
        world = self.world
        if all(world.in_file_order(queue) for queue in world.node.queues.values()):
            world.broker.make_again(world.random.randint(1, 2 * PARTITIONS))
            world.crash()

    def time(self) -> None:
        self.world.clock.advance(self.world.random.choice((0.1, 0.6, 2.0, 6.0, 10.0)))
        self.world.node.tick()

    def finish(self) -> None:
        """The world turns friendly, though the disk may be full: all that is on it must arrive."""
        world = self.world
        world.broker.down = False
        world.calm = True
        world.node.rest()
        world.disk.complete()
        for _ in range(400):
            world.clock.advance(3.0)
            self.scan()
            for _ in range(8):
                world.node.reading.go_on()
            world.node.check_bounds()
            world.settle_everything()
            if world.node.sources.idle and self._quiet():
                break
        else:
            raise AssertionError("the agent never came to rest")
        self.scan()
        world.check_order()
        world.check_copies()
        world.check_all_arrived()
        for way in world.node.ways:
            assert way.mode is Mode.LIVE
            assert way.status()["spooled_bytes"] == 0

    def _quiet(self) -> bool:
        node = self.world.node
        queued = sum(outlet.delivery.queued for outlet in node.exits)
        spooled = sum(way.spooled_records + way.in_flight.events for way in node.ways)
        waiting = self.world.life_of.keys() - self.world.excused - self.world.read
        return not (queued or spooled or node.in_flight.events or waiting)
