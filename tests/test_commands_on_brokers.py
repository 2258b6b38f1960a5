"""Each command as a person types it, in a process of its own, beside a real Kafka and the embedded
broker: while the agent runs, and after it.

What a command says in each case stands in the tests of that command; those of ``backfill``,
``verify``, ``dlq``, ``doctor`` and ``audit`` go to a real Kafka by themselves.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import real_kafka
from tests.running import Agent, append, event_id, feedback, records
from tests.watched import screen

pytestmark = [pytest.mark.long]

LINES = 30
PATH = "app/x.jsonl"
WITHIN_S = 60.0
SOON = {"start_s": 0.5, "request_timeout_s": 2}


class Broker:
    """Where topics are made, one or the other."""

    def __init__(self, bootstrap: str, embedded: EmbeddedKafka | None) -> None:
        self._bootstrap = bootstrap
        self._embedded = embedded

    def names(self) -> Topics:
        """Return names of topics that nobody has made yet."""
        name = f"test-{uuid4().hex}"
        return Topics(self._bootstrap, name, f"{name}-dlq")

    def make(self, *topics: str) -> None:
        for topic in topics:
            if self._embedded is not None:
                self._embedded.create_topic(topic, 3)
            else:
                asyncio.run(real_kafka.create_topic(self._bootstrap, topic, 3))

    def topics(self) -> Topics:
        made = self.names()
        self.make(made.events, made.dead_letters)
        return made


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=[pytest.mark.kafka])])
def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "kafka":
        return Broker(request.getfixturevalue("kafka"), None)
    cluster: EmbeddedKafka = request.getfixturevalue("embedded")
    return Broker(cluster.bootstrap_servers, cluster)


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


def typed(agent: Agent, *words: str, said: str | None = None, code: int = 0) -> Ended:
    """Type a command, and ``said`` at what it asks."""
    done = subprocess.run(
        [sys.executable, "-m", "agent", *words],
        env={**os.environ, "FEEDBACK_AGENT_CONFIG": str(agent.config)},
        input=said,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert code == ended.code, ended
    assert "Traceback" not in ended.err
    return ended


@pytest.fixture
def agent(tmp_path: Path, broker: Broker) -> Iterator[Agent]:
    with Agent(tmp_path, broker.topics(), http={"port": free_port()}) as made:
        append(made.root / PATH, map(feedback, range(LINES)))
        append(made.root / "app/bad.jsonl", [b"no json"])
        yield made


def free_port() -> int:
    """Return one that nobody listens at: ``status`` asks where the configuration says."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def generations(agent: Agent) -> dict[str, list[int]]:
    """Return the generations in which each event arrived."""
    found: dict[str, list[int]] = {}
    for record in records(agent.topics, agent.topics.events):
        source = dict(record.headers)["source"].split(b";")
        found.setdefault(record.key.decode(), []).append(int(source[2]))
    return {key: sorted(of) for key, of in found.items()}


def test_status_says_how_far_everything_is(agent: Agent) -> None:
    """On one screen, on one that is drawn anew, for scripts; and what is left when it is gone."""
    agent.start()
    agent.until_delivered(LINES, 1)
    size = (agent.root / PATH).stat().st_size
    agent.until(lambda: agent.behind_bytes() == 0, "settled")

    told = json.loads(typed(agent, "status", "--json").out)
    shown = typed(agent, "status").out
    command = ("status", "--watch", "--every", "0.2", "--config", agent.config)
    watched = screen(*command, until="dead_letters")

    assert (True, True) == (told["running"], told["ready"]["ok"])
    assert {PATH: size, "app/bad.jsonl": 8} == {f["path"]: f["watermark"] for f in told["files"]}
    assert ["live", "live"] == [told["sinks"][s]["mode"] for s in ("events", "dead_letters")]
    for text in (shown, watched):
        assert "ready" in text
        assert "closed" in text, "the breaker"
        assert PATH in text
    assert 0 == agent.stop()
    append(agent.root / PATH, [feedback(LINES)])
    left = json.loads(typed(agent, "status", "--json", code=1).out)
    grown = (agent.root / PATH).stat().st_size - size
    assert (False, None) == (left["running"], left["owner"])
    assert [("app", grown)] == [(c["client"], c["lag_bytes"]) for c in left["clients"]]
    assert "no agent answers" in typed(agent, "status", code=1).out


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_a_file_is_explained_and_begins_elsewhere(agent: Agent, running: bool) -> None:
    """``explain``, ``checkpoint list`` and ``reset``: what arrives is what was asked for."""
    agent.start()
    agent.until_delivered(LINES, 1)
    agent.until(lambda: agent.behind_bytes() == 0, "settled")
    size = (agent.root / PATH).stat().st_size
    if not running:
        assert 0 == agent.stop()

    explained = json.loads(typed(agent, "explain", PATH, "--json").out)
    assert (running, "current", size) == (
        explained["running"], explained["state"], explained["checkpoint"]["watermark"]
    )  # fmt: skip
    assert f"{PATH} up to date" in typed(agent, "explain", str(agent.root / PATH)).out
    assert "is gone" in typed(agent, "explain", "app/none.jsonl").out
    rows = typed(agent, "checkpoint", "list", "app/x*", "--json").rows()
    assert [(PATH, 0, size)] == [(r["path"], r["generation"], r["watermark"]) for r in rows]
    assert f"{size:,}" in typed(agent, "checkpoint", "list").out
    reset = "checkpoint", "reset", PATH, "--to"
    assert "nothing to do" in typed(agent, *reset, "end").out
    assert "is within a line" in typed(agent, *reset, "5", code=1).err
    typed(agent, *reset, "start", said="n\n", code=130)
    assert (
        size == json.loads(typed(agent, *reset, "start", "--dry-run", "--json").out)["again_bytes"]
    )

    asked = typed(agent, *reset, "start", said="y\n")

    assert f"{size:,} bytes go again" in asked.out
    if not running:
        agent.start()
    agent.until(lambda: agent.metric("events_delivered_total") >= LINES * (1 + running), "again")
    assert {event_id(n): [0, 1] for n in range(LINES)} == generations(agent)
    agent.until(lambda: len(typed(agent, "checkpoint", "list", "--all", "--json").rows()) == 3, "")
    (note,) = typed(agent, "audit", "show", "--event", "checkpoint").rows()
    assert (PATH, 0, f"uid {os.getuid()}") == (note["path"], note["resume_at"], note["by"])


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_what_waits_is_listed_taken_away_and_sent(
    tmp_path: Path, broker: Broker, running: bool
) -> None:
    """The topics are made after the lines came: a person mends it, and drains."""
    topics = broker.names()
    with Agent(tmp_path, topics, kafka=SOON) as agent:
        append(agent.root / PATH, [*map(feedback, range(LINES)), b"no json"])
        agent.start()
        agent.until(lambda: agent.status()["sinks"]["events"]["spooled_records"] == LINES, "spool")
        agent.until(lambda: agent.behind_bytes() == 0, "settled")
        if not running:
            assert 0 == agent.stop()

        events, dead = typed(agent, "spool", "list", "--json").rows()
        assert ("spooling" if running else "down") == events["mode"]
        assert (LINES, 1) == (events["records"], dead["records"])
        assert f"{LINES}" in typed(agent, "spool", "list").out
        exported = typed(agent, "spool", "export").rows()
        assert [event_id(n) for n in range(LINES)] == [one["key"] for one in exported]
        (bad,) = typed(agent, "spool", "export", "--queue", "dead_letters").rows()
        assert "invalid_json" == bad["headers"]["reason"]
        left = typed(agent, "spool", "drain", "--wait", "2", code=1).out
        assert f"events: {LINES} records are left; Kafka: topic_missing" in left

        broker.make(topics.events, topics.dead_letters)
        drained = typed(agent, "spool", "drain").out

        assert ["events: nothing is left", "dead_letters: nothing is left"] == drained.splitlines()
        assert {event_id(n): [0] for n in range(LINES)} == generations(agent)
        assert 1 == len(records(topics, topics.dead_letters))
        assert [0, 0] == [row["records"] for row in typed(agent, "spool", "list", "--json").rows()]


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_of_the_store_some_are_dropped_and_the_others_arrive(
    tmp_path: Path, broker: Broker, running: bool
) -> None:
    topics = broker.names()
    broker.make(topics.events)
    with Agent(tmp_path, topics, kafka=SOON) as agent:
        for client in ("app", "shop"):
            append(agent.root / client / "x.jsonl", [b"no json", b'{"type":"none"}'])
        agent.start()
        waiting = "dlq", "list", "--from", "store", "--json"
        agent.until(lambda: len(typed(agent, *waiting).rows()) == 4, "put by")
        if not running:
            assert 0 == agent.stop()
        purge = "dlq", "purge", "--client", "shop", "--reason", "invalid_json"
        assert "1 dead letter would be dropped" in typed(agent, *purge, "--dry-run").out
        made = json.loads(typed(agent, *purge, "--yes", "--json").out)

        assert {"records": 1, "stay": 0, "dry_run": False} == made
        broker.make(topics.dead_letters)
        typed(agent, "spool", "drain")
        found = typed(agent, "dlq", "list", "--from", "topic", "--json").rows()
    kept = [("app", "invalid_json"), ("app", "unknown_type"), ("shop", "unknown_type")]
    assert kept == sorted((row["client"], row["reason"]) for row in found)


def test_validate_says_before_what_becomes_of_each_line(agent: Agent) -> None:
    """The agent then sends just that."""
    files = str(agent.root / PATH), str(agent.root / "app/bad.jsonl")
    said = json.loads(typed(agent, "validate", *files, "--json", code=1).out)
    assert "invalid_json" in typed(agent, "validate", files[1], code=1).out
    assert f"{LINES} events" in typed(agent, "validate", files[0]).out
    shown = [
        json.loads(line) for line in typed(agent, "validate", "--show", files[0]).out.splitlines()
    ]

    agent.start()
    agent.until_delivered(LINES, 1)

    assert [(LINES, 0), (0, 1)] == [(f["events"], f["rejected"]) for f in said["files"]]
    (bad,) = records(agent.topics, agent.topics.dead_letters)
    assert {"invalid_json": 1} == said["files"][1]["by_reason"]
    assert b"invalid_json" == dict(bad.headers)["reason"]
    values = {
        r.key.decode(): json.loads(r.value) for r in records(agent.topics, agent.topics.events)
    }
    assert {one["key"] for one in shown} == set(values)
    assert shown[3]["value"]["type"] == values[shown[3]["key"]]["type"]


def test_a_shell_completes_what_there_is(agent: Agent, tmp_path: Path) -> None:
    """It asks the program at each TAB, in the middle of its work or not."""
    agent.start()
    script = tmp_path / "completion"
    script.write_text(typed(agent, "completion", "bash").out)
    program = tmp_path / "feedback-agent"
    main = "from agent.cli import main; main(prog_name='feedback-agent')"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{main}" "$@"\n')
    program.chmod(0o755)
    line = f"source {script}; COMP_WORDS=(feedback-agent spool dr) COMP_CWORD=2"
    call = "_feedback_agent_completion feedback-agent; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; {call}"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "drain\n" == done.stdout
