"""The brokers of a bench: embedded ones, new for each run, or a real Kafka with new topics."""

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import real_kafka
from tests.bench.machine import embedded_broker
from tests.running import mock_topics

PARTITIONS = 12


class Brokers(Protocol):
    """Attributes:
    name: What they are, for the table.
    fetch_wait_ms: How long a fetch that finds nothing may wait.
    polled: Whether it waits to the end of that, whatever comes meanwhile.
    warm_rounds: Before figures count: Java is slow at first.
    """

    name: str
    fetch_wait_ms: int
    polled: bool
    warm_rounds: int

    @contextmanager
    def topics(self) -> Iterator[Topics]:
        """Yield topics that hold nothing yet."""


class Embedded:
    def __init__(self) -> None:
        self.name = embedded_broker()
        self.fetch_wait_ms = 2
        self.polled = True
        self.warm_rounds = 0

    @contextmanager
    def topics(self) -> Iterator[Topics]:
        with EmbeddedKafka() as cluster:
            yield mock_topics(cluster)


class Real:
    def __init__(self, servers: str, version: str) -> None:
        self.name = f"Apache Kafka, {version}"
        self.fetch_wait_ms = 500
        self.polled = False
        self.warm_rounds = 1
        self._servers = servers

    @contextmanager
    def topics(self) -> Iterator[Topics]:
        topics = Topics(self._servers, f"bench-{uuid4().hex}", f"bench-{uuid4().hex}")
        asyncio.run(real_kafka.create_topic(self._servers, topics.events, PARTITIONS))
        asyncio.run(real_kafka.create_topic(self._servers, topics.dead_letters, 1))
        yield topics


@contextmanager
def brokers(work: Path, *, kafka: bool) -> Iterator[Brokers]:
    """Yield embedded brokers; or real ones: those that the environment names, else one of ours."""
    if not kafka:
        yield Embedded()
        return
    servers = os.environ.get(real_kafka.ADDRESS)
    if servers is not None:
        yield Real(servers, f"that of {real_kafka.ADDRESS}")
        return
    run = work / "kafka"
    run.mkdir()
    try:
        yield Real(real_kafka.start(run), _version())
    finally:
        real_kafka.run_script(run, "stop")


def _version() -> str:
    """Return the version that ``scripts/kafka`` starts, and with how many nodes."""
    found = re.search(r'^KAFKA_VERSION = "(.+)"', real_kafka.SCRIPT.read_text(), re.MULTILINE)
    assert found is not None
    return f"{found[1]}, one node"
