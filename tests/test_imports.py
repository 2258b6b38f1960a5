"""What the agent has imported when it runs: nothing that its configuration does not ask for."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics, write_config
from tests.running import append, feedback

RUN = """
import atexit, json, pathlib, sys
found = pathlib.Path(sys.argv.pop())
atexit.register(lambda: found.write_text(json.dumps(sorted(sys.modules))))
from agent.cli import main
main()
"""
OPTIONAL = {
    "agent.asking",
    "agent.consumer",
    "agent.demo",
    "agent.letters",
    "agent.offline",
    "agent.operator.backfill",
    "agent.operator.checkpoints",
    "agent.operator.dead_letters",
    "agent.operator.doctor",
    "agent.operator.replay_letters",
    "agent.operator.spool_queues",
    "agent.operator.status",
    "agent.operator.validate",
    "agent.operator.verify",
    "agent.operator.verify_audit",
    "agent.operator.verify_topic",
    "agent.replayed",
    "agent.replaying",
    "agent.writer",
    "aiokafka.admin",
    "backports.zstd",
    "compression.zstd",
    "confluent_kafka",
    "cryptography",
    "deflate",
    "jsonschema_rs",
    "opentelemetry",
    "re2",
    "rich",
}
"""For the demo, for other commands, or for what a key of the configuration asks for. cramjam is not
among them: aiokafka imports it wherever it is installed."""


def test_a_run_by_default_imports_nothing_that_is_optional(tmp_path: Path) -> None:
    """What was imported stays: each of these is memory on every node."""
    root, config, found = (tmp_path / name for name in ("feedback", "config.yaml", "found"))
    append(root / "acme/a.jsonl", [feedback(1)])
    with EmbeddedKafka(1) as kafka:
        topics = Topics(kafka.bootstrap_servers, "feedback-events", "feedback-events-dlq")
        kafka.create_topic(topics.events, 1, 1)
        kafka.create_topic(topics.dead_letters, 1, 1)
        write_config(config, root, tmp_path / "state", topics)
        command = [sys.executable, "-c", RUN, "run", "--config", str(config), str(found)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as agent:
            assert agent.stdout is not None
            for line in agent.stdout:
                if "sink.up" in line:
                    os.kill(agent.pid, signal.SIGTERM)
                    break
            said, _ = agent.communicate(timeout=60)
    assert 0 == agent.returncode, said
    imported = set(json.loads(found.read_text()))
    assert {"agent.chunk", "aiokafka"} <= imported
    assert set() == OPTIONAL & imported
