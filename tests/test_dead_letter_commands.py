"""``dlq`` as a person types it: with the agent up and down, with Kafka and without."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from agent.cli import main
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import real_kafka, secured_kafka
from tests.running import NOWHERE, Agent, append, event_id, feedback, mock_topics, records
from tests.secured_kafka import OUTSIDER, PASSWORD, USER, Secured

pytest.importorskip("jsonschema_rs")
ORDER = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
READ = 3  # an operation of an ACL
BAD = [
    b'{"type":"order","n":1,"mail":"joe@example.com"}',
    b'{"type":"order","n":"x"}',
    b"\xff\xfe",
    b"no json",
    json.dumps({"type": "order", "n": 2, "event_id": event_id(77)}).encode(),
]
REASONS = {"unknown_type": 3, "invalid_utf8": 1, "invalid_json": 1}


@pytest.fixture
def schemas(tmp_path: Path) -> str:
    directory = tmp_path / "schemas"
    directory.mkdir()
    (directory / "order.json").write_text(json.dumps(ORDER))
    return str(directory)


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


@pytest.fixture
def real(kafka: str) -> Topics:
    name = f"test-{uuid4().hex}"
    for topic in (name, f"{name}-dlq"):
        asyncio.run(real_kafka.create_topic(kafka, topic, 3))
    return Topics(kafka, name, f"{name}-dlq")


@pytest.fixture(
    params=["mock", pytest.param("real", marks=[pytest.mark.kafka, pytest.mark.long])],
    ids=["embedded", "kafka"],
)
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path, request.getfixturevalue(request.param)) as made:
        append(made.root / "app/bad.jsonl", BAD)
        append(made.root / "app/good.jsonl", map(feedback, range(3)))
        yield made


def call(agent: Agent, *args: str, exit_code: int = 0, **more: Any) -> Result:
    command = ["dlq", *args, "--config", str(agent.config)]
    result = CliRunner().invoke(main, command, prog_name="feedback-agent", **more)
    assert exit_code == result.exit_code, result.output
    return result


def said(agent: Agent, *args: str, **more: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call(agent, *args, **more).stdout.splitlines()]


def counted(rows: list[dict[str, Any]], key: str) -> dict[str, int]:
    return {value: [row[key] for row in rows].count(value) for value in {row[key] for row in rows}}


def orders(topics: Topics) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    found = [(json.loads(r.value), dict(r.headers)) for r in records(topics, topics.events)]
    return sorted((one for one in found if one[0]["type"] == "order"), key=lambda o: o[0]["n"])


def replays_audited(agent: Agent) -> list[dict[str, Any]]:
    command = ["audit", "show", "--event", "dead_letters.replayed", "--config", str(agent.config)]
    shown = CliRunner().invoke(main, command, catch_exceptions=False)
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    assert {f"uid {os.getuid()}"} == {note["by"] for note in found}
    return found


def test_what_a_new_schema_makes_good_is_sent_once(agent: Agent, schemas: str) -> None:
    agent.start()
    agent.until_delivered(3, len(BAD))
    listed = said(agent, "list", "--json")
    assert REASONS == counted(listed, "reason")
    assert {"app"} == {row["client"] for row in listed}
    replay = "replay", "--schema", schemas, "--json"

    looked = said(agent, *replay, "--dry-run", exit_code=1)
    assert [] == orders(agent.topics)
    first = said(agent, *replay, exit_code=1)
    again = said(agent, *replay, exit_code=1)

    stays = {"schema": 1, "no_payload": 1, "invalid_json": 1}
    assert {"would_send": 2, **stays} == counted(looked, "what")
    assert {"sent": 2, **stays} == counted(first, "what")
    assert {"already": 2, **stays} == counted(again, "what")
    (one, headers), (two, _) = orders(agent.topics)
    assert ("[EMAIL]", event_id(77)) == (one["mail"], two["event_id"])
    of = {row["id"]: row for row in listed}[headers["replay_of"].decode().rpartition("/")[2]]
    assert of["source"].encode() == headers["source"]
    assert {"app"} == {event["metadata"]["client"] for event in (one, two)}
    assert "replayed_at" in headers

    forced = said(agent, *replay, "--force", of["id"])
    assert {"sent": 1} == counted(forced, "what")
    copies = [event["event_id"] for event, _ in orders(agent.topics)]
    assert (3, 2) == (len(copies), len(set(copies))), "a copy has the same id"
    assert 0 == agent.stop()
    said(agent, *replay, "--force", of["id"])
    assert [2, 1, 1] == [note["records"] for note in replays_audited(agent)]


def test_one_is_shown_with_its_headers_and_all_can_be_taken_away(
    agent: Agent, tmp_path: Path
) -> None:
    agent.start()
    agent.until_delivered(3, len(BAD))
    row = next(row for row in said(agent, "list", "--json") if row["source"].split(";")[3] == "0")

    shown = json.loads(call(agent, "show", row["id"], "--json").stdout)
    assert '{"type":"order","n":1,"mail":"[EMAIL]"}' == shown["value"]
    assert shown["headers"]["source"] == row["source"]
    assert "[EMAIL]" in call(agent, "show", row["id"]).stdout
    assert shown["value"] == call(agent, "show", row["id"], "--raw").stdout
    assert "there is no dead letter 0:9999" in call(agent, "show", "0:9999", exit_code=1).stderr
    assert "is no id" in call(agent, "show", "first", exit_code=1).stderr

    file = tmp_path / "dead.jsonl"
    call(agent, "export", "--reason", "unknown_type", "--output", str(file))
    assert 3 == len(file.read_text().splitlines())
    assert 0o600 == file.stat().st_mode & 0o777
    call(agent, "export", "--output", str(file), exit_code=64)
    assert [] == said(agent, "list", "--json", "--client", "nobody")
    assert [] == said(agent, "list", "--json", "--until", "2026-01-01")
    call(agent, "list", "--since", "yesterday", exit_code=64)
    assert "unknown_type" in call(agent, "list").stdout


@pytest.mark.kafka
def test_reading_begins_at_a_time(tmp_path: Path, real: Topics) -> None:
    """Of a long topic only the part that is wanted is fetched. The embedded broker cannot seek."""
    with Agent(tmp_path, real) as agent:
        append(agent.root / "app/bad.jsonl", BAD)
        agent.start()
        agent.until_delivered(0, len(BAD))
        assert 5 == len(said(agent, "list", "--json", "--since", "2026-01-01T00:00:00+01:00"))
        assert [] == said(agent, "list", "--json", "--since", "2100-01-01")


def put_by(agent: Agent) -> None:
    """Let all dead letters lie in the store: their topic cannot be reached."""
    agent.until(lambda: agent.status()["sinks"]["dead_letters"]["spooled_records"] == 5, "put by")


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_the_store_is_looked_at_with_the_agent_up_and_down(tmp_path: Path, running: bool) -> None:
    with Agent(tmp_path, NOWHERE, kafka={"start_s": 0.5}) as agent:
        append(agent.root / "app/bad.jsonl", BAD)
        agent.start()
        put_by(agent)
        if not running:
            agent.until_committed()
            agent.kill()
        store = "--from", "store", "--json"

        assert REASONS == counted(said(agent, "list", *store), "reason")
        shown = json.loads(call(agent, "show", "store:0", *store).stdout)
        assert shown["value"].endswith('"mail":"[EMAIL]"}')
        newest = said(agent, "list", "--limit", "2", *store)
        assert ["store:3", "store:4"] == [row["id"] for row in newest]
        call(agent, "purge", input="n\n", exit_code=130)
        assert 5 == len(said(agent, "list", *store))
        assert "5 dead letters dropped" in call(agent, "purge", "--yes").stdout
        assert [] == said(agent, "list", *store)
        assert "0 dead letters dropped" in call(agent, "purge", "--yes").stdout
        show = ["audit", "show", "--event", "dead_letters.purged", "--config", str(agent.config)]
        agent.until(lambda: '"records":5' in CliRunner().invoke(main, show).stdout, "audited")
        if running:
            agent.kill()
        agent.start()
        assert 0 == agent.status()["sinks"]["dead_letters"]["spooled_bytes"]


def purges_audited(agent: Agent) -> list[dict[str, Any]]:
    show = ["audit", "show", "--event", "dead_letters.purged", "--config", str(agent.config)]
    shown = CliRunner().invoke(main, show, catch_exceptions=False).stdout
    notes = [json.loads(line) for line in shown.splitlines()]
    wanted = "records", "reason", "client", "since", "until", "by"
    return [{name: note.get(name) for name in wanted} for note in notes]


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_a_purge_takes_what_matches_and_the_others_arrive_once(
    tmp_path: Path, embedded: EmbeddedKafka, running: bool
) -> None:
    """By the same words as a list: what it shows of the store is what goes."""
    topics = Topics(embedded.bootstrap_servers, "feedback-events", "feedback-events-dlq")
    embedded.create_topic(topics.events, 3)
    with Agent(tmp_path, topics) as agent:
        append(agent.root / "app/bad.jsonl", BAD)
        append(agent.root / "shop/bad.jsonl", BAD)
        agent.start()
        agent.until(lambda: len(said(agent, "list", "--json", "--from", "store")) == 10, "put by")
        if not running:
            agent.until_committed()
            agent.kill()
        wanted = "--client", "shop", "--reason", "unknown_type", "--since", "2026-01-01"
        matching = len(said(agent, "list", *wanted, "--json", "--from", "store"))
        tried = json.loads(call(agent, "purge", *wanted, "--dry-run", "--json").stdout)
        none = json.loads(call(agent, "purge", *wanted, "--until", "2026-01-01", "--json").stdout)
        asked = call(agent, "purge", *wanted, input="n\n", exit_code=130)
        assert "Drop 3 dead letters of the store?" in asked.output
        assert 10 == len(said(agent, "list", "--json", "--from", "store"))

        made = call(agent, "purge", *wanted, input="y\n")

        assert 3 == matching
        assert {"records": 3, "stay": 0, "dry_run": True} == tried
        assert {"records": 0, "stay": 0, "dry_run": False} == none
        assert "3 dead letters dropped\n" in made.stdout
        left = said(agent, "list", "--json", "--from", "store")
        assert {"app": 5, "shop": 2} == counted(left, "client")
        agent.until(lambda: bool(purges_audited(agent)), "audited")
        assert [
            {"records": 3, "reason": "unknown_type", "client": "shop", "until": None,
             "since": "2026-01-01T00:00:00.000Z", "by": f"uid {os.getuid()}"}
        ] == purges_audited(agent)  # fmt: skip
        if not running:
            agent.start()
        embedded.create_topic(topics.dead_letters, 1)
        agent.until_delivered(0, len(left))
        assert 0 == agent.stop()
        found = said(agent, "list", "--json", "--from", "topic")
    assert [row["source"] for row in left] == [row["source"] for row in found]


def test_what_lay_in_the_store_is_not_replayed_again_from_the_topic(
    tmp_path: Path, embedded: EmbeddedKafka, schemas: str
) -> None:
    """The agent moves it there when it can: it is the same dead letter."""
    topics = Topics(embedded.bootstrap_servers, "feedback-events", "feedback-events-dlq")
    embedded.create_topic(topics.events, 3)
    with Agent(tmp_path, topics) as agent:
        append(agent.root / "app/bad.jsonl", BAD)
        agent.start()
        put_by(agent)
        replay = "replay", "--schema", schemas, "--json"
        first = said(agent, *replay, "--from", "store", exit_code=1)
        embedded.create_topic(topics.dead_letters, 1)
        agent.until_delivered(0, len(BAD))
        again = said(agent, *replay, "--from", "topic", exit_code=1)

    assert (2, 2) == (counted(first, "what")["sent"], counted(again, "what")["already"])
    assert 2 == len(orders(topics))


def test_kafka_that_is_away_is_said_in_one_line(tmp_path: Path, schemas: str) -> None:
    """And what is still to be had: it is then that there is something in the store."""
    with Agent(tmp_path, NOWHERE, kafka={"start_s": 0.5, "request_timeout_s": 1}) as agent:
        append(agent.root / "app/bad.jsonl", BAD)
        agent.start()
        put_by(agent)
        for command in (("list",), ("export",)):
            (line,) = call(agent, *command, exit_code=1).stderr.splitlines()
            assert "error: unreachable: KafkaConnectionError: none of 127.0.0.1:1 answers" in line
            assert line.endswith("--from store")
        assert 5 == len(said(agent, "list", "--from", "store", "--json"))


def test_without_a_state_directory_the_record_must_be_named(tmp_path: Path, mock: Topics) -> None:
    """Whoever replays need not sit at the node."""
    with Agent(tmp_path, mock) as agent:
        assert [] == said(agent, "list", "--json")
        assert "say with --record" in call(agent, "replay", exit_code=64).stderr
        call(agent, "replay", "--record", str(tmp_path / "record.db"))


@pytest.mark.kafka
def test_who_may_read_is_not_who_may_write(secured: Secured, tmp_path: Path) -> None:
    """A node's account that could read would let one pod's node read what all others wrote."""
    topics = secured.topics()
    for topic in (topics.events, topics.dead_letters):
        secured.allow(topic, USER, secured_kafka.WRITE, secured_kafka.DESCRIBE)
    secured.allow(topics.dead_letters, OUTSIDER, READ, secured_kafka.DESCRIBE)
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    sasl = {"mechanism": "SCRAM-SHA-512", "password_file": str(password)}
    node = secured.kafka("SASL", topics, sasl={**sasl, "username": USER})
    reader = tmp_path / "reader.yaml"
    by_reader = secured.kafka("SASL", topics, sasl={**sasl, "username": OUTSIDER})
    reader.write_text(json.dumps({"kafka": by_reader}))
    with Agent(tmp_path, topics, kafka=node) as agent:
        append(agent.root / "app/bad.jsonl", BAD)
        agent.start()
        agent.until_delivered(0, len(BAD))

        assert "give --consumer-config" in call(agent, "list", exit_code=1).stderr
        listed = said(agent, "list", "--json", "--consumer-config", str(reader))
    assert REASONS == counted(listed, "reason")
