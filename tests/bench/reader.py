"""The consumer, a process of its own. While a bench measures it only takes what brokers have, and
looks into it afterwards: the less it does meanwhile, the less it disturbs.
"""

import asyncio
import multiprocessing
import re
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record import MemoryRecords

from agent.demo.scene import Topics
from tests.bench.brokers import PARTITIONS, Brokers

FETCH_BYTES = 1 << 22
"""Of one partition in one answer."""
OUT_OF_RANGE = 1
"""Kafka's error code: what is asked for was dropped already."""
_BATCH = struct.Struct(
    ">qi11xi30xi"
)  # first offset, length behind it, last offset - first, records
_BEHIND_LENGTH = 12
_FRAME = struct.Struct(">qi")  # when it came, its bytes
_SEQ = re.compile(rb'"seq": ?"?([0-9]+)')  # syslog-ng makes numbers to texts
_STAMP = re.compile(rb'"written_at_ns":([0-9]+)')

_spawn = multiprocessing.get_context("spawn")
Ask = Literal["count", "check", "end"]


class Count(NamedTuple):
    """Records up to now.

    Args:
        records: That the brokers took.
        dropped: Those of them that they dropped before they were read.
        first_ns, last_ns: When the first and the last came, since the epoch; 0 before.
    """

    records: int = 0
    dropped: int = 0
    first_ns: int = 0
    last_ns: int = 0


class Checked(NamedTuple):
    """Args:
    lines: Distinct ones.
    copies: Records of a line beyond its first.
    strangers: Records that are no line that was written.
    latencies: Nanoseconds since the epoch of each line that says when it was written, and how
        many later it came.
    """

    lines: int
    copies: int
    strangers: int
    latencies: list[tuple[int, int]]


class Reader:
    """The consumer's process; in a ``with`` block of ``reading``."""

    def __init__(self, tell: Connection) -> None:
        self._tell = tell

    def count(self) -> Count:
        found = self._ask(("count", 0))
        assert isinstance(found, Count)
        return found

    def check(self, lines: int) -> Checked:
        """Look which of the lines 0 to ``lines`` - 1 came."""
        found = self._ask(("check", lines))
        assert isinstance(found, Checked)
        return found

    def _ask(self, ask: tuple[Ask, int]) -> Any:  # unpickled
        self._tell.send(ask)
        return self._tell.recv()


@contextmanager
def reading(
    brokers: Brokers, topics: Topics, work: Path, *, plant: bool = False
) -> Iterator[Reader]:
    """Read ``topics.events`` from its beginning, over a file in ``work``.

    Args:
        plant: Overlook line 0: a bench that is right fails then.
    """
    ours, its = _spawn.Pipe()
    arguments = (topics, brokers.fetch_wait_ms, work, plant, its)
    process = _spawn.Process(target=_main, args=arguments, daemon=True)
    process.start()
    its.close()  # so that its end is seen here, if it ends
    try:
        yield Reader(ours)
        ours.send(("end", 0))
        process.join(10)
    finally:
        process.kill()
        process.join()


def _main(topics: Topics, wait_ms: int, work: Path, plant: bool, asked: Connection) -> None:
    with (work / "fetched").open("w+b") as spill:
        consumer = _Consumer(topics.events, wait_ms, spill, plant=plant)
        asyncio.run(consumer.run(topics.bootstrap_servers, asked))
    (work / "fetched").unlink()


class _Consumer:
    def __init__(self, topic: str, wait_ms: int, spill: BinaryIO, *, plant: bool) -> None:
        self._topic = topic
        self._wait_ms = wait_ms
        self._spill = spill
        self._plant = plant
        self._next = [0] * PARTITIONS
        self._records = -1 if plant else 0
        self._dropped = 0
        self._first_ns = self._last_ns = 0

    async def run(self, bootstrap: str, asked: Connection) -> None:
        client = AIOKafkaClient(bootstrap_servers=bootstrap)
        await client.bootstrap()
        led = await client.fetch_all_metadata()
        of: dict[int, list[int]] = {}
        for partition in range(PARTITIONS):
            leader = led.leader_for_partition(TopicPartition(self._topic, partition))
            of.setdefault(leader, []).append(partition)
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(asked.fileno(), self._answer, asked, over)
        tasks = [asyncio.create_task(self._follow(client, node, of[node])) for node in of]
        waiting = asyncio.create_task(over.wait())
        await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(asked.fileno())
        for task in tasks:
            if task.done():
                task.result()  # it raises: none ends by itself
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()

    async def _follow(self, client: AIOKafkaClient, node: int, partitions: list[int]) -> None:
        while True:
            wanted = [(number, self._next[number], FETCH_BYTES) for number in partitions]
            request = FetchRequest(
                self._wait_ms, 1, FETCH_BYTES * len(partitions), 0, [(self._topic, wanted)]
            )
            try:
                response = await client.send(node, request)
            except RequestTimedOutError:  # to look at tens of millions of lines takes as long
                continue
            now_ns = time.time_ns()
            for _, answers in response.topics:
                for number, code, high, *_, records in answers:
                    if code == OUT_OF_RANGE:
                        self._skip(number, high)
                    else:
                        assert code == 0, f"partition {number}: error {code}"
                        self._take(number, records, now_ns)

    def _skip(self, number: int, high: int) -> None:
        """Go on at the end: what is left of the rest goes as well, by the time it is asked for."""
        self._records += high - self._next[number]
        self._dropped += high - self._next[number]
        self._next[number] = high

    def _take(self, number: int, records: bytes, now_ns: int) -> None:
        at = 0
        while at + _BATCH.size <= len(records):
            first, length, last_delta, count = _BATCH.unpack_from(records, at)
            if at + _BEHIND_LENGTH + length > len(records):
                break  # brokers may cut the last one
            at += _BEHIND_LENGTH + length
            self._records += count
            self._next[number] = first + last_delta + 1
        if at:
            self._first_ns = self._first_ns or now_ns
            self._last_ns = now_ns
            self._spill.write(_FRAME.pack(now_ns, at))
            self._spill.write(memoryview(records)[:at])

    def _answer(self, asked: Connection, over: asyncio.Event) -> None:
        try:
            ask, lines = asked.recv()
        except EOFError:
            ask, lines = "end", 0
        if ask == "count":
            asked.send(Count(self._records, self._dropped, self._first_ns, self._last_ns))
        elif ask == "check":
            asked.send(self._check(lines))
        else:
            over.set()

    def _check(self, lines: int) -> Checked:
        seen, copies, strangers = bytearray(lines), 0, 0
        written, took = array("Q"), array("q")
        for came_ns, value in self._values():
            found = _SEQ.search(value, max(0, value.rfind(b'"seq"')))
            seq = -1 if found is None else int(found[1])
            if seq == 0 and self._plant:
                continue
            if not 0 <= seq < lines:
                strangers += 1
                continue
            copies += seen[seq]
            stamp = None if seen[seq] else _STAMP.search(value)
            seen[seq] = 1
            if stamp is not None:
                written.append(int(stamp[1]))
                took.append(came_ns - int(stamp[1]))
        return Checked(sum(seen), copies, strangers, list(zip(written, took, strict=True)))

    def _values(self) -> Iterator[tuple[int, bytes]]:
        self._spill.seek(0)
        while head := self._spill.read(_FRAME.size):
            came_ns, size = _FRAME.unpack(head)
            batches = MemoryRecords(self._spill.read(size))
            while batches.has_next():
                batch = batches.next_batch()
                assert batch is not None
                assert batch.validate_crc()
                for record in batch:
                    yield came_ns, record.value or b""
