"""The audit log's copy in a topic: on real Kafka, through kills, outages and rotations.

The file is the truth and the copy follows it, so each test holds one against the other.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from agent import audit_position
from agent.audit_file import AuditFile, Entry
from agent.audit_tail import Tail
from agent.cli import main
from agent.core.auditing import Head, parsed
from agent.demo.scene import Topics
from tests import real_kafka
from tests.running import Agent, append, feedback

AT = "2026-01-31T12:00:00.000Z"
FAR = Head(1 << 40, "")
LINES = 30


# ---- reading from behind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def write(
    path: Path,
    count: int,
    *,
    event: str = "file.adopted",
    bytes_max: int = 1 << 20,
    files_max: int = 8,
) -> Head:
    """Append records in a life of their own; return the last one."""

    async def life() -> Head:
        file = AuditFile(path, bytes_max, files_max)
        await file.open()
        entries = [Entry(AT, event, {"offset": number}) for number in range(count)]
        while entries:
            del entries[: await file.append(entries)]
        await file.close()
        assert file.head is not None
        return file.head

    return asyncio.run(life())


def rest(tail: Tail, durable: Head = FAR) -> list[int]:
    """Return the numbers of all records that are left."""
    found: list[int] = []
    while lines := tail.read(durable):
        found += [line.head.seq for line in lines]
    return found


@contextmanager
def tailing(path: Path, after: Head | None = None) -> Iterator[Tail]:
    tail = Tail(path, after)
    yield tail
    tail.close()


def test_records_come_once_and_in_order_through_rotations(path: Path) -> None:
    """Also those that are written and rotated between two looks."""
    write(path, 3)
    with tailing(path) as tail:
        assert [1, 2, 3] == rest(tail)
        write(path, 40, bytes_max=2000, files_max=50)
        assert [*range(4, 44)] == rest(tail)
        write(path, 2)
        assert [44, 45] == rest(tail)


def test_reading_goes_on_behind_a_record_wherever_it_is_by_now(path: Path) -> None:
    after = write(path, 5)
    write(path, 40, bytes_max=2000, files_max=50)
    with tailing(path, after) as tail:
        assert [*range(6, 46)] == rest(tail)


def test_what_the_disk_may_not_have_yet_is_left_for_later(path: Path) -> None:
    """A power cut would put other records in its place."""
    durable = write(path, 3)
    last = write(path, 2)
    with tailing(path) as tail:
        assert [1, 2, 3] == rest(tail, durable)
        assert [4, 5] == rest(tail, last)


def test_a_record_that_nobody_has_heard_of_begins_at_the_oldest(path: Path) -> None:
    """The log was made anew: to send twice is better than to skip."""
    write(path, 4)
    with tailing(path, Head(2, "0" * 64)) as tail:
        assert [1, 2, 3, 4] == rest(tail)


def test_a_file_that_somebody_cut_is_read_from_where_it_was_known(path: Path) -> None:
    write(path, 4)
    with tailing(path) as tail:
        assert [1, 2, 3, 4] == rest(tail)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2]))
        write(path, 1)
        assert [1, 2, 3] == rest(tail)


def test_only_records_are_read(path: Path) -> None:
    """A line that somebody put there could be anything, feedback too."""
    write(path, 2)
    first, second = path.read_bytes().splitlines(keepends=True)
    long = b"x" * (1 << 20) + b"\n"
    path.write_bytes(first + long + b'{"comment":"mine"}\n' + second.replace(b"1", b"2") + second)
    with tailing(path) as tail:
        assert [1, 2] == rest(tail)


def test_no_log_is_nothing_to_read_yet(path: Path) -> None:
    with tailing(path) as tail:
        assert [] == rest(tail)
        write(path, 1)
        assert [1] == rest(tail)


def test_the_position_is_that_of_one_topic(path: Path) -> None:
    audit_position.save(path, "audit", Head(7, "ab"))

    assert Head(7, "ab") == audit_position.load(path, "audit")
    assert audit_position.load(path, "another") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"topic":"audit","seq":"x"}', b"\xff"])
def test_a_position_that_makes_no_sense_is_none(path: Path, content: bytes) -> None:
    path.with_name("audit.jsonl.sent").write_bytes(content)

    assert audit_position.load(path, "audit") is None


# ---- the check of a copy


def verify(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    words = ["audit", "verify", *map(str, arguments)]
    return CliRunner().invoke(main, words, prog_name="feedback-agent", input=stdin)


def copied(lines: list[bytes], key: bytes = b"n1\t") -> bytes:
    return b"".join(key + line + b"\n" for line in lines)


def test_a_copy_is_whole_with_records_that_came_twice_and_other_nodes(
    path: Path, tmp_path: Path
) -> None:
    write(path, 6)
    other = tmp_path / "other.jsonl"
    write(other, 3)
    mine, others = path.read_bytes().splitlines(), other.read_bytes().splitlines()
    text = copied(mine[:4]) + copied(others[:2], b"n2\t") + copied(mine[2:]) + copied(
        others[2:], b"n2\t"
    )  # fmt: skip

    result = verify("--from-topic", "-", stdin=text)

    assert 0 == result.exit_code, result.output
    assert "n1: 6 records, 2 of them again, seq 1 to 6" in result.stdout
    assert "n2: 3 records, seq 1 to 3" in result.stdout
    assert 0 == verify("--from-topic", "-", stdin=copied(mine, b"")).exit_code


def test_a_record_that_is_missing_or_altered_in_a_copy_is_named(path: Path) -> None:
    write(path, 6)
    lines = path.read_bytes().splitlines()

    missing = verify("--from-topic", "-", stdin=copied([*lines[:2], *lines[4:]]))
    altered = verify("--from-topic", "-", stdin=copied([lines[0].replace(b"adopted", b"refused")]))
    noise = verify("--from-topic", "-", "--json", stdin=b"hello\n")

    assert (1, 1, 1) == (missing.exit_code, altered.exit_code, noise.exit_code)
    assert "<stdin>:3: 2 missing before record 5" in missing.stdout
    assert "was altered" in altered.stdout
    assert (False, []) == (json.loads(noise.stdout)["whole"], json.loads(noise.stdout)["chains"])


def test_a_copy_proves_that_the_end_of_the_log_was_cut_off(path: Path, tmp_path: Path) -> None:
    write(path, 6)
    whole = path.read_bytes().splitlines(keepends=True)
    copy = tmp_path / "copy"
    copy.write_bytes(copied(path.read_bytes().splitlines()[1:5]))
    assert 0 == verify("--against", copy, path).exit_code

    path.write_bytes(b"".join(whole[:3]))
    assert 0 == verify(path).exit_code
    cut = verify("--against", copy, path)
    assert 1 == cut.exit_code
    assert f"{copy}:3: records 4 to 5 are not in the log" in cut.stdout

    write(path, 1)  # the chain goes on as if nothing had been
    assert 0 == verify(path).exit_code
    assert 1 == verify("--against", copy, path).exit_code


def test_a_copy_proves_that_the_log_was_made_anew(path: Path, tmp_path: Path) -> None:
    write(path, 6)
    before = path.read_bytes().splitlines()
    path.unlink()
    write(path, 3, event="file.gone")
    copy = tmp_path / "copy"

    copy.write_bytes(copied(before))
    anew = verify("--against", copy, path)
    copy.write_bytes(copied(before) + copied(path.read_bytes().splitlines()))
    went_on = verify("--against", copy, path)

    assert (1, 1) == (anew.exit_code, went_on.exit_code)
    assert f"{copy}:1: nothing of the copy is in the log" in anew.stdout
    assert f"{copy}:1: records 1 to 6 are not in the log" in went_on.stdout
    assert 0 == verify("--from-topic", copy).exit_code, "both chains are whole"


def test_what_was_rotated_out_is_no_loss(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    write(path, 10)
    copy.write_bytes(copied(path.read_bytes().splitlines()))
    write(path, 40, bytes_max=2500, files_max=2)
    copy.write_bytes(copy.read_bytes() + copied(path.read_bytes().splitlines()))

    assert 0 == verify("--against", copy, path).exit_code


def test_two_ways_to_check_are_one_too_many(path: Path) -> None:
    write(path, 1)
    assert 64 == verify("--from-topic", "-", path, stdin=b"").exit_code


# ---- the agent on real Kafka


IMPATIENT: dict[str, Any] = {
    "retry": {"backoff_s": 0.1, "backoff_max_s": 0.3},
    "breaker": {"cooldown_s": 0.3},
    "source": {"scan_s": 0.2},
}


@pytest.fixture
def made(kafka: str) -> Topics:
    topics = named(kafka)
    for topic in (topics.events, topics.dead_letters):
        asyncio.run(real_kafka.create_topic(kafka, topic, 2))
    return topics


def named(kafka: str) -> Topics:
    name = f"test-{uuid4().hex}"
    return Topics(kafka, name, f"{name}-dlq")


def auditing(work: Path, topics: Topics, **audit: Any) -> Agent:
    """Return an agent whose audit topic is ``<events>-audit``."""
    section = {"topic": f"{topics.events}-audit", **audit}
    return Agent(work, topics, audit=section, agent={"node": "node-7"}, **IMPATIENT)


def create(topics: Topics) -> None:
    name = f"{topics.events}-audit"
    asyncio.run(real_kafka.create_topic(topics.bootstrap_servers, name, 3))


def in_topic(topics: Topics) -> list[bytes]:
    """Return the values of the audit topic; all are of one node and so in one partition."""
    name = f"{topics.events}-audit"
    found = asyncio.run(real_kafka.read_all(topics.bootstrap_servers, name))
    assert {b"node-7"} >= {record.key for record in found}
    assert 1 >= len({record.partition for record in found})
    return [record.value for record in found]


def assert_copied(agent: Agent) -> list[bytes]:
    """Assert that the topic has all of the log, in order, and is whole by itself; return it."""
    found = in_topic(agent.topics)
    text = b"".join(line + b"\n" for line in found)
    alone = verify("--from-topic", "-", stdin=text)
    assert 0 == alone.exit_code, alone.output
    path = agent.state_dir / "audit.jsonl"
    held = verify("--against", "-", path, stdin=text)
    assert 0 == held.exit_code, held.output
    once = list(dict.fromkeys(found))
    files = [p for p in agent.state_dir.glob("audit.jsonl*") if "sent" not in p.name]
    assert once[-1] == path.read_bytes().splitlines()[-1]
    assert set(once) >= {line for file in files for line in file.read_bytes().splitlines()}
    seqs = [record.seq for line in once if (record := parsed(line))]
    assert seqs == [*range(1, len(once) + 1)]
    return found


def unsent(agent: Agent) -> float:
    return agent.metric("audit_unsent")


def ups(agent: Agent) -> list[dict[str, Any]]:
    return [entry for entry in agent.log_entries("sink.up") if entry["sink"] == "audit"]


@pytest.mark.kafka
def test_each_record_arrives_once_and_the_last_one_at_the_stop(
    made: Topics, tmp_path: Path
) -> None:
    create(made)
    with auditing(tmp_path, made) as agent:
        for number in range(LINES):
            append(agent.root / f"app/{number}.jsonl", [feedback(number)])
        agent.start()
        agent.until_delivered(LINES)
        assert 0 == agent.stop()
        (said,) = agent.log_entries("audit.copied")
        assert 0 == said["unsent"]
        found = assert_copied(agent)
        assert b'"event":"agent.stopped"' in found[-1]

        agent.start()
        assert 0 == agent.stop()
        again = assert_copied(agent)
    assert len(again) == len(set(again)), "nothing goes twice where nothing was killed"


@pytest.mark.long
@pytest.mark.kafka
def test_a_killed_agent_goes_on_with_the_copy(made: Topics, tmp_path: Path) -> None:
    create(made)
    chance = random.Random(7)  # noqa: S311 - chance that can be had again
    with auditing(tmp_path, made) as agent:
        for life in range(5):
            for number in range(20):
                append(agent.root / f"app/{life}-{number}.jsonl", [feedback(20 * life + number)])
            agent.start()
            time.sleep(chance.uniform(0, 2.5))
            agent.kill()
        agent.start()
        agent.until(lambda: agent.metric("lag_bytes") == 0, "all read")
        assert 0 == agent.stop()
        assert_copied(agent)


@pytest.mark.kafka
def test_a_topic_that_is_missing_delays_the_copy_and_nothing_else(
    made: Topics, tmp_path: Path
) -> None:
    """The file is read once there is a topic, also what a life before wrote."""
    with auditing(tmp_path, made) as agent:
        append(agent.root / "app/a.jsonl", map(feedback, range(LINES)))
        agent.start()
        agent.until_delivered(LINES)
        agent.until(lambda: unsent(agent) > 1, "unsent")
        assert [] == agent.not_ready()
        assert "topic_missing" == agent.status()["sinks"]["audit"]["problem"]
        assert 0 == agent.stop()
        (said,) = agent.log_entries("audit.copied")
        assert said["unsent"] > 1

        agent.start()
        create(made)
        agent.until(lambda: bool(ups(agent)), "sink.up")
        assert 0 == agent.stop()
        assert_copied(agent)


@pytest.mark.kafka
def test_what_is_rotated_out_before_it_is_sent_is_said_in_the_copy(
    made: Topics, tmp_path: Path
) -> None:
    create(made)
    with auditing(tmp_path, made, bytes_max=65536, files_max=2) as agent:
        assert 0 == agent.start().stop()
        write(agent.state_dir / "audit.jsonl", 1500, bytes_max=65536, files_max=2)
        agent.start()
        agent.until(lambda: bool(agent.log_entries("audit.not_copied")), "a gap")
        assert 0 == agent.stop()

    found = in_topic(made)
    (skipped,) = (json.loads(line) for line in found if b'"copy.skipped"' in line)
    seqs = [json.loads(line)["seq"] for line in found]
    assert skipped["after"] + skipped["records"] + 1 == seqs[seqs.index(skipped["after"]) + 1]
    alone = verify("--from-topic", "-", stdin=b"".join(line + b"\n" for line in found))
    assert f"{skipped['records']} missing" in alone.stdout


@pytest.mark.kafka
def test_another_topic_gets_all_that_is_kept(made: Topics, tmp_path: Path) -> None:
    create(made)
    with auditing(tmp_path, made) as agent:
        assert 0 == agent.start().stop()
    another = Topics(made.bootstrap_servers, f"{made.events}-2", made.dead_letters)
    asyncio.run(real_kafka.create_topic(another.bootstrap_servers, another.events, 1))
    create(another)
    with auditing(tmp_path, another) as agent:
        assert 0 == agent.start().stop()
        assert_copied(agent)
