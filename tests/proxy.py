"""A proxy between a producer and its brokers that lies when told to.

It speaks Kafka's framing, passes one request after the other and rewrites the brokers' addresses
in what they say of each other (Metadata, versions 0 to 5), so that all of a client's connections
come through it. No TLS, no SASL, no ``acks=0``.
"""

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka.protocol import metadata, produce

PRODUCE, METADATA = 0, 3
HOST = "127.0.0.1"

HEAD = struct.Struct(">hhi")  # of a request: api key, version, correlation id
_CORRELATION_BYTES = 4
_PRODUCER = struct.Struct(">qhi")  # in a record batch: producer id, epoch, base sequence
_PRODUCER_AT = 43

Address = tuple[str, int]


def framed(frame: bytes) -> bytes:
    return struct.pack(">i", len(frame)) + frame


class Lie(NamedTuple):
    """What becomes of one Produce request.

    Attributes:
        says: The broker's answer -> the bytes that go out in its place.
        wait_s: How long to wait before that.
        hang_up: Close the connection after that.
        taken: The broker gets the request; otherwise the answer is its correlation id alone.
    """

    says: Callable[[bytes], bytes] = framed
    wait_s: float = 0.0
    hang_up: bool = False
    taken: bool = True


class Batch(NamedTuple):
    """What makes a broker know a batch again."""

    partition: int
    producer_id: int
    base_sequence: int


class LyingProxy:
    """In front of every broker that ``bootstrap`` leads to; in an ``async with`` block.

    Attributes:
        asked: How many requests came, by api key.
        produced: The batches of every Produce request, in order; a batch sent again is twice here.
        topic_errors: Error codes for the topics in the next Metadata answers that have any.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = [_address(server) for server in bootstrap.split(",")]
        self._servers: dict[Address, asyncio.Server] = {}
        self._silent: set[Address] = set()
        self._lies: list[Lie] = []
        self._connections: dict[asyncio.Task[None], Address] = {}
        self.asked: Counter[int] = Counter()
        self.produced: list[Batch] = []
        self.topic_errors: list[int] = []

    async def __aenter__(self) -> Self:
        for address in self._bootstrap:
            await self._front(address)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            server.close()
        await _ended(self._connections)

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{HOST}:{_port(self._servers[address])}" for address in self._bootstrap)

    def lie(self, *lies: Lie) -> None:
        """Treat the next Produce requests so, of all brokers, in order; then honestly again."""
        self._lies += lies

    def silence(self, *brokers: str) -> None:
        """Accept connections and requests, pass on none and answer none; all brokers, or these."""
        self._silent |= {_address(broker) for broker in brokers} or set(self._servers)

    async def speak(self) -> None:
        """Be a broker again, on new connections: the old ones have unanswered requests."""
        silent, self._silent = self._silent, set()
        await _ended([task for task, to in self._connections.items() if to in silent])

    async def _front(self, address: Address) -> int:
        """Return the port that leads to ``address``."""
        if address not in self._servers:

            async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                self._connections[task] = address
                try:
                    await self._serve(address, reader, writer)
                finally:
                    del self._connections[task]

            self._servers[address] = await asyncio.start_server(connected, HOST, 0)
        return _port(self._servers[address])

    async def _serve(
        self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        broker: asyncio.StreamWriter | None = None
        # Whoever hangs up first, and however: the other end learns of it by losing its own.
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            try:
                answers, broker = await asyncio.open_connection(*address)
                while await self._exchange(address, reader, writer, answers, broker):
                    pass
            finally:
                writer.close()
                if broker is not None:
                    broker.close()

    async def _exchange(
        self,
        address: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        broker: asyncio.StreamWriter,
    ) -> bool:
        """Pass one request on and its answer back. Return False to hang up."""
        request = await frame(reader)
        api_key, version, _ = HEAD.unpack_from(request)
        self.asked[api_key] += 1
        if api_key == PRODUCE:
            self.produced += _batches(request, version)
        if address in self._silent:
            return True
        lie = self._lies.pop(0) if api_key == PRODUCE and self._lies else Lie()
        answer = request[4 : HEAD.size]  # the correlation id
        if lie.taken:
            broker.write(framed(request))
            answer = await frame(answers)
        if api_key == METADATA:
            answer = await self._renamed(answer, version)
        await asyncio.sleep(lie.wait_s)
        writer.write(lie.says(answer))
        await writer.drain()
        return not lie.hang_up

    async def _renamed(self, answer: bytes, version: int) -> bytes:
        said = metadata.MetadataRequest._CLASSES[version].RESPONSE_TYPE.decode(
            BytesIO(answer[_CORRELATION_BYTES:])
        )
        said.brokers = [
            (node, HOST, await self._front((host, port)), *rack)
            for node, host, port, *rack in said.brokers
        ]
        if said.topics and self.topic_errors:
            code = self.topic_errors.pop(0)
            said.topics = [(code, *topic[1:-1], []) for topic in said.topics]
        return answer[:_CORRELATION_BYTES] + bytes(said.encode())


def _batches(request: bytes, version: int) -> list[Batch]:
    kind = produce.ProduceRequest._CLASSES[version]
    body = BytesIO(request[HEAD.size :])
    body.seek(2 + int.from_bytes(body.read(2), "big"))  # the client's id
    found: list[Batch] = []
    asked: Any = kind.decode(body)
    for _, partitions in asked.topics:
        for partition, batch in partitions:
            producer_id, _, base_sequence = _PRODUCER.unpack_from(batch, _PRODUCER_AT)
            found.append(Batch(partition, producer_id, base_sequence))
    return found


async def frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(length)


async def _ended(tasks: "dict[asyncio.Task[None], Address] | list[asyncio.Task[None]]") -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def _address(server: str) -> Address:
    host, _, port = server.rpartition(":")
    return host, int(port)


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port
