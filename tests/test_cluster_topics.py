"""What the Job makes: k8s/topics/topics.sh with Kafka's own tools on brokers that know ACLs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __all__ is empty
    AdminClient,
    ConfigResource,
    ResourceType,
)

from tests import real_kafka
from tests.faults.cluster import GUARDED

ROOT = Path(__file__).parent.parent
VERSION = "4.1.1"  # as the Job's image
CLASSES = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-configs.sh": "kafka.admin.ConfigCommand",
    "kafka-acls.sh": "org.apache.kafka.tools.AclCommand",
}
EVENTS, DEAD_LETTERS, AUDIT = "feedback-events", "feedback-events-dlq", "feedback-agent-audit"
WEEK_MS = 7 * 24 * 3600 * 1000
KEPT_MS = {EVENTS: WEEK_MS, DEAD_LETTERS: 4 * WEEK_MS, AUDIT: 52 * WEEK_MS}

pytestmark = [pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(900)]


def tools(work: Path) -> Path:
    """Return a directory with Kafka's scripts, as its image has them in /opt/kafka/bin."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedback-agent"
    jars = cache / f"kafka-tools-{VERSION}"
    if not jars.is_dir():
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime"]
        where = [f"-Dkafka.version={VERSION}", f"-DoutputDirectory={work}/jars"]
        pom = ROOT / "scripts/kafka.d/tools.xml"
        subprocess.run(["mvn", "-q", "-B", "-f", pom, *goal, *where], check=True, timeout=600)
        shutil.move(work / "jars", jars)
    for script, java in CLASSES.items():
        path = work / script
        options = "-Xmx128m -Dorg.slf4j.simpleLogger.defaultLogLevel=error"
        classes = f"{cache}/kafka-{VERSION}/*:{jars}/*"
        path.write_text(f"#!/bin/sh\nexec java {options} -cp '{classes}' {java} \"$@\"\n")
        path.chmod(0o755)
    return work


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if lacking := real_kafka.missing():
        pytest.skip(f"no real Kafka: {' and '.join(lacking)} missing")
    run = tmp_path_factory.mktemp("three")
    try:
        # without it the controllers do not let one another in
        yield real_kafka.start(run, "--nodes=3", *GUARDED, "--set=super.users=User:ANONYMOUS")
    finally:
        real_kafka.run_script(run, "stop").check_returncode()


@pytest.fixture(scope="module")
def made(three: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run it twice: the second time it finds all there, one setting changed by somebody."""
    work = tmp_path_factory.mktemp("tools")
    environment = {
        **os.environ,
        "KAFKA_BIN": str(tools(work)),
        "BOOTSTRAP_SERVERS": three,
        "PRINCIPALS": "User:CN=node-1 User:CN=node-2",
        "AUDIT_TOPIC": AUDIT,
        "ADMIN_PROPERTIES": str(work / "none"),
    }
    command = ["sh", str(ROOT / "k8s/topics/topics.sh")]
    said = ""
    for _ in range(2):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=400
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        said = done.stdout
    return said


def test_each_topic_has_twelve_partitions_three_times_and_is_never_compacted(
    three: str, made: str
) -> None:
    """Two events may have one key, and both count."""
    admin = AdminClient({"bootstrap.servers": three})
    found = admin.list_topics(timeout=10).topics
    for name, kept_ms in KEPT_MS.items():
        partitions = found[name].partitions.values()
        assert [3] * 12 == [len(partition.replicas) for partition in partitions]
        resource = ConfigResource(ResourceType.TOPIC, name)
        configs = admin.describe_configs([resource])[resource].result(10)
        values = {key: configs[key].value for key in ("cleanup.policy", "min.insync.replicas")}
        assert {"cleanup.policy": "delete", "min.insync.replicas": "2"} == values
        assert str(kept_ms) == configs["retention.ms"].value
        assert "false" == configs["unclean.leader.election.enable"].value


def test_principals_may_describe_and_write_and_nothing_else(made: str) -> None:
    """That they are enough for the agent, tests/test_security.py shows."""
    rules = {line.strip() for line in made.splitlines() if "principal=" in line}
    assert rules
    for name in ("User:CN=node-1", "User:CN=node-2"):
        of_it = [rule for rule in rules if f"principal={name}," in rule]
        assert {"DESCRIBE", "WRITE"} == {
            rule.partition("operation=")[2].partition(",")[0] for rule in of_it
        }
