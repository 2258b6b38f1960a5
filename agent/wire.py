"""Kafka's record batch, magic 2, as bytes: filled, compressed, cut in two, and stamped.

Records come with their bodies encoded (``core.body``); here each gets its place, and all together
are compressed. aiokafka's own builder costs half as much again for each record, and runs gzip at
level 9 on the event loop, at 25 times the cost of isal's level 1. A sealed batch keeps the
compressed records section only; the 61 bytes before it carry the producer's identity and sequence
and are written when a producer takes the batch, as often as that happens.

Format: https://kafka.apache.org/documentation/#recordbatch
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import accumulate, chain, repeat
from typing import NamedTuple, TypeVar

from aiokafka.record._crecords.cutil import crc32c_cython
from aiokafka.record.default_records import DefaultRecordBatch

from agent import codecs
from agent.core.batch import Batch
from agent.core.body import Headers, body, header, varint, varints, with_header
from agent.core.ledger import Chunk
from agent.core.tracing import BatchSpan

Codec = codecs.Codec
codec = codecs.codec
T = TypeVar("T")

_HEADER = struct.Struct(">qiibIhiqqqhii")
_ATTRIBUTES_AT = struct.calcsize(">qiibI")
_CRC_AT = struct.calcsize(">qiib")
_LENGTH_COUNTS_FROM = struct.calcsize(">qi")
_MAGIC = 2

HEADER_BYTES = _HEADER.size
TRACEPARENT = "traceparent"
"""A header that is the last one of its record, as ``core.record`` and ``rejects`` make them."""
_TRACED = header(TRACEPARENT, b"?" * 55)[:-55]
"""What such a header begins with; a trace context has 55 characters."""


PlainRecord = tuple[int, bytes | None, bytes, Headers]
"""A ``Record`` as most rooms make it: a named one costs as much as its headers."""


class Run(NamedTuple):
    """Records of one create time, in order: the key of each, and its body (``core.body``)."""

    at_ms: int
    keys: list[bytes | None]
    bodies: list[bytes]


def runs(records: Iterable[PlainRecord]) -> list[Run]:
    """Return ``records`` in order, those that follow each other at one time together."""
    found: list[Run] = []
    for at_ms, key, value, headers in records:
        append(found, Run(at_ms, [key], [body(key, value, headers)]))
    return found


def append(whole: list[Run], run: Run) -> None:
    """Put ``run`` behind the others, which may grow by it."""
    if whole and whole[-1].at_ms == run.at_ms:
        whole[-1].keys.extend(run.keys)
        whole[-1].bodies.extend(run.bodies)
    else:
        whole.append(run)


class Record(NamedTuple):
    """One Kafka record. ``timestamp_ms`` is its create time."""

    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: Headers


class Builder:
    """An open batch of one partition: records are appended until it is full, then sealed.

    With a ``span``, records that have no ``traceparent`` get that of the span; but for those of
    which it could make the one that a topic does not take.
    """

    __slots__ = (
        "_first_ms", "_max_ms", "_parts", "_room", "_traced_bytes_max", "chunks", "count",
        "opened_at_s", "partition", "span",
    )  # fmt: skip

    def __init__(
        self, partition: int, bytes_max: int, opened_at_s: float, span: BatchSpan | None = None
    ) -> None:
        self.partition = partition
        self.opened_at_s = opened_at_s
        self.count = 0
        self.chunks: list[Chunk] = []
        self.span = span
        self._traced_bytes_max = bytes_max // 4
        self._room = bytes_max - HEADER_BYTES
        self._parts: list[bytes] = []
        self._first_ms = self._max_ms = 0

    def extend(self, records: Iterable[PlainRecord]) -> bool:
        """Take records in order, until one is too many; False if one was. ``count`` tells which.

        The first record is always taken, whatever its size: see the length of ``Batch.payload``.
        """
        return all(self.take(at_ms, made) == len(made) for at_ms, _, made in runs(records))

    def take(self, at_ms: int, bodies: Sequence[bytes]) -> int:
        """Take records in order, until one is too many; return how many were taken.

        The first one of a batch is, as by ``extend``.
        """
        if not self.count:
            self._first_ms = self._max_ms = at_ms
        if self.span is not None:
            bodies = self._traced(bodies, self.span)
        start = b"\0" + varint(at_ms - self._first_ms)  # attributes, then the time
        offsets = varints(range(self.count, self.count + len(bodies)))
        before = len(start)
        lengths = [
            before + len(offset) + len(made) for offset, made in zip(offsets, bodies, strict=True)
        ]
        sizes = varints(lengths)
        taken = self._fitting(lengths, sizes)
        if taken:
            records = zip(sizes[:taken], repeat(start), offsets, bodies, strict=False)
            self._parts += chain.from_iterable(records)
            self.count += taken
            self._max_ms = max(self._max_ms, at_ms)
        return taken

    def _fitting(self, lengths: list[int], sizes: list[bytes]) -> int:
        """Return how many of these records there is room for, and take it up."""
        whole, taken = sum(lengths) + sum(map(len, sizes)), len(lengths)
        if whole > self._room:
            ends = [*accumulate(a + len(size) for a, size in zip(lengths, sizes, strict=True))]
            taken = bisect_right(ends, self._room)
            if not taken and not self.count:
                taken = 1
            whole = ends[taken - 1] if taken else 0
        self._room -= whole
        return taken

    def hold(self, chunk: Chunk) -> None:
        """Note that a line of ``chunk`` is in here, so that it is settled with this batch."""
        if not self.chunks or self.chunks[-1] is not chunk:
            self.chunks.append(chunk)
            chunk.open_batches += 1

    def _traced(self, bodies: Sequence[bytes], span: BatchSpan) -> list[bytes]:
        own, bytes_max = header(TRACEPARENT, span.context.traceparent), self._traced_bytes_max
        return [with_header(made, own, _TRACED, bytes_max) for made in bodies]

    def seal(self, codec: Codec) -> Batch:
        """Compress what was appended. The builder must not be used afterwards."""
        assert self.count, "an empty batch would settle nothing"
        section = b"".join(self._parts)
        self._parts.clear()
        payload = codec.compress(section)
        if self.span is not None:
            self.span.built(self.count, len(payload), len(section))
        return Batch(
            partition=self.partition,
            count=self.count,
            payload=payload,
            codec=codec.number,
            first_ms=self._first_ms,
            max_ms=self._max_ms,
            raw_bytes=len(section),
            opened_at_s=self.opened_at_s,
            chunks=self.chunks,
            span=self.span,
        )


def stamp(batch: Batch, producer_id: int, producer_epoch: int, base_sequence: int) -> bytearray:
    """Return the whole record batch as it goes on the wire for one producer's life."""
    buffer = bytearray(HEADER_BYTES + len(batch.payload))
    _HEADER.pack_into(
        buffer,
        0,
        0,  # base offset: the broker's to give
        len(buffer) - _LENGTH_COUNTS_FROM,
        -1,  # partition leader epoch
        _MAGIC,
        0,  # CRC, below
        batch.codec,
        batch.count - 1,
        batch.first_ms,
        batch.max_ms,
        producer_id,
        producer_epoch,
        base_sequence,
        batch.count,
    )
    buffer[HEADER_BYTES:] = batch.payload
    crc = crc32c_cython(memoryview(buffer)[_ATTRIBUTES_AT:])
    struct.pack_into(">I", buffer, _CRC_AT, crc)
    return buffer


def records(batch: Batch) -> list[Record]:
    """Decode a sealed batch again: to cut it, or to move its records elsewhere."""
    plain = copy(batch)
    plain.payload, plain.codec = codecs.decompress(batch.codec, batch.payload), 0
    return [
        Record(record.timestamp, record.key, record.value or b"", _headers(record.headers))
        for record in DefaultRecordBatch(bytes(stamp(plain, -1, -1, -1)))
    ]


def in_file_order(chosen: Iterable[tuple[T, Record]]) -> list[tuple[T, Record]]:
    """Sort records, each with what belongs to it, as their lines stand in their files."""
    return sorted(chosen, key=lambda entry: _place(entry[1]))


def _place(record: Record) -> tuple[bytes, int, int]:
    source = dict(record.headers).get("source", b"")
    _, source_id, generation, start, *_ = (*source.split(b";"), b"0", b"0", b"0", b"0")
    return source_id, int(generation or 0), int(start or 0)


def repartition(
    batches: Iterable[Batch],
    partition_of: Callable[[bytes | None, int], int],
    codec: Codec,
    bytes_max: int,
) -> list[Batch]:
    """Seal the records of ``batches`` anew, in file order, for partitions that are not theirs.

    ``partition_of`` is asked with a record's key and its partition so far. The batches hold no
    chunks: which lines they settle is for the caller to say.
    """
    fresh: dict[int, Builder] = {}
    sealed: list[Batch] = []
    records_of = ((batch, record) for batch in batches for record in records(batch))
    for batch, record in in_file_order(records_of):
        partition = partition_of(record.key, batch.partition)
        builder = fresh.get(partition)
        if builder is None or not builder.extend((record,)):
            if builder is not None:
                sealed.append(builder.seal(codec))
            builder = fresh[partition] = Builder(partition, bytes_max, batch.opened_at_s)
            builder.extend((record,))
    return sealed + [builder.seal(codec) for builder in fresh.values()]


def split(batch: Batch, codec: Codec) -> tuple[Batch, Batch]:
    """Cut a batch of at least two records in two, in order. Both halves keep all its chunks.

    The caller counts: every chunk is in one batch more than before.
    """
    assert batch.count > 1, "a single record cannot be cut"
    whole = records(batch)
    half = batch.count // 2
    halves = reseal(batch, whole[:half], codec), reseal(batch, whole[half:], codec)
    span, batch.span = batch.span, None
    if span is not None:
        span.cut()
        for part in halves:
            part.span = span
    return halves


def reseal(batch: Batch, chosen: list[Record], codec: Codec) -> Batch:
    """Seal ``chosen`` in place of ``batch``: same partition, same chunks, not counted anew."""
    builder = Builder(batch.partition, 1 << 30, batch.opened_at_s)
    builder.extend(chosen)
    sealed = builder.seal(codec)
    sealed.chunks = list(batch.chunks)
    return sealed


def _headers(raw: list[tuple[str, bytes | None]]) -> Headers:
    return [(name, value or b"") for name, value in raw]
