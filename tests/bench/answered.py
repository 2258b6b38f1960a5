"""When brokers answered for each line: a relay between an agent and its brokers, a process of its
own. Meanwhile it only passes on what comes and notes when; it looks into it afterwards.
"""

import asyncio
import multiprocessing
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, NamedTuple

import msgspec
from aiokafka.protocol import produce
from aiokafka.record import MemoryRecords

from agent.demo.scene import Topics
from tests.proxy import HEAD, METADATA, PRODUCE, Address, LyingProxy, frame, framed

_NOTE = struct.Struct(">qqii")  # when it was answered, the relay's part, bytes of both frames
_STAMP = re.compile(rb'"written_at_ns":([0-9]+)')
_CORRELATION_BYTES = 4

_spawn = multiprocessing.get_context("spawn")


class Answered(NamedTuple):
    """Args:
    latencies: Nanoseconds since the epoch of each line that says when it was written, and how
        many later a broker had answered for it.
    relay_ns: What of that is the relay's own: a request's way from its last byte to the broker.
    """

    latencies: list[tuple[int, int]]
    relay_ns: float


class Relayed:
    """The relay's process; in a ``with`` block of ``relaying``.

    Attributes:
        topics: Those that it was made for, as they are reached through it.
    """

    def __init__(self, tell: Connection, topics: Topics) -> None:
        self._tell = tell
        self.topics = topics

    def answered(self) -> Answered:
        """Return what was answered up to now."""
        self._tell.send("answered")
        found = self._tell.recv()
        assert isinstance(found, Answered)
        return found


@contextmanager
def relaying(topics: Topics, work: Path) -> Iterator[Relayed]:
    """Relay to the brokers of ``topics``, over a file in ``work``."""
    ours, its = _spawn.Pipe()
    process = _spawn.Process(target=_main, args=(topics, work, its), daemon=True)
    process.start()
    its.close()  # so that its end is seen here, if it ends
    try:
        yield Relayed(ours, msgspec.structs.replace(topics, bootstrap_servers=ours.recv()))
        ours.send("end")
        process.join(10)
    finally:
        process.kill()
        process.join()


def _main(topics: Topics, work: Path, asked: Connection) -> None:
    with (work / "answered").open("w+b") as spill:
        asyncio.run(_serve(topics, spill, asked))
    (work / "answered").unlink()


async def _serve(topics: Topics, spill: BinaryIO, asked: Connection) -> None:
    over, loop = asyncio.Event(), asyncio.get_running_loop()

    def answer() -> None:
        try:
            ask = asked.recv()
        except EOFError:
            ask = "end"
        if ask == "end":
            over.set()
        else:
            asked.send(_looked_into(spill, topics.events))

    async with _Relay(topics.bootstrap_servers, spill) as relay:
        loop.add_reader(asked.fileno(), answer)
        asked.send(relay.bootstrap_servers)
        await over.wait()
        loop.remove_reader(asked.fileno())


class _Relay(LyingProxy):
    """One that tells the truth, and writes down when."""

    def __init__(self, bootstrap: str, spill: BinaryIO) -> None:
        super().__init__(bootstrap)
        self._spill = spill

    async def _exchange(
        self,
        address: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        broker: asyncio.StreamWriter,
    ) -> bool:
        request = await frame(reader)
        came_ns = time.time_ns()
        broker.write(framed(request))
        passed_ns = time.time_ns()
        answer = await frame(answers)
        answered_ns = time.time_ns()
        api_key, version, _ = HEAD.unpack_from(request)
        if api_key == METADATA:
            answer = await self._renamed(answer, version)
        writer.write(framed(answer))
        if api_key == PRODUCE:
            own_ns = passed_ns - came_ns
            self._spill.write(_NOTE.pack(answered_ns, own_ns, len(request), len(answer)))
            self._spill.write(request + answer)
        return True


def _looked_into(spill: BinaryIO, topic: str) -> Answered:
    found: list[tuple[int, int]] = []
    own_ns = [0]
    spill.seek(0)
    while note := spill.read(_NOTE.size):
        answered_ns, own, *sizes = _NOTE.unpack(note)
        own_ns.append(own)
        request, answer = map(spill.read, sizes)
        for value in _taken(request, answer, topic):
            stamp = _STAMP.search(value)
            if stamp is not None:
                found.append((int(stamp[1]), answered_ns - int(stamp[1])))
    return Answered(found, median(own_ns))


def _taken(request: bytes, answer: bytes, topic: str) -> Iterator[bytes]:
    """Yield the values of those records in ``request`` that ``answer`` says the broker has."""
    _, version, _ = HEAD.unpack_from(request)
    kind = produce.ProduceRequest._CLASSES[version]
    body = BytesIO(request[HEAD.size :])
    body.seek(2 + int.from_bytes(body.read(2), "big"))  # the client's id
    asked: Any = kind.decode(body)
    said: Any = kind.RESPONSE_TYPE.decode(BytesIO(answer[_CORRELATION_BYTES:]))
    codes = {(name, number): code for name, parts in said.topics for number, code, *_ in parts}
    for name, partitions in asked.topics:
        for number, records in partitions:
            if name == topic and codes[name, number] == 0:
                yield from _values(records)


def _values(records: bytes) -> Iterator[bytes]:
    batches = MemoryRecords(records)
    while batches.has_next():
        batch = batches.next_batch()
        assert batch is not None
        for record in batch:
            yield record.value or b""
