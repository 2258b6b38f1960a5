"""Types of a team's own through the whole agent."""

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.demo.broker import EmbeddedKafka
from tests.running import NOWHERE, Agent, append, event_id, feedback, mock_topics, records

MAIL = "kanari@marked.example"
ORDER = {
    "type": "object",
    "required": ["order_id"],
    "properties": {
        "order_id": {"type": "string", "pattern": "^([A-Z]+)+-[0-9]+$"},
        "buyer": {"type": "string"},
        "lines": {"type": "array", "items": {"properties": {"price": {"minimum": 0}}}},
    },
}
HEALTH = {"properties": {"status": {"enum": ["fine", "dead"]}}, "required": ["status"]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pytest.importorskip("jsonschema_rs")
    made = tmp_path / "schemas"
    made.mkdir()
    (made / "order.json").write_text(json.dumps(ORDER))
    (made / "system_health.json").write_text(json.dumps(HEALTH))
    return made


def order(number: int, **more: Any) -> bytes:
    fields = {"type": "order", "event_id": event_id(number), "order_id": f"AB-{number}"}
    return json.dumps(fields | more).encode()


def test_lines_of_custom_types_arrive_by_their_schemas(
    embedded: EmbeddedKafka, tmp_path: Path, directory: Path
) -> None:
    """Added and replaced ones, beside those that nobody touched; redacted, keyed by a field."""
    topics = mock_topics(embedded)
    good = [
        feedback(1),
        order(2, buyer=MAIL, lines=[{MAIL: MAIL}], more=MAIL),
        order(3, lines=[{"price": n} for n in range(9000)]),
        b'{"type":"system_health","status":"fine","event_id":"%b"}' % event_id(4).encode(),
    ]
    bad = [
        (order(5, lines=[{"price": 1}, {"price": -1}]), "lines[1].price: minimum"),
        (order(6, order_id="A" * 60_000), "order_id: pattern"),
        (order(7, buyer={MAIL: MAIL}), "buyer: type"),
        (order(8, more="x" * 20_000), "unknown fields: 20011 bytes, at most 16384"),
        (b'{"type":"system_health","status":"healthy","service_name":"s"}', "status: enum"),
        (b'{"type":"telemetry"}', "type: not one of the known types"),
    ]
    sections: Any = {"schema": {"dir": str(directory)}, "kafka": {"key": "order_id"}}
    with Agent(tmp_path, topics, **sections) as agent:
        append(agent.root / "acme/a.jsonl", [*good, *(line for line, _ in bad)])
        agent.start()
        agent.until_delivered(len(good), len(bad))
        assert 0 == agent.stop()
    events = {json.loads(r.value)["event_id"]: r for r in records(topics, topics.events)}
    letters = {dict(r.headers)["detail"].decode(): r for r in records(topics, topics.dead_letters)}

    assert {event_id(n) for n in (1, 2, 3, 4)} == events.keys()
    assert [b"user_feedback", b"order", b"order", b"system_health"] == [
        dict(events[event_id(n)].headers)["event_type"] for n in (1, 2, 3, 4)
    ]
    first = json.loads(events[event_id(2)].value)
    assert ("order", "AB-2", "[EMAIL]") == tuple(first[n] for n in ("type", "order_id", "buyer"))
    assert ([{"[EMAIL]": "[EMAIL]"}], "acme") == (first["lines"], first["metadata"]["client"])
    assert [None, b"AB-2", b"AB-3", None] == [events[event_id(n)].key for n in (1, 2, 3, 4)]
    assert {detail for _, detail in bad} == letters.keys()
    assert b"order" == dict(letters["buyer: type"].headers)["event_type"]
    assert not [r for r in (*events.values(), *letters.values()) if b"kanari" in r.value]


def test_a_bad_schema_keeps_the_agent_from_starting(tmp_path: Path, directory: Path) -> None:
    """One line, before anything is read."""
    (directory / "order.json").write_text('{"$ref": "https://example.com/order.json"}')
    with Agent(tmp_path, NOWHERE, schema={"dir": str(directory)}) as agent:
        agent.launch()
        assert 78 == agent.ended()
        (line,) = agent.log_text().splitlines()
    assert "error: schema.dir: order.json: allowed: references within the file" in line


def test_a_schema_that_is_added_counts_for_the_next_lines(
    embedded: EmbeddedKafka, tmp_path: Path, directory: Path
) -> None:
    """Without a restart; a bad one is said, and what was good last stays in force."""
    topics, taxi = mock_topics(embedded), b'{"type":"taxi","event_id":"%b","fare":%d}'
    schemas = [("adopted", {"maximum": 9}), ("refused", {"maximum": "9"})]
    with Agent(tmp_path, topics, schema={"dir": str(directory)}) as agent:
        path = agent.root / "acme/a.jsonl"
        agent.start()
        append(path, [taxi % (event_id(1).encode(), 5)])
        agent.until_delivered(0, 1)
        for times, (outcome, fare) in enumerate(schemas, 1):
            (directory / "taxi.json").write_text(json.dumps({"properties": {"fare": fare}}))
            agent.signal(signal.SIGHUP)
            agent.until(partial(reloaded, agent, outcome), outcome)
            fares = [(2 * times, 9), (2 * times + 1, 10)]
            append(path, [taxi % (event_id(n).encode(), paid) for n, paid in fares])
            agent.until_delivered(times, times + 1)
        assert "taxi.json" in agent.status()["reloaded"]["schemas"]["problem"]
        assert 0 == agent.stop()
    details = [dict(r.headers)["detail"] for r in records(topics, topics.dead_letters)]
    delivered = {json.loads(r.value)["event_id"] for r in records(topics, topics.events)}

    assert {event_id(2), event_id(4)} == delivered
    assert [b"fare: maximum"] * 2 == [d for d in details if not d.startswith(b"type")]


def reloaded(agent: Agent, outcome: str) -> bool:
    return agent.metric("reloads_total", what="schemas", outcome=outcome) == 1
