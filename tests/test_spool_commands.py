"""``spool`` as a person types it, with the agent up and down."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import main
from agent.core.breaker import Breaker, State
from agent.core.policy import BreakerPolicy
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests.running import NOWHERE, Agent, append, event_id, feedback, records

LINES = 40
SOON: dict[str, Any] = {"start_s": 0.5, "request_timeout_s": 2}


def typed(agent: Agent, *args: str) -> Result:
    command = ["spool", *args, "--config", str(agent.config)]
    return CliRunner().invoke(main, command, prog_name="feedback-agent")


def call(agent: Agent, *args: str, exit_code: int = 0) -> Result:
    result = typed(agent, *args)
    assert exit_code == result.exit_code, result.output
    return result


def said(agent: Agent, *args: str, exit_code: int = 0) -> list[dict[str, Any]]:
    lines = call(agent, *args, exit_code=exit_code).stdout.splitlines()
    return [json.loads(line) for line in lines]


def put_by(agent: Agent) -> None:
    agent.start()
    agent.until(lambda: said(agent, "list", "--json")[0]["records"] == LINES, "in the spool")


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_what_waits_is_counted_and_can_be_read(tmp_path: Path, running: bool) -> None:
    """And stays: an export is a look."""
    with Agent(tmp_path, NOWHERE, kafka=SOON) as agent:
        lines = [feedback(number, comment="joe@example.com") for number in range(LINES)]
        append(agent.root / "app/x.jsonl", lines)
        put_by(agent)
        if not running:
            agent.kill()

        events, dead = said(agent, "list", "--json")
        assert ("spooling" if running else "down") == events["mode"]
        assert (LINES, 0) == (events["records"], dead["records"])
        assert 0 < events["oldest_ms"] <= events["newest_ms"]
        assert dead["oldest_ms"] is None
        file = tmp_path / "spool.jsonl"
        call(agent, "export", "--output", str(file))
        exported = [json.loads(line) for line in file.read_text().splitlines()]
        assert [event_id(n) for n in range(LINES)] == [one["key"] for one in exported]
        assert [*range(LINES)] == [one["seq"] for one in exported]
        assert "[EMAIL]" == json.loads(exported[0]["value"])["comment"]
        assert exported[0]["headers"]["source"].startswith("1;")
        assert [] == said(agent, "export", "--queue", "dead_letters")
        call(agent, "export", "--output", str(file), exit_code=64)
        assert LINES == said(agent, "list", "--json")[0]["records"], "all of it is still there"
        assert "events" in call(agent, "list").stdout
        ended = drained(agent, "--wait", "0.5")
        left = [json.loads(line) for line in ended.stdout.splitlines()]
        assert (1, LINES) == (ended.returncode, left[0]["spooled_records"])
        assert left[0]["problem"] in {"unreachable", "connecting"}
        assert LINES == said(agent, "list", "--json")[0]["records"], "it was tried, and no more"


def test_drain_does_not_wait_for_the_breaker(tmp_path: Path, embedded: EmbeddedKafka) -> None:
    """Whoever has just mended Kafka knows more than a cooldown of an hour."""
    topics = Topics(embedded.bootstrap_servers, "feedback-events", "feedback-events-dlq")
    patient = {"failures_max": 1, "cooldown_s": 3600}
    with Agent(tmp_path, topics, kafka=SOON, breaker=patient) as agent:
        append(agent.root / "app/x.jsonl", map(feedback, range(LINES)))
        put_by(agent)
        agent.until(lambda: agent.status()["sinks"]["events"]["breaker"] == "open", "given up")
        embedded.create_topic(topics.events, 3)

        found = said(agent, "drain", "--json")

        assert [0, 0] == [queue["spooled_records"] for queue in found]
        assert "nothing is left" in call(agent, "drain").stdout
        arrived = {record.key.decode() for record in records(topics, topics.events)}
        assert {event_id(n) for n in range(LINES)} == arrived


def test_where_no_agent_runs_what_waits_is_sent_and_no_file_is_read(
    tmp_path: Path, embedded: EmbeddedKafka
) -> None:
    """A node that goes away takes its disk along; what apps wrote since is the next agent's."""
    topics = Topics(embedded.bootstrap_servers, "feedback-events", "feedback-events-dlq")
    with Agent(tmp_path, topics, kafka=SOON) as agent:
        append(agent.root / "app/x.jsonl", [*map(feedback, range(LINES)), b"no json"])
        put_by(agent)
        assert 0 == agent.stop()
        append(agent.root / "app/x.jsonl", [feedback(LINES)])
        for topic in (topics.events, topics.dead_letters):
            embedded.create_topic(topic, 3)
        ended = drained(agent)

        assert ("", 0) == (ended.stderr.partition("no agent runs")[0], ended.returncode)
        assert [0, 0] == [json.loads(line)["spooled_records"] for line in ended.stdout.splitlines()]
        assert [event_id(n) for n in range(LINES)] == arrived(topics)
        assert 1 == len(records(topics, topics.dead_letters))
        assert ["down", "down"] == [queue["mode"] for queue in said(agent, "list", "--json")]
        again = drained(agent)
        assert (0, "") == (again.returncode, again.stderr), "nothing is left to do"
        agent.start()
        agent.until_delivered(1)
    assert [event_id(n) for n in range(LINES + 1)] == arrived(topics), "each of them once"


def drained(agent: Agent, *more: str) -> subprocess.CompletedProcess[str]:
    """Drain in a process of its own: with the agent down it is one, with threads and signals."""
    command = [sys.executable, "-m", "agent", "spool", "drain", "--json", *more]
    command += ["--config", str(agent.config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def arrived(topics: Topics) -> list[str]:
    return sorted(record.key.decode() for record in records(topics, topics.events))


def test_a_hastened_breaker_lets_one_probe_go_and_no_more() -> None:
    now_s = 0.0
    policy = BreakerPolicy(failures_max=1, cooldown_s=60)
    breaker = Breaker(policy, lambda: now_s, lambda: 0.0)
    breaker.failed()
    assert not breaker.allow()
    breaker.hasten()
    assert breaker.allow()
    assert (State.HALF_OPEN, False) == (breaker.state, breaker.allow())
    breaker.failed()
    assert not breaker.allow(), "a probe that failed costs a cooldown"
