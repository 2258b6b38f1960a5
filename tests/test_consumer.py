"""What an operator's commands read of topics: exactly what they ask for, and nothing twice."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from agent.config.sections import Kafka
from agent.consumer import Bounds, Reader, connected
from agent.core.receipts import UNTOLD, Partition, Window
from agent.demo.broker import EmbeddedKafka
from agent.errors import SinkUnavailable
from tests.running import Agent, append, feedback, mock_topics

RECORDS = 3000
READ_ZSTD = """
import sys
sys.modules["cramjam"] = None
from agent.cli import main
main()
"""


@pytest.fixture
async def reader(embedded: EmbeddedKafka) -> AsyncIterator[Reader]:
    """Yield one that looks at a topic of two partitions: one is full, one is empty."""
    embedded.create_topic("t", 2)
    servers = tuple(embedded.bootstrap_servers.split(","))
    producer = AIOKafkaProducer(bootstrap_servers=list(servers))
    await producer.start()
    for number in range(RECORDS):
        await producer.send("t", b"%d" % number, partition=0)
    await producer.stop()
    async with connected(Kafka(bootstrap_servers=servers)) as made:
        await made.look(["t", "absent"])
        yield made


async def offsets(reader: Reader, wanted: dict[Partition, list[Window]]) -> list[int]:
    read = [record.offset async for records in reader.read(wanted) for record in records]
    assert len(read) == reader.count(wanted)
    return read


async def test_it_knows_what_there_is(reader: Reader) -> None:
    assert {("t", 0): Bounds(0, RECORDS), ("t", 1): Bounds(0, 0)} == reader.bounds
    assert ["absent"] == reader.missing


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([UNTOLD], [*range(RECORDS)]),
        ([(0, 9), (100, 101), (2990, 9999)], [*range(10), 100, 101, *range(2990, RECORDS)]),
        ([(RECORDS, RECORDS + 5)], []),
        ([], []),
    ],
)
async def test_windows_are_read_to_the_record(
    reader: Reader, windows: list[Window], expected: list[int]
) -> None:
    """One read twice would be a copy that nobody sent."""
    wanted = {("t", 0): windows, ("t", 1): [UNTOLD], ("absent", 0): [UNTOLD]}
    assert expected == await offsets(reader, wanted)


async def test_brokers_that_go_silent_are_not_waited_for(
    reader: Reader, embedded: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_stall_s", 1.0)
    embedded.broker_down()
    with pytest.raises(SinkUnavailable):
        await offsets(reader, reader.everything())


def test_zstd_needs_no_other_package(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """The agent packs it with what it has; who installed no extra may read it, too."""
    topics = mock_topics(embedded)
    with Agent(tmp_path, topics, kafka={"compression": "zstd"}) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(50)))
        agent.start().until_delivered(50)
        agent.stop()
        command = [sys.executable, "-c", READ_ZSTD, "verify", "--config", str(agent.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr
    assert "50 of 50 lines are in Kafka" in done.stdout
