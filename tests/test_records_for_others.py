"""What a consumer of another kind (kcat) finds in the topic is what the events' contract says."""

import asyncio
import json
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Message, Producer

from agent import __version__
from agent.demo.scene import Topics
from tests import conftest, real_kafka
from tests.patience import WITHIN_S
from tests.running import Agent, append, event_id, feedback, source_of

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is missing (Debian: kcat)"),
]

PARTITIONS = 12
UNIT, RECORD = "\x1f", "\x1e"
LINES = [
    feedback(0, comment="Sehr hilfreich, über alles. 🙏\r\nThank you!", tags=["a", "b"]),
    feedback(1, event_id="ABCDEF00-0000-4000-8000-00000000ABCD"),
    feedback(2, schema_version="2.1", unknown={"kept": True}),
    feedback(3, metadata={"client": "somebody else", "seq": 3}),
    b'{"type":"performance_metrics","model_id":"m","latency_ms":1.5,"tokens_total":7}',
    b'{"type":"model_response","model_id":"m","timestamp":"2001-02-03t04:05:06.789z"}',
    b'{"type":"system_health","service_name":"s","status":"healthy"}',
    b'{"type":"experiment_result","experiment_id":"%b","variant_id":"v",'
    b'"timestamp":"2999-01-01T00:00:00Z"}' % event_id(9).encode(),
    *map(feedback, range(10, 100)),
]


class Read(NamedTuple):
    """A record as kcat prints it; ``key`` is None where it has none."""

    partition: int
    offset: int
    timestamp_ms: int
    key: str | None
    headers: list[tuple[str, str]]
    value: dict[str, Any]

    @property
    def header(self) -> dict[str, str]:
        return dict(self.headers)


@pytest.fixture
async def real(kafka: str, topics: conftest.Topics) -> Topics:
    return Topics(kafka, await topics(partitions=PARTITIONS), await topics(partitions=1))


def kcat(topics: Topics) -> list[Read]:
    """Read ``topics.events`` to its end."""
    form = UNIT.join(("%p", "%o", "%T", "%K", "%k", "%h", "%s")) + RECORD
    command = ["kcat", "-C", "-q", "-e", "-b", topics.bootstrap_servers, "-t", topics.events]
    command += ["-o", "beginning", "-X", "check.crcs=true", "-f", form]
    done = subprocess.run(command, capture_output=True, timeout=WITHIN_S, check=True)
    read = []
    for record in done.stdout.decode().removesuffix(RECORD).split(RECORD):
        partition, offset, at_ms, length, key, headers, value = record.split(UNIT)
        pairs = [header.partition("=")[::2] for header in headers.split(",")]
        known = None if length == "-1" else key
        read.append(Read(int(partition), int(offset), int(at_ms), known, pairs, json.loads(value)))
    return sorted(read, key=lambda r: int(r.header["source"].split(";")[3]))


def shipped(work: Path, topics: Topics, kafka: Mapping[str, object]) -> tuple[list[Read], str]:
    """Let an agent deliver ``LINES``. Return them as kcat reads them, in file order, and the id of
    their source."""
    with Agent(work, topics, kafka=kafka) as agent:
        path = agent.root / "acme/web/a.jsonl"
        append(path, LINES)
        agent.start()
        agent.until_delivered(len(LINES))
        assert 0 == agent.stop()
        read = kcat(topics)
        assert len(LINES) == len(read)
        return read, source_of(path)


def test_value_headers_key_and_partition_are_as_the_contract_says(
    real: Topics, tmp_path: Path
) -> None:
    """CRC-32 is computed by zlib here, JSON read by the standard library."""
    before_ms = int(time.time() * 1000)  # noqa: TID251
    read, source = shipped(tmp_path, real, {})

    own = {"collector_id": "demo", "collector_version": __version__, "hostname": "demo"}
    ends = list(accumulate(len(line) + 1 for line in LINES))
    for line, end, record in zip(LINES, ends, read, strict=True):
        written, value, header = json.loads(line), record.value, record.header
        ours = {**written.pop("metadata", {}), **own, "client": "acme"}
        identity = written.pop("event_id", value["event_id"]).lower()
        version = written.pop("schema_version", "1.0")
        timestamp = written.pop("timestamp", value["timestamp"])
        assert {
            **written,
            "metadata": ours,
            "event_id": identity,
            "schema_version": version,
            "timestamp": timestamp,
        } == value
        assert record.key == identity
        assert record.partition == zlib.crc32(identity.encode()) % PARTITIONS
        assert len(header) == len(record.headers), "a header came twice"
        assert header["event_type"] == written["type"]
        assert header["schema_version"] == version
        assert header["source"] == f"1;{source};0;{end - len(line) - 1};{end}"
        assert header.get("timestamp_source") == (None if b"timestamp" in line else "agent")
        assert header.get("timestamp_suspect") == ("1" if b"2999" in line else None)
        assert before_ms <= record.timestamp_ms <= int(time.time() * 1000)  # noqa: TID251
    assert len(LINES) == len({record.key for record in read})


KEYS: dict[str, Callable[[Read], str | None]] = {
    "session_id": lambda record: record.value.get("session_id"),
    "client": lambda record: "acme",
    "none": lambda record: None,
    "model_id": lambda record: record.value.get("model_id"),
}


@pytest.mark.parametrize("name", KEYS)
def test_the_key_is_what_the_configuration_names(real: Topics, tmp_path: Path, name: str) -> None:
    """A record without that field has no key."""
    read, _ = shipped(tmp_path, real, {"key": name})

    assert [KEYS[name](record) for record in read] == [record.key for record in read]
    keyed = [record for record in read if record.key]
    assert all(r.partition == zlib.crc32((r.key or "").encode()) % PARTITIONS for r in keyed)


async def librdkafka_partitions(real: Topics, topic: str, keys: list[str]) -> dict[str, int]:
    """Return where librdkafka's own murmur2 puts ``keys``, by producing them."""
    found: dict[str, int] = {}

    def note(_: object, message: Message) -> None:
        key, partition = message.key(), message.partition()
        assert isinstance(key, bytes)
        assert partition is not None
        found[key.decode()] = partition

    producer = Producer(
        {"bootstrap.servers": real.bootstrap_servers, "partitioner": "murmur2_random"}
    )
    for key in keys:
        producer.produce(topic, key=key, value=b"", on_delivery=note)
    assert 0 == await asyncio.to_thread(producer.flush, WITHIN_S)
    return found


async def test_murmur2_puts_a_key_where_librdkafka_puts_it(
    real: Topics, topics: conftest.Topics, tmp_path: Path
) -> None:
    read, _ = await asyncio.to_thread(shipped, tmp_path, real, {"partitioner": "murmur2"})

    keys = [record.key or "" for record in read]
    theirs = await librdkafka_partitions(real, await topics(partitions=PARTITIONS), keys)
    assert theirs == {record.key: record.partition for record in read}
    assert len(set(theirs.values())) > PARTITIONS // 2


def test_sticky_fills_one_partition_after_the_other(real: Topics, tmp_path: Path) -> None:
    """A batch goes to one partition, whatever the keys; the next one to another."""
    read, _ = shipped(tmp_path, real, {"partitioner": "sticky"})

    assert all(record.key for record in read)
    turns = [b.partition for a, b in pairwise(read) if a.partition != b.partition]
    assert len(turns) < 8, turns


def test_event_time_is_the_records_time_where_it_is_trusted(real: Topics, tmp_path: Path) -> None:
    """Not that of a line without one, nor of one far ahead: its segment would never be deleted."""
    before_ms = int(time.time() * 1000)  # noqa: TID251
    read, _ = shipped(tmp_path, real, {"timestamp": "event"})

    assert 1_767_225_600_000 == read[0].timestamp_ms  # 2026-01-01
    assert 981_173_106_789 == read[5].timestamp_ms  # 2001-02-03T04:05:06.789
    assert before_ms <= read[4].timestamp_ms
    assert before_ms <= read[7].timestamp_ms <= int(time.time() * 1000)  # noqa: TID251


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_a_consumer_reads_what_was_compressed_or_not(
    real: Topics, tmp_path: Path, compression: str
) -> None:
    read, _ = shipped(tmp_path, real, {"compression": compression})

    assert [record.value["type"] for record in read] == [json.loads(ln)["type"] for ln in LINES]


@pytest.mark.parametrize(
    "compression",
    ["gzip", *(pytest.param(name, marks=pytest.mark.long) for name in ("snappy", "lz4", "zstd"))],
)
def test_kafkas_own_consumer_reads_each_compression(
    real: Topics, tmp_path: Path, compression: str
) -> None:
    """In Java, whose snappy and lz4 are framed in ways of their own."""
    read, _ = shipped(tmp_path, real, {"compression": compression})

    source = Path(__file__).parent / "ReadTopic.java"
    printed = real_kafka.run_script(
        tmp_path, "java", str(source), real.bootstrap_servers, real.events
    )

    assert 0 == printed.returncode, printed.stderr
    in_java = sorted(json.loads(line)["event_id"] for line in printed.stdout.splitlines())
    assert sorted(record.value["event_id"] for record in read) == in_java
