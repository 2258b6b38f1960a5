"""Stand-ins for the world. They keep the contract of the real thing; they do not record calls."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

from agent.builders import repartition
from agent.clock import Clock
from agent.core.batch import Batch
from agent.core.breaker import Breaker, Jitter, Monotonic
from agent.core.delivery import Delivery
from agent.core.ledger import Chunk, Ledger
from agent.core.policy import BreakerPolicy, ClientQuotaPolicy, RetryPolicy
from agent.core.quota import ClientLimits
from agent.deletion import Deletion, Remove
from agent.errors import RecordRefused, SinkUnavailable
from agent.telemetry import Metrics
from agent.turns import Turns
from agent.wire import HEADER_BYTES, Builder, Codec, Record, codec, records, reseal, split

P = ParamSpec("P")
T = TypeVar("T")

PLAIN = codec("none", None)
RETRY = RetryPolicy()
BREAKER = BreakerPolicy()
WALL_S = 1_700_000_000.0


class FakeClock:
    """Time moves only when a test says so; ``drive`` makes the event loop's timers obey too."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return WALL_S + self.now

    async def sleep(self, seconds: float) -> None:
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, waker))
        await waker

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [s for s in self._sleepers if s[0] <= self.now]
        self._sleepers = [s for s in self._sleepers if s[0] > self.now]
        for _, waker in sorted(due, key=lambda s: s[0]):
            if not waker.done():
                waker.set_result(None)

    def drive(self) -> None:
        """Let the running loop tell this time: ``asyncio.timeout`` ends when a test says so."""
        loop = asyncio.get_running_loop()
        loop.time = self.monotonic  # type: ignore[method-assign]


async def turns(count: int = 50) -> None:
    """Let every task run until it waits for something that is not another task."""
    for _ in range(count):
        await asyncio.sleep(0)


class InlineExecutor(Executor):
    """Runs what is submitted before ``submit`` returns: a writer thread that is never late."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever asks the future
            done.set_exception(error)
        return done


class MemoryFile:
    """``core.identity.Readable`` over bytes that a test may append to, or cut."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = bytearray(content)
        self.closed = False

    def pread(self, length: int, offset: int) -> bytes:
        assert not self.closed, "read after close"
        return bytes(self.content[offset : offset + length])

    def size(self) -> int:
        return len(self.content)

    def links(self) -> int:
        return 1

    def disk_bytes(self) -> int:
        return len(self.content)

    def beyond_hole(self, offset: int) -> int:
        return offset

    def close(self) -> None:
        self.closed = True

    def append(self, written: bytes) -> None:
        self.content += written

    def truncate(self, size: int = 0) -> None:
        del self.content[size:]


def no_deletion(clock: Clock, metrics: Metrics) -> Deletion:
    """Return what deletes nothing, as the agent does by default."""
    remove = Remove(lambda *_: None, lambda *_: False)
    return Deletion(None, (), remove, clock=clock, metrics=metrics)


def unlimited_turns(clock: Clock, metrics: Metrics) -> Turns:
    """Return turns in which no client is over a limit."""
    return Turns(ClientLimits(ClientQuotaPolicy(), None, clock.monotonic), clock, metrics)


def chunks_of(ledger: Ledger, *lengths: int) -> list[Chunk]:
    """Return chunks that tile a file from the ledger's watermark on, not reserved yet."""
    made, at = [], ledger.watermark
    for length in lengths:
        made.append(Chunk(ledger, at, at + length, b"%d" % (at + length), lines=1))
        at += length
    return made


def settle(batch: Batch) -> None:
    """Do what whoever hears of an acknowledgement does."""
    for chunk in batch.chunks:
        chunk.ledger.settle(chunk)


def delivery_of(
    clock: Monotonic,
    *,
    retry: RetryPolicy = RETRY,
    breaker: BreakerPolicy = BREAKER,
    compressed: Codec = PLAIN,
    jitter: Jitter = lambda: 0.5,
    retire_s: float = 10.0,
    bytes_per_s_max: float | None = None,
    absent_s: float = 30.0,
) -> Delivery:
    """Return a delivery machine that connects at once."""
    return Delivery(
        retry,
        Breaker(breaker, clock, jitter),
        split=partial(split, codec=compressed),
        repartition=partial(repartition, partitioner="crc32", codec=compressed, bytes_max=1 << 18),
        retire_s=retire_s,
        bytes_per_s_max=bytes_per_s_max,
        start_s=0.0,
        absent_s=absent_s,
        clock=clock,
        jitter=jitter,
    )


def moved(batches: list[Batch], partitions: int) -> list[Batch]:
    """Repartition without a look at the keys: what was bound for one partition stays together."""
    fresh = [reseal(batch, records(batch), PLAIN) for batch in batches]
    for batch in fresh:
        batch.partition %= partitions
    return fresh


def batch_of(
    *values: bytes,
    partition: int = 0,
    chunks: Iterable[Chunk] = (),
    key: bytes | None = None,
    compressed: Codec = PLAIN,
) -> Batch:
    """Return a sealed batch, a record a value, that holds lines of ``chunks``."""
    builder = Builder(partition, 1 << 20, 0.0)
    for value in values:
        builder.extend([(int(WALL_S * 1000), key, value, [("event_id", value[:16])])])
    for chunk in chunks:
        builder.hold(chunk)
    return builder.seal(compressed)


class FakeTopic(NamedTuple):
    partitions: int
    message_bytes_max: int


class _Failure(NamedTuple):
    reason: str
    appended: bool


class FakeKafka:
    """One topic that outlives the sinks made for it. Acknowledges at once unless told otherwise."""

    def __init__(self, partitions: int = 12, message_bytes_max: int = 1_048_588) -> None:
        self.partitions = partitions
        self.message_bytes_max = message_bytes_max
        self.logs: defaultdict[int, list[Record]] = defaultdict(list)
        self.down: str | None = None  # why nobody can connect
        self.refuses: Callable[[Record], bool] = lambda _: False
        self.living: set[FakeSink] = set()
        self._failures: deque[_Failure] = deque()
        self._held: asyncio.Future[None] | None = None

    async def connect(self) -> "FakeSink":
        await asyncio.sleep(0)
        if self.down is not None:
            raise SinkUnavailable(self.down)
        sink = FakeSink(self, FakeTopic(self.partitions, self.message_bytes_max))
        self.living.add(sink)
        return sink

    def fail(self, *reasons: str, appended: bool = False) -> None:
        """Answer the next sends with ``reasons``; ``appended``: only the answer was lost."""
        self._failures.extend(_Failure(reason, appended) for reason in reasons)

    def hold(self) -> None:
        """Answer nothing from now on."""
        self._held = asyncio.get_running_loop().create_future()

    def release(self) -> None:
        assert self._held is not None, "nothing is held"
        self._held.set_result(None)
        self._held = None

    def values(self, partition: int = 0) -> list[bytes]:
        return [record.value for record in self.logs[partition]]


class FakeSink:
    """``agent.sink.Sink`` in memory, as Kafka does it with an idempotent producer.

    After a batch of a partition has failed every later one from this sink is refused as out of
    sequence; but a partition that knows nothing of this producer takes whatever comes first.
    """

    def __init__(self, kafka: FakeKafka, topic: FakeTopic) -> None:
        self.topic = topic
        self.throttled_s = 0.0
        self.backoff_s = 0.0
        self._kafka = kafka
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._known_to: set[int] = set()
        self._broken: set[int] = set()

    def send(self, batch: Batch) -> asyncio.Future[int]:
        assert not self._gone.done(), "sent after close"
        return asyncio.ensure_future(self._send(batch))

    async def _send(self, batch: Batch) -> int:
        async with self._turns[batch.partition]:
            await asyncio.sleep(0)
            while self._kafka._held is not None and not self._gone.done():
                await asyncio.wait(
                    {self._kafka._held, self._gone}, return_when=asyncio.FIRST_COMPLETED
                )
            if self._gone.done():
                raise SinkUnavailable("kafka_error", "closed")
            return self._append(batch)

    def _append(self, batch: Batch) -> int:
        kafka, partition = self._kafka, batch.partition
        if partition >= kafka.partitions:
            raise SinkUnavailable("topic_changed", f"no partition {partition}")
        if partition in self._broken and partition in self._known_to:
            raise SinkUnavailable("sequence", "out of order")
        failure = kafka._failures.popleft() if kafka._failures else None
        if failure is not None and not failure.appended:
            self._broken.add(partition)
            raise SinkUnavailable(failure.reason)
        arriving = records(batch)
        too_large = HEADER_BYTES + len(batch.payload) > kafka.message_bytes_max
        if too_large or any(map(kafka.refuses, arriving)):
            self._broken.add(partition)
            raise RecordRefused("refused_too_large" if too_large else "refused_invalid")
        kafka_offset = len(kafka.logs[partition])
        kafka.logs[partition] += arriving
        self._known_to.add(partition)
        if failure is not None:
            raise SinkUnavailable(failure.reason)
        return kafka_offset

    def ease(self, backoff_s: float) -> None:
        self.backoff_s = backoff_s

    async def close(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
        await turns(5)  # as the real one it takes its time, and may be cancelled in it
        self._kafka.living.discard(self)
