"""Brokers for tests. One real Kafka serves the whole session, all of xdist's workers included."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from agent.demo.broker import EmbeddedKafka
from tests import real_kafka, secured_kafka
from tests.examples import EXAMPLES

RUN = pytest.StashKey[Path]()
SECURED = "secured"


# How long an example takes says more of the machine than of the code: no test fails for that.
settings.register_profile(
    "feedback-agent",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    max_examples=EXAMPLES,
)
settings.load_profile("feedback-agent")


class Topics(Protocol):
    async def __call__(self, partitions: int = 12, replication: int = 1, **configs: object) -> str:
        """Create a topic; return its name. ``max_message_bytes=1`` sets ``max.message.bytes``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kills")
    group.addoption("--kills", type=int, default=20, metavar="N", help="How often to kill.")
    group.addoption("--kills-seed", type=int, metavar="SEED", help="Repeat the run of that seed.")


def pytest_configure(config: pytest.Config) -> None:
    """Name one directory for the session's Kafka: the controller does, workers are told."""
    of_controller = getattr(config, "workerinput", {}).get("kafka_run")
    config.stash[RUN] = Path(of_controller or tempfile.mkdtemp(prefix="feedback-agent-kafka-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist's WorkerController
    node.workerinput["kafka_run"] = str(node.config.stash[RUN])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop Kafka where it was started for this session; every worker is done by now."""
    run = config.stash.get(RUN, None)
    if run is None or hasattr(config, "workerinput"):
        return
    for cluster in (run, run / SECURED):
        if (cluster / "cluster.json").exists():
            real_kafka.run_script(cluster, "stop").check_returncode()
    shutil.rmtree(run)


def pytest_terminal_summary(terminalreporter: Any) -> None:  # TerminalReporter
    """Print the figures that tests took with ``record_property``, those of xdist's workers too."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """Bootstrap servers of a real Apache Kafka, one node; mark its tests ``kafka``.

    FEEDBACK_AGENT_TEST_KAFKA names one that runs already. Otherwise the first test that asks
    starts it, and the others find it running.
    """
    given = os.environ.get(real_kafka.ADDRESS)
    if given:
        return given
    if lacking := real_kafka.missing():
        pytest.skip(f"no real Kafka: {' and '.join(lacking)} missing")
    return real_kafka.start(request.config.stash[RUN])


@pytest.fixture(scope="session")
def secured(request: pytest.FixtureRequest) -> secured_kafka.Secured:
    """A real Apache Kafka with TLS, SASL and ACLs; mark its tests ``kafka``."""
    if lacking := real_kafka.missing():
        pytest.skip(f"no real Kafka: {' and '.join(lacking)} missing")
    return secured_kafka.start(request.config.stash[RUN] / SECURED)


@pytest.fixture
def topics(kafka: str) -> Topics:
    """Make topics of a new name on the real Kafka."""

    async def create(partitions: int = 12, replication: int = 1, **configs: object) -> str:
        name = f"test-{uuid4().hex}"  # not `random`: seeded alike, two workers draw the same
        dotted = {key.replace("_", "."): str(value) for key, value in configs.items()}
        await real_kafka.create_topic(kafka, name, partitions, replication, dotted)
        return name

    return create


@pytest.fixture
def embedded() -> Iterator[EmbeddedKafka]:
    """The embedded broker, three nodes, for one test."""
    with EmbeddedKafka() as cluster:
        yield cluster
