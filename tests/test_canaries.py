"""No personal data leaves the agent in any form: it is marked, sent every way there is, and
looked for wherever anything can be read."""

import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests.collector import collecting
from tests.patience import WITHIN_S
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


TOO_LARGE, PRODUCE = 10, 0
KINDS = {
    "[EMAIL]": "kanari@marked.example",
    "[PHONE]": "+49 1512 9988776",
    "[CARD]": "4929 7388 0351 2255",
    "[SSN]": "536-22-8726",
    "[IBAN]": "DE89 3704 0044 0532 0130 00",
    "[IPV4]": "203.0.113.177:8080",
    "[IPV6]": "2001:db8:85a3::8a2e:370:7334",
}
LEFT = ("kanari", "9988776", "0351 2255", "22-8726", "0532 0130", "203.0.113.177", "8a2e:370")
"""What of them must be nowhere; each is too long to be there by chance."""


def lines_of(number: int, mark: str) -> list[bytes]:
    """Return lines that are events, then lines that are none."""
    return [
        feedback(number, comment=f"it is {mark}, yes", tags=[mark]),
        feedback(number + 1, metadata={mark: {"deep": [mark]}}, unknown={mark: mark}),
        feedback(number + 2, user_id=mark, session_id=mark),
        feedback(number + 3, comment=f"it is {mark}, torn")[:-4],
        json.dumps([mark]).encode(),
        feedback(number + 4, comment=mark, more="x" * LINE_BYTES_MAX + " " + mark),
        feedback(number + 5, rating=mark),
    ]


def test_no_kind_of_personal_data_is_anywhere(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """Of every kind, in events, dead letters, what Kafka refuses, the spool and names; also in what
    goes to a collector, and in what the commands print."""
    topics = mock_topics(embedded)
    seen: list[tuple[str, str]] = []
    with collecting() as collector:
        otlp = {"endpoint": collector.endpoint, "export_s": 1, "traces_sampled": 1, "logs": True}
        with Agent(tmp_path, topics, **IMPATIENT, otlp=otlp) as agent:  # type: ignore[arg-type]
            for n, mark in enumerate(KINDS.values()):
                named = mark.replace(" ", "")
                append(agent.root / f"acme/{named}.jsonl", lines_of(100 * n, mark))
            (agent.root / "acme" / f"{KINDS['[EMAIL]']}.s.jsonl").symlink_to("x")
            agent.start()
            agent.until_delivered(3 * len(KINDS), 4 * len(KINDS))
            embedded.fail(PRODUCE, TOO_LARGE, TOO_LARGE)
            refused = feedback(901, comment=" ".join(KINDS.values()))
            append(agent.root / "acme/refused.jsonl", [refused])
            agent.until_delivered(3 * len(KINDS), 4 * len(KINDS) + 1)
            embedded.broker_down()
            for n, mark in enumerate(KINDS.values()):
                append(agent.root / "acme/late.jsonl", lines_of(1000 + 100 * n, mark))
            agent.until(lambda: agent.metric("spooled_total") >= 7 * len(KINDS), "spooled")
            seen += [(page, agent.get(page).body) for page in ("/metrics", "/status", "/")]
            seen += printed(agent, ("status",), ("status", "--json"), ("spool", "list"))
            embedded.broker_up()
            agent.until(lambda: agent.metric("spool_records") == 0, "replayed")
            seen += printed(agent, ("validate", str(agent.root / "acme/late.jsonl")),
                            ("audit", "show"))  # fmt: skip
            assert 0 == agent.stop()
            seen.append(("log", agent.log_text()))
            kept = [f for f in agent.state_dir.rglob("*") if f.is_file()]
            seen += [(f.name, f.read_bytes().decode(errors="replace")) for f in kept
                     if not f.name.startswith("checkpoints.db")]  # fmt: skip
        exported = (collector.metrics, collector.logs, collector.traces)
        seen += [("collector", str(request)) for requests in exported for request in requests]
    letters = records(topics, topics.dead_letters)
    for record in (*records(topics, topics.events), *letters):
        seen.append((f"{record.topic} {record.offset}", repr(record)))

    assert b"refused_too_large" in {dict(letter.headers)["reason"] for letter in letters}
    assert collector.traces
    assert collector.logs
    assert [] == [
        (where, text[max(0, text.find(left) - 60) :][:120])
        for where, text in seen
        for left in LEFT
        if left in text
    ]
    for marker in KINDS:
        assert sum(marker in text for _, text in seen) >= 14, marker


def printed(agent: Agent, *commands: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return what ``feedback-agent`` prints; of these commands none needs a broker."""
    made = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "agent", *command],
            env={**os.environ, "FEEDBACK_AGENT_CONFIG": str(agent.config)},
            capture_output=True, text=True, check=False, timeout=WITHIN_S,
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
        made.append((" ".join(command[:2]), done.stdout + done.stderr))
    return made
