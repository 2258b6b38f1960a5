"""A real Apache Kafka for tests: start and stop it, make topics, read back what arrived."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.patience import WITHIN_S

SCRIPT = Path(__file__).parent.parent / "scripts" / "kafka"
ADDRESS = "FEEDBACK_AGENT_TEST_KAFKA"
START_WITHIN_S = 600.0  # the first start ever downloads Kafka


def missing() -> list[str]:
    """Return the programs that ``scripts/kafka`` needs and this machine lacks."""
    return [program for program in ("java", "mvn") if shutil.which(program) is None]


def run_script(
    run: Path, *arguments: str, java_options: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``scripts/kafka`` on the cluster in ``run``. ``java_options``: of what it starts."""
    environment = {**os.environ, "FEEDBACK_AGENT_KAFKA_RUN": str(run)}
    if java_options:
        environment["JDK_JAVA_OPTIONS"] = java_options
    return subprocess.run(
        [SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=START_WITHIN_S,
        check=False,
    )


def start(run: Path, *arguments: str) -> str:
    """Start a cluster in ``run``, or find it running. Return its bootstrap servers.

    It keeps records for ever: tests send some of years ago, which a broker drops when it looks.
    """
    done = run_script(run, "start", "--set", "log.retention.ms=-1", *arguments)
    assert 0 == done.returncode, done.stderr
    name, _, servers = done.stdout.splitlines()[-1].partition("=")
    assert ADDRESS == name, done.stdout
    return servers


async def create_topic(
    bootstrap: str,
    name: str,
    partitions: int,
    replication: int = 1,
    configs: Mapping[str, str] | None = None,
) -> None:
    """Create ``name`` and wait until every partition has a leader."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        topic = NewTopic(name, partitions, replication, topic_configs=dict(configs or {}))
        answer = await admin.create_topics([topic])
        code, text = answer.topic_errors[0][1:3]
        assert 0 == code, f"{name}: error {code}: {text}"
        async with asyncio.timeout(WITHIN_S):
            while not await _has_leaders(admin, name, partitions):  # noqa: ASYNC110  # Kafka tells nobody
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def _has_leaders(admin: AIOKafkaAdminClient, name: str, partitions: int) -> bool:
    (topic,) = await admin.describe_topics([name])
    led = [p for p in topic["partitions"] if p["error_code"] == 0 and p["leader"] >= 0]
    return len(led) == partitions


async def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    """Return the next offset of every partition of ``topic``."""
    async with _reader(bootstrap, topic) as (_, ends):
        return {tp.partition: end for tp, end in ends.items()}


async def read_all(
    bootstrap: str, topic: str, *, idle_s: float = 1.0, timeout_s: float = WITHIN_S
) -> list[ConsumerRecord]:
    """Return what ``topic`` holds at the time of the call, by partition, then offset.

    ``idle_s`` is how long one fetch may wait. Raises ``TimeoutError`` where the ends known at
    the call are not reached within ``timeout_s``, and ``LookupError`` where there is no such
    topic: reading creates none.
    """
    records: list[ConsumerRecord] = []
    async with _reader(bootstrap, topic) as (consumer, ends), asyncio.timeout(timeout_s):
        behind = [tp for tp, end in ends.items() if end > 0]
        while behind:
            fetched = await consumer.getmany(*behind, timeout_ms=int(idle_s * 1000))
            for tp, batch in fetched.items():
                records += [record for record in batch if record.offset < ends[tp]]
            # the position, not the last record: a transaction's marker takes an offset too
            behind = [tp for tp in behind if await consumer.position(tp) < ends[tp]]
    return sorted(records, key=lambda record: (record.partition, record.offset))


@asynccontextmanager
async def _reader(
    bootstrap: str, topic: str
) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    """Yield a consumer at the beginning of every partition, and where the partitions end."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        # All topics: one asked for by name would be created.
        partitions = (await consumer._client.fetch_all_metadata()).partitions_for_topic(topic)
        if not partitions:
            raise LookupError(f"no topic {topic}")
        assigned = [TopicPartition(topic, number) for number in sorted(partitions)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        await consumer.seek_to_beginning(*assigned)
        yield consumer, ends
    finally:
        await consumer.stop()
