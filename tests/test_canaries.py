"""No personal data leaves the agent in any form: it is marked, sent every way there is, and
looked for wherever anything can be read."""

import json
import urllib.parse
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests.running import Agent, append, feedback, mock_topics, records

LINE_BYTES_MAX = 16 << 10
IMPATIENT = {
    "retry": {"backoff_s": 0.2, "backoff_max_s": 1},
    "breaker": {"cooldown_s": 1, "ack_age_max_s": 1},
    "source": {"line_bytes_max": LINE_BYTES_MAX},
    "kafka": {"compression": "none", "request_timeout_s": 3.0, "key": "user_id"},
    "log": {"level": "debug"},
}


def canary(number: int) -> str:
    return f"kanari{number:03}@marked.example"


def fullwidth(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(c):04x}" for c in text)


def lines_with(first: int) -> list[bytes]:
    """Return a line for each way to write, place and break; canaries count from ``first`` on."""
    marks = [canary(first + number) for number in range(25)]
    plain, wide, split, web, key, tag, deep, extra, user, session, version, *rest = marks
    unescaped, torn, array, unknown, oversize, utf8, nested, dead_wide, dead_split, *more = rest
    raw, dead_id, typed, client, bad_type = more
    return [
        feedback(1, comment=f"write to {plain}"),
        feedback(2, comment=fullwidth(wide)),
        feedback(3, comment="\u200b".join(split)),
        feedback(4, comment=urllib.parse.quote(web)),
        feedback(5, metadata={key: {key: [key]}}),
        feedback(6, tags=["a", tag]),
        feedback(7, metadata={"a": [{"b": [deep]}]}),
        feedback(8, extra={"x": [extra]}, **{extra: extra}),
        feedback(9, user_id=user),
        feedback(10, session_id=session),
        feedback(11, schema_version=version),
        b'{"type":"user_feedback","session_id":"s","comment":"%b"}' % escaped(unescaped).encode(),
        feedback(12, comment=torn)[:-4],
        json.dumps([array]).encode(),
        json.dumps({"type": unknown}).encode(),
        feedback(13, comment=oversize, more="x" * LINE_BYTES_MAX + oversize),
        b'{"comment":"%b\xff"}' % utf8.encode(),
        b'{"a":' * 12 + b'"%b"' % nested.encode() + b"}" * 12,
        f'{{"comment":"{fullwidth(dead_wide)}'.encode(),
        '{{"comment":"\\n{}'.format("\u200b".join(dead_split)).encode(),
        raw.encode(),
        feedback(14, event_id=dead_id),
        feedback(15, rating=typed),
        feedback(16, metadata={"client": client, "n": client}),
        feedback(17, timestamp=bad_type),
    ]


def test_no_canary_is_anywhere(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """In topics, the spool's and the checkpoints' bytes, logs, metrics, status and audit log; with
    Kafka there, away and there again, across a kill."""
    topics = mock_topics(embedded)
    seen: list[tuple[str, bytes]] = []
    with Agent(tmp_path, topics, **IMPATIENT) as agent:  # type: ignore[arg-type]  # of all sections
        path = agent.root / "acme/a.jsonl"
        append(path, lines_with(0))
        agent.start()
        agent.until_delivered(13, 12)
        look(agent, seen)
        embedded.broker_down()
        append(path, lines_with(25))
        agent.until(lambda: agent.metric("spooled_total") >= 25, "spooled")
        look(agent, seen)
        agent.kill()
        seen.append(("log", agent.log_text().encode()))
        embedded.broker_up()
        agent.start()
        agent.until(lambda: agent.metric("spool_records") == 0, "replayed")
        look(agent, seen)
        assert 0 == agent.stop()
        look_at_files(agent, seen)
    found = [*records(topics, topics.events), *records(topics, topics.dead_letters)]
    assert len(found) >= 50
    for r in found:
        headers = b" ".join(name.encode() + b"=" + value for name, value in r.headers)
        seen.append((f"{r.topic} {r.offset}", b" ".join([r.key or b"", r.value or b"", headers])))
    assert {"spool.db", "checkpoints.db", "audit.jsonl", "log", "/metrics", "/status", "/"} <= {
        where for where, _ in seen
    }
    assert [] == [(where, hit(content)) for where, content in seen if hit(content)]
    assert sum(b"[EMAIL]" in content for _, content in seen) >= 45


def look(agent: Agent, seen: list[tuple[str, bytes]]) -> None:
    seen.extend(
        (page, agent.get(page).body.encode()) for page in ("/metrics", "/status", "/readyz", "/")
    )
    look_at_files(agent, seen)


def look_at_files(agent: Agent, seen: list[tuple[str, bytes]]) -> None:
    seen.append(("log", agent.log_text().encode()))
    seen.extend((f.name, f.read_bytes()) for f in agent.state_dir.iterdir() if f.is_file())


def hit(content: bytes) -> bytes | None:
    """Return what is left of a canary around the first place where one is, in whatever disguise."""
    text = content.decode(errors="replace").replace("\u200b", "").replace("\\u200b", "")
    narrow = "".join(chr(ord(c) - 0xFEE0) if "\uff01" <= c <= "\uff5e" else c for c in text)
    for form in ("kanari", "marked.example", escaped("kanari")):
        at = narrow.find(form)
        if at >= 0:
            return narrow[max(0, at - 40) : at + 60].encode()
    return None


NAMED = "jo.doe@marked.example"


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def test_names_of_clients_and_files_are_redacted_where_people_see_them(
    mock: Topics, tmp_path: Path
) -> None:
    """In the store alone they are as they are: the file must be found again."""
    with Agent(tmp_path, mock, log={"level": "debug"}) as agent:
        append(agent.root / NAMED / f"{NAMED}.jsonl", [feedback(1)])
        (agent.root / NAMED / "link.jsonl").symlink_to("x")
        agent.start()
        agent.until_delivered(1)
        agent.until(lambda: agent.status()["unreadable"] != [], "the link is said")
        agent.until(lambda: 'client="[EMAIL]"' in agent.get("/metrics").body, "a series")
        seen = [agent.get(page).body for page in ("/metrics", "/status", "/")]
        assert 0 == agent.stop()
        seen += [agent.log_text(), (agent.state_dir / "audit.jsonl").read_text()]
    (record,) = records(mock, mock.events)
    seen.append(repr(record))
    assert ["marked" in text for text in seen] == [False] * len(seen)
    assert ["[EMAIL]" in text for text in seen] == [True] * len(seen)
