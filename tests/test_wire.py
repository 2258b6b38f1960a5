"""Record batches as bytes: what a consumer decodes is what was appended, whoever sends it."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from hashlib import blake2b

import msgspec
import pytest
from aiokafka.record import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from agent import wire
from agent.builders import Builders, Stream
from agent.chunk import Chunker, ChunkPolicy
from agent.core.batch import Batch, Pace
from agent.core.ledger import Ledger
from agent.core.policy import BatchPolicy, SchemaPolicy
from agent.core.record import RecordPolicy
from agent.core.redact import Redaction
from agent.telemetry import Metrics
from agent.wire import Builder, Codec, Record, codec
from tests.fakes import WALL_S, FakeClock, FakeTopic, chunks_of

GZIP, PLAIN = codec("gzip", None), codec("none", None)
NAMES = ("none", "gzip", "snappy", "lz4", "zstd")
CODECS = st.sampled_from(
    [*(codec(name, None) for name in NAMES), codec("gzip", 0), codec("gzip", 9)]
)

HEADERS = st.lists(st.tuples(st.text(max_size=8), st.binary(max_size=8)), max_size=4)
RECORD = st.builds(
    Record,
    timestamp_ms=st.integers(0, 1 << 45),
    key=st.none() | st.binary(max_size=20),
    value=st.binary(max_size=100),
    headers=HEADERS,
)
RECORDS = st.lists(RECORD, min_size=1, max_size=30)


def sealed(records: list[Record], compressed: Codec = PLAIN, partition: int = 3) -> Batch:
    builder = Builder(partition, 1 << 20, 7.5)
    assert builder.extend(records)
    return builder.seal(compressed)


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, from the polynomial (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_a_stamped_batch_is_kafkas_format_byte_by_byte() -> None:
    """Field for field from kafka.apache.org/documentation/#recordbatch."""
    batch = sealed([Record(1000, b"k", b"value", [("h", b"x")]), Record(1005, None, b"", [])])

    got = bytes(wire.stamp(batch, producer_id=0x0102030405060708, producer_epoch=9,
                           base_sequence=0x0A0B0C0D))  # fmt: skip

    first = bytes.fromhex("000000") + b"\x02k" + b"\x0avalue" + b"\x02" + b"\x02h\x02x"
    second = bytes.fromhex("000a02") + b"\x01" + b"\x00" + b"\x00"
    section = bytes([2 * len(first)]) + first + bytes([2 * len(second)]) + second
    counted = (
        bytes.fromhex("0000")  # attributes: no compression, create time
        + bytes.fromhex("00000001")  # last offset delta
        + bytes.fromhex("00000000000003e8")  # base timestamp
        + bytes.fromhex("00000000000003ed")  # max timestamp
        + bytes.fromhex("0102030405060708")  # producer id
        + bytes.fromhex("0009")  # producer epoch
        + bytes.fromhex("0a0b0c0d")  # base sequence
        + bytes.fromhex("00000002")  # records
        + section
    )
    length = 4 + 1 + 4 + len(counted)  # everything after the length itself
    assert got == (
        bytes.fromhex("0000000000000000")  # base offset
        + struct.pack(">i", length)
        + bytes.fromhex("ffffffff")  # partition leader epoch
        + b"\x02"  # magic
        + struct.pack(">I", crc32c(counted))
        + counted
    )


@given(RECORDS, CODECS, st.integers(0, 1 << 62), st.integers(0, 1 << 14), st.integers(0, 1 << 30))
def test_a_consumer_reads_what_was_appended(
    records: list[Record], compressed: Codec, producer_id: int, epoch: int, sequence: int
) -> None:
    batch = sealed(records, compressed)

    memory = MemoryRecords(bytes(wire.stamp(batch, producer_id, epoch, sequence)))
    read = memory.next_batch()

    assert read.validate_crc()
    assert not memory.has_next()
    assert (producer_id, epoch, sequence) == (
        read.producer_id,
        read.producer_epoch,
        read.base_sequence,
    )
    got = [Record(r.timestamp, r.key, r.value, list(r.headers)) for r in read]
    assert records == got
    assert (len(records), records[0].timestamp_ms, max(r.timestamp_ms for r in records)) == (
        batch.count,
        batch.first_ms,
        batch.max_ms,
    )


@given(RECORDS, CODECS)
def test_a_sealed_batch_decodes_to_its_records(records: list[Record], compressed: Codec) -> None:
    assert records == wire.records(sealed(records, compressed))


def test_stamping_for_another_producer_changes_nothing_else() -> None:
    """A batch goes again after a retirement without being built again."""
    batch = sealed([Record(1, b"k", b"v", [])], GZIP)

    first, again = wire.stamp(batch, 1, 0, 5), wire.stamp(batch, 2, 3, 0)

    assert first[wire.HEADER_BYTES :] == again[wire.HEADER_BYTES :] == batch.payload
    assert wire.stamp(batch, 1, 0, 5) == first


@pytest.mark.parametrize("level", [None, *range(10)])
def test_every_gzip_level_is_readable_by_zlib(level: int | None) -> None:
    records = [Record(1, b"key", b"abc" * 1000, [("event_id", b"1" * 16)])] * 20
    section = sealed(records).payload

    batch = sealed(records, codec("gzip", level))

    assert 1 == batch.codec
    assert section == zlib.decompress(batch.payload, wbits=31)
    assert len(section) == batch.raw_bytes
    assert level == 0 or len(batch.payload) < len(section) / 4
    assert records == wire.records(batch)


def test_gzip_carries_no_time_of_its_own() -> None:
    """The same records are the same bytes, whenever they were sealed."""
    assert b"\0\0\0\0" == sealed([Record(1, None, b"v", [])], GZIP).payload[4:8]
    assert b"\0\0\0\0" == sealed([Record(1, None, b"v", [])], codec("gzip", 9)).payload[4:8]


def test_without_compression_the_section_is_the_payload() -> None:
    batch = sealed([Record(1, b"k", b"value", [])])

    assert 0 == batch.codec
    assert batch.raw_bytes == len(batch.payload)
    assert b"value" in batch.payload


@given(st.lists(RECORD, min_size=2, max_size=30), CODECS)
def test_a_split_keeps_records_and_order(records: list[Record], compressed: Codec) -> None:
    chunks = chunks_of(Ledger(0, b""), 5, 5)
    batch = sealed(records, compressed)
    batch.chunks = chunks

    first, second = wire.split(batch, compressed)

    assert records == wire.records(first) + wire.records(second)
    assert 0 <= second.count - first.count <= 1
    for half in (first, second):
        assert (3, 7.5, chunks) == (half.partition, half.opened_at_s, half.chunks)
        assert half.chunks is not batch.chunks
    assert [0, 0] == [chunk.open_batches for chunk in chunks], "the caller counts"


@given(RECORDS, CODECS)
def test_splitting_until_nothing_is_left_to_split_yields_every_record(
    records: list[Record], compressed: Codec
) -> None:
    left, singles = [sealed(records, compressed)], []
    while left:
        batch = left.pop(0)
        if batch.count == 1:
            singles += wire.records(batch)
        else:
            left[:0] = wire.split(batch, compressed)

    assert records == singles


def test_a_single_record_cannot_be_cut() -> None:
    with pytest.raises(AssertionError, match="a single record cannot be cut"):
        wire.split(sealed([Record(1, None, b"v", [])]), PLAIN)


def test_resealing_takes_the_chosen_records_to_the_same_place() -> None:
    chunks = chunks_of(Ledger(0, b""), 5)
    records = [Record(n, None, b"%d" % n, []) for n in range(4)]
    batch = sealed(records, GZIP)
    batch.chunks = chunks

    chosen = wire.reseal(batch, records[1:3], PLAIN)

    assert records[1:3] == wire.records(chosen)
    assert (3, chunks, 0) == (chosen.partition, chosen.chunks, chosen.codec)
    assert (1, 2) == (chosen.first_ms, chosen.max_ms)
    assert 0 == chunks[0].open_batches


def test_resealing_takes_no_more_memory_than_its_records() -> None:
    """Its bound is a gigabyte, so that every record fits; nothing may be set aside for that."""
    batch = sealed([Record(1, None, b"v", [])] * 2)
    tracemalloc.start()
    try:
        wire.split(batch, PLAIN)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20


def test_a_full_batch_takes_no_more_and_stays_as_it_was() -> None:
    builder = Builder(0, 300, 0.0)
    assert builder.extend([(5, None, b"x" * 150, [])])

    assert not builder.extend([(9, None, b"y" * 150, [])])

    batch = builder.seal(PLAIN)
    assert [Record(5, None, b"x" * 150, [])] == wire.records(batch)
    assert (1, 5) == (batch.count, batch.max_ms)
    assert len(batch.payload) + wire.HEADER_BYTES <= 300


def test_the_first_record_is_taken_whatever_its_size() -> None:
    builder = Builder(0, 300, 0.0)

    assert builder.extend([(5, None, b"x" * 10_000, [])])
    assert not builder.extend([(5, None, b"y", [])])
    assert [b"x" * 10_000] == [record.value for record in wire.records(builder.seal(PLAIN))]


def test_an_empty_batch_is_never_sealed() -> None:
    with pytest.raises(AssertionError, match="settle nothing"):
        Builder(0, 300, 0.0).seal(PLAIN)


def test_a_chunk_is_counted_once_a_batch() -> None:
    first, second = chunks_of(Ledger(0, b""), 5, 5)
    builder, other = Builder(0, 300, 0.0), Builder(1, 300, 0.0)

    for chunk in (first, first, second, second):
        builder.hold(chunk)
    other.hold(first)

    assert (2, 1) == (first.open_batches, second.open_batches)
    assert [first, second] == builder.chunks


def stream_of(topic: Callable[[], FakeTopic | None]) -> Stream:
    kafka, tail = (
        Builders(topic, PLAIN, Pace(BatchPolicy()), bytes_max=1 << 20, partitioner=partitioner)
        for partitioner in ("crc32", "none")
    )
    return Stream(kafka, tail)


def test_a_refused_records_dead_letter_is_of_now() -> None:
    """Its own time may be what was refused, and the dead letters' topic would refuse it too."""
    events, dead_letters = (stream_of(lambda: None) for _ in range(2))
    policy = ChunkPolicy(
        node="n",
        schema=SchemaPolicy(),
        record=RecordPolicy(version="1", hostname="n"),
        line_bytes_max=4096,
        event_time=True,
    )
    chunker = Chunker(
        policy, events, dead_letters, clock=FakeClock(), metrics=Metrics(CollectorRegistry())
    )
    refused = sealed([Record(1, b"key", b"{}", [("source", b"s")])])
    for _ in range(2):  # as an event, and as the dead letter it is then
        refused = chunker.rejects.of_record(refused, "refused_invalid")
        assert [int(WALL_S * 1000)] == [r.timestamp_ms for r in wire.records(refused)]


@pytest.mark.parametrize("hash_key", [b"", b"k" * 16])
def test_a_refused_record_keeps_what_redaction_said_and_its_hash_needs_the_key(
    hash_key: bytes,
) -> None:
    """Without the key anybody could test a guess of the payload against the hash."""
    events, dead_letters = (stream_of(lambda: None) for _ in range(2))
    record = RecordPolicy(version="1", hostname="n")
    policy = ChunkPolicy("n", SchemaPolicy(), record, line_bytes_max=4096, event_time=True)
    chunker = Chunker(
        policy, events, dead_letters, clock=FakeClock(), metrics=Metrics(CollectorRegistry())
    )
    chunker.redact(Redaction(version="2", hash_key=hash_key))
    headers = [("source", b"s"), ("redaction", b"2"), ("cut", b"99"), ("schema_version", b"1")]
    refused = sealed([Record(1, b"key", b"{}", headers)])
    refused = chunker.rejects.of_record(refused, "refused_too_large")
    (first,) = wire.records(refused)
    assert [*headers[:3]] == first.headers[2:]
    (second,) = wire.records(chunker.rejects.of_record(refused, ""))
    said = {"length": 99, "hash": blake2b(b"{}", key=hash_key, digest_size=16).hexdigest()}
    assert said == msgspec.json.decode(second.value)
    assert b"99" == dict(second.headers)["cut"]


def test_a_topic_whose_limit_shrank_gets_what_was_open_to_halve() -> None:
    """Several records are for Kafka to refuse and the outlet to cut; only a single one is cut
    down here."""
    topics: list[FakeTopic | None] = [None]  # the dead letters' topic; not described yet
    events, dead_letters = (stream_of(lambda: topics[0]) for _ in range(2))
    policy = ChunkPolicy(
        node="n",
        schema=SchemaPolicy(),
        record=RecordPolicy(version="1", hostname="n"),
        line_bytes_max=4096,
        event_time=False,
    )
    chunker = Chunker(
        policy, events, dead_letters, clock=FakeClock(), metrics=Metrics(CollectorRegistry())
    )
    (chunk,) = chunks_of(Ledger(0, b""), 10)
    for value in (b"a" * 300, b"b" * 300):
        record = 0, b"key", value, [("reason", b"schema")]
        (run,) = wire.runs([record])
        dead_letters.lines.add(chunk, run, 0.0)
    topics[0] = FakeTopic(partitions=1, message_bytes_max=500)

    sealed_now = chunker.seal_all()

    assert [2] == [batch.count for batch in sealed_now.dead_letters]
