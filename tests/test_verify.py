"""``feedback-agent verify`` as an operator types it: it names what is missing, and nothing else."""

import asyncio
import contextlib
import gzip
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from click.testing import CliRunner, Result
from msgspec.structs import replace

from agent import config as configuration
from agent.cli import main
from agent.clock import SystemClock
from agent.core.identity import Anchor
from agent.core.places import BEYOND, Place, parse_place
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from agent.harvester import first_generation, starting_at
from agent.opener import Descriptor
from agent.operator.verify import Options, verify
from agent.operator.verify.books import books
from agent.operator.verify.files import Index
from agent.store import Store
from tests import real_kafka, secured_kafka
from tests.conftest import RUN, SECURED
from tests.running import NOWHERE, Agent, append, feedback, mock_topics, records
from tests.secured_kafka import DESCRIBE, OUTSIDER, PASSWORD, USER, WRITE
from tests.test_store import checkpoint

SOON: dict[str, Any] = {"write_s": 0.05}
AT_STOP: dict[str, Any] = {"write_s": 3600.0}
LINES = 600
ALL = {"delivered": 2 * LINES, "dead_lettered": 2}
"""What ``ship`` ships."""


@pytest.fixture
def topics(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


class Kafka:
    """Makes topics of a new name, on either broker."""

    def __init__(self, bootstrap: str, make: Callable[[str, int, dict[str, str]], None]) -> None:
        self.bootstrap = bootstrap
        self._make = make

    def topic(self, partitions: int, **configs: str) -> str:
        name = f"test-{uuid4().hex}"
        self._make(name, partitions, {key.replace("_", "."): v for key, v in configs.items()})
        return name

    def topics(self, **configs: str) -> Topics:
        return Topics(self.bootstrap, self.topic(3, **configs), self.topic(1))


def mock(broker: EmbeddedKafka) -> Kafka:
    def make(name: str, partitions: int, _: dict[str, str]) -> None:
        broker.create_topic(name, partitions, 1)

    return Kafka(broker.bootstrap_servers, make)


@pytest.fixture
def mocked(embedded: EmbeddedKafka) -> Kafka:
    return mock(embedded)


@pytest.fixture
def real(kafka: str) -> Kafka:
    def make(name: str, partitions: int, configs: dict[str, str]) -> None:
        asyncio.run(real_kafka.create_topic(kafka, name, partitions, configs=configs))

    return Kafka(kafka, make)


def run(config: Path | Agent, *arguments: str) -> Result:
    path = config.config if isinstance(config, Agent) else config
    return CliRunner().invoke(main, ["verify", "--config", str(path), *arguments])


def verdict(config: Path | Agent, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = run(config, "--json", *arguments)
    assert code == done.exit_code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["whole"] == (code == 0)
    counts = ("delivered", "dead_lettered", "pending", "expired", "skipped", "missing")
    assert found["lines"] == sum(found[name] for name in counts)
    return found


def counts(found: dict[str, Any]) -> dict[str, int]:
    """Return the counts that are not zero, but for all lines."""
    names = ("delivered", "dead_lettered", "pending", "expired", "skipped", "missing", "copies")
    return {name: found[name] for name in names if found[name]}


def place(record: ConsumerRecord) -> Place:
    found = parse_place(dict(record.headers)["source"])
    assert found is not None
    return found


def produce(bootstrap: str, topic: str, these: Iterable[ConsumerRecord]) -> None:
    async def copying() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
        await producer.start()
        for record in these:
            await producer.send(topic, record.value, key=record.key, partition=record.partition,
                                headers=list(record.headers))  # fmt: skip
        await producer.stop()

    asyncio.run(copying())


def copied(agent: Agent, kafka: Kafka, *, removed: Container[Place] = (), again: int = 0) -> Path:
    """Copy the topic of events without some records, and others twice. Return a configuration that
    names the copy."""
    topics, topic = agent.topics, kafka.topic(3)
    kept = [r for r in records(topics, topics.events) if place(r) not in removed]
    produce(topics.bootstrap_servers, topic, [*kept, *kept[:again]])
    return configured(agent, topic, kafka={"topic": topic})


def configured(of: Agent, name: str, **sections: Mapping[str, object]) -> Path:
    """Return a configuration that differs from the agent's in some keys."""
    given = json.loads(of.config.read_text())
    for section, keys in sections.items():
        given[section] |= keys
    config = of.config.with_name(f"{name}.yaml")
    config.write_text(json.dumps(given))
    return config


def named(found: dict[str, Any]) -> set[tuple[str, int, int]]:
    """Return the file and the range of all that is missing."""
    return {
        (file["path"], one["start"], one["end"])
        for file in found["files"]
        for one in file["missing_ranges"]
    }


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Kafka]]:
    """Yield an agent that has shipped all there is, and its broker. Nothing of it may change."""
    with EmbeddedKafka(1) as broker:
        kafka = mock(broker)
        with Agent(tmp_path_factory.mktemp("shipped"), kafka.topics(), receipts=AT_STOP) as agent:
            ship(agent)
            yield agent, kafka


def write(agent: Agent) -> None:
    """Write two clients' files, of which one has bad lines and blank ones."""
    append(agent.root / "acme/a.jsonl", map(feedback, range(LINES)))
    rest = [*map(feedback, range(LINES, 2 * LINES)), b"not json", b"", b"  ", b"\0\0", b"bad"]
    append(agent.root / "other/b.jsonl", rest)


def ship(agent: Agent) -> None:
    write(agent)
    agent.start().until_delivered(2 * LINES, 2)
    agent.until_committed()
    agent.stop()


# ---- what is there, and what is not


def test_all_that_is_in_kafka_is_found_where_receipts_say(shipped: tuple[Agent, Kafka]) -> None:
    """No more is read than was acknowledged, and a scan finds the same."""
    agent, _ = shipped
    seeking, scanning = verdict(agent), verdict(agent, "--scan")
    for found in (seeking, scanning):
        assert ALL == counts(found)
        assert 2 * LINES + 2 == found["records"]
        clients = {file["client"]: file["lines"] for file in found["files"]}
        assert {"acme": LINES, "other": LINES + 2} == clients
    assert ("receipts", "topics") == (seeking["read"], scanning["read"])


def test_a_directory_or_a_file_may_be_named(shipped: tuple[Agent, Kafka]) -> None:
    agent, _ = shipped
    found = verdict(agent, str(agent.root / "acme"))
    assert ["acme/a.jsonl"] == [file["path"] for file in found["files"]]
    found = verdict(agent, str(agent.root / "other/b.jsonl"))
    assert {"delivered": LINES, "dead_lettered": 2} == counts(found)


def test_each_of_20_records_that_were_removed_is_named(shipped: tuple[Agent, Kafka]) -> None:
    assert_20_are_named(*shipped)


@pytest.mark.kafka
def test_so_it_is_on_a_real_kafka(real: Kafka, tmp_path: Path) -> None:
    with Agent(tmp_path, real.topics(), receipts=SOON) as agent:
        ship(agent)
        assert ALL == counts(verdict(agent))
        assert_20_are_named(agent, real)


def assert_20_are_named(agent: Agent, kafka: Kafka) -> None:
    sent = sorted({place(r) for r in records(agent.topics, agent.topics.events)})
    # no two of them beside each other, or they were one range
    removed = {*sent[:: len(sent) // 20][:20]}
    config = copied(agent, kafka, removed=removed)
    found, shown = verdict(config, code=1), run(config)

    assert {**ALL, "delivered": 2 * LINES - 20, "missing": 20} == counts(found)
    paths = {file["source"]: file["path"] for file in found["files"]}
    assert {(paths[p.source], p.start, p.end) for p in removed} == named(found)
    assert all(f"{p.start:,}" in shown.stdout for p in removed)
    assert "20 of 1,202 lines are missing" in shown.stdout
    assert 1 == shown.exit_code


def test_a_copy_without_anything_removed_is_whole(shipped: tuple[Agent, Kafka]) -> None:
    """Records that came again are counted, and are nothing wrong."""
    agent, kafka = shipped
    found = verdict(copied(agent, kafka, again=7))
    assert {**ALL, "copies": 7} == counts(found)


def test_records_of_others_are_passed_over(shipped: tuple[Agent, Kafka]) -> None:
    """A topic has records of other nodes, and anybody's who may write to it."""
    agent, kafka = shipped
    config = copied(agent, kafka)
    topic = json.loads(config.read_text())["kafka"]["topic"]

    async def strange() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
        await producer.start()
        for source in (b"1;ffffffffffffffff;0;0;9", b"1;x;y", b"\xff", None):
            headers = [] if source is None else [("source", source)]
            await producer.send_and_wait(topic, b"x", partition=0, headers=headers)
        await producer.stop()

    asyncio.run(strange())
    found = verdict(config)
    assert ALL == counts(found)
    assert 2 * LINES + 2 + 4 == found["records"]


@pytest.mark.long
def test_what_another_file_of_the_same_content_sent_is_no_proof(
    mocked: Kafka, tmp_path: Path
) -> None:
    """Two apps that write the same lines: one's records say nothing of the other's."""
    with Agent(tmp_path, mocked.topics(), receipts=SOON) as agent:
        for client in ("acme", "other"):
            append(agent.root / client / "a.jsonl", map(feedback, range(50)))
        agent.start().until_delivered(100)
        agent.stop()
        first, _ = verdict(agent)["files"]
        sent = {place(r) for r in records(agent.topics, agent.topics.events)}
        config = copied(agent, mocked, removed={p for p in sent if p.source == first["source"]})
        found = verdict(config, code=1)

    assert [(50, 0), (0, 50)] == [(f["missing"], f["delivered"]) for f in found["files"]]


# ---- what need not be there


def test_what_was_not_read_yet_is_pending(topics: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, topics) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(9)))
        agent.start().until_delivered(9)
        agent.stop()
        append(agent.root / "acme/a.jsonl", map(feedback, range(9, 14)))
        append(agent.root / "acme/new.jsonl", map(feedback, range(3)))
        with (agent.root / "acme/a.jsonl").open("ab") as file:
            file.write(b'{"torn')
        found = verdict(agent)
        assert {"delivered": 9, "pending": 8} == counts(found)
        assert ["", "not read yet"] == [file["note"] for file in found["files"]]
        assert "are in Kafka, none is missing" in run(agent).stdout


def test_what_is_in_the_spool_is_pending_until_it_is_replayed(
    topics: Topics, tmp_path: Path
) -> None:
    """It is settled, and so below the watermark; receipts know that it was put by, and then where
    the replay put it."""
    reader = tmp_path / "reader.yaml"
    reader.write_text(json.dumps({"kafka": {"bootstrap_servers": topics.bootstrap_servers}}))
    away: dict[str, Any] = {"start_s": 0.2}
    with Agent(tmp_path, NOWHERE, receipts=SOON, kafka=away) as agent:
        write(agent)
        agent.start()
        agent.until_committed()
        running = verdict(agent, "--consumer-config", str(reader))
        agent.kill()
        stopped = verdict(agent, "--consumer-config", str(reader))
        robbed = verdict(emptied(agent), "--consumer-config", str(reader), code=1)
    with Agent(tmp_path, topics, receipts=SOON) as agent:
        agent.start().until_delivered(2 * LINES, 2)
        agent.until(lambda: agent.mode() == "live", "replayed")
        agent.until_committed()
        replayed = verdict(agent)
        agent.stop()
        after = verdict(agent)

    assert {"pending": 2 * LINES + 2} == counts(running) == counts(stopped)
    assert {"delivered": 2 * LINES, "dead_lettered": 2} == counts(replayed) == counts(after)
    assert "receipts" == replayed["read"] == after["read"]
    # Spooled is no excuse for ever. What lies between dead letters that wait may be one of them.
    lost = [(file["path"], file["missing"], file["pending"]) for file in robbed["files"]]
    assert [("acme/a.jsonl", LINES, 0), ("other/b.jsonl", 0, LINES + 2)] == lost


def test_what_was_just_put_by_is_pending(topics: Topics, tmp_path: Path) -> None:
    """Nobody waits for the next writing of receipts: a running agent is asked to write them."""
    nowhere = Topics(topics.bootstrap_servers, topics.events, "absent")
    with Agent(tmp_path, nowhere, receipts=AT_STOP, kafka={"start_s": 0.2}) as agent:
        write(agent)
        agent.start().until_delivered(2 * LINES)
        agent.until(lambda: agent.metric("spooled_total", sink="dead_letters") == 2, "put by")
        assert {"delivered": 2 * LINES, "pending": 2} == counts(verdict(agent))


def emptied(agent: Agent) -> Path:
    """Copy the state directory and take the events out of the spool that is in it. Return a
    configuration that names the copy."""
    state = agent.state_dir.with_name("robbed")
    shutil.copytree(agent.state_dir, state, ignore=shutil.ignore_patterns("*.sock"))
    with contextlib.closing(sqlite3.connect(state / "spool.db")) as spool, spool:
        spool.execute("UPDATE bounds SET head = \"end\" WHERE name = 'events'")
    return configured(agent, "robbed", agent={"state_dir": str(state)})


@pytest.mark.long
@pytest.mark.kafka
def test_what_the_topic_kept_long_enough_is_expired_and_no_other(
    real: Kafka, tmp_path: Path
) -> None:
    """Retention is no loss; records that somebody deleted before are."""
    found = {}
    for retention_ms in ("1", "3600000"):
        topics, work = real.topics(retention_ms=retention_ms), tmp_path / retention_ms
        with Agent(work, topics, receipts=SOON) as agent:
            append(agent.root / "acme/a.jsonl", map(feedback, range(LINES)))
            agent.start().until_delivered(LINES)
            agent.stop()

            async def delete() -> None:
                admin = AIOKafkaAdminClient(bootstrap_servers=real.bootstrap)
                await admin.start()
                gone = {TopicPartition(topics.events, 0): RecordsToDelete(before_offset=20)}  # noqa: B023
                await admin.delete_records(gone)
                await admin.close()

            asyncio.run(delete())
            code = 0 if retention_ms == "1" else 1
            found[retention_ms] = counts(verdict(agent, code=code))

    assert LINES - 20 >= found["1"]["delivered"]  # the broker may have deleted more by now
    assert LINES - found["1"]["delivered"] == found["1"]["expired"]
    assert {"delivered": LINES - 20, "missing": 20} == found["3600000"]


@pytest.mark.long
def test_what_was_passed_over_on_purpose_is_skipped(topics: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, topics, source={"start_at": "end"}, receipts=SOON) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(9)))
        agent.start()
        agent.until(lambda: agent.status()["files_open"] == 1, "met")
        append(agent.root / "acme/a.jsonl", map(feedback, range(9, 13)))
        agent.until_delivered(4)
        agent.stop()
        assert {"skipped": 9, "delivered": 4} == counts(verdict(agent))


# ---- receipts that are not there


def test_without_receipts_all_is_read_before_anything_is_missing(
    topics: Topics, tmp_path: Path
) -> None:
    """A kill takes those of the last seconds, and no line."""
    with Agent(tmp_path, topics, receipts=AT_STOP) as agent:
        write(agent)
        agent.start().until_delivered(2 * LINES, 2)
        agent.until_committed()
        agent.kill()
        found = verdict(agent)
    assert {"delivered": 2 * LINES, "dead_lettered": 2} == counts(found)
    assert "topics" == found["read"]


def test_receipts_are_believed_in_nothing(shipped: tuple[Agent, Kafka], tmp_path: Path) -> None:
    """Where they name the wrong records, what is not there is looked for everywhere."""
    agent, _ = shipped
    shutil.copytree(agent.state_dir, tmp_path / "state")
    path = tmp_path / "state" / "receipts.jsonl"
    path.write_text(re.sub(r"\[[0-9]+,[0-9]+\]", "[0,0]", path.read_text()))
    config = configured(agent, "misled", agent={"state_dir": str(tmp_path / "state")})
    found = verdict(config)
    assert ALL == counts(found)
    assert "topics" == found["read"]


@pytest.mark.kafka
def test_a_time_bounds_what_is_read(real: Kafka, tmp_path: Path) -> None:
    """Nobody reads a week for a file of this morning: none of its lines is older than the file."""
    topics = real.topics()
    old_s = SystemClock().wall() - 3 * 86_400  # and not so old that the broker would drop them
    between = datetime.fromtimestamp(old_s + 86_400, UTC).isoformat()

    async def old() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=topics.bootstrap_servers)
        await producer.start()
        for number in range(300):
            at_ms = int(old_s * 1000)
            await producer.send(topics.events, b"x", partition=number % 3, timestamp_ms=at_ms)
        await producer.stop()

    asyncio.run(old())
    with Agent(tmp_path, topics, receipts={"enabled": False}) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(30)))
        agent.start().until_delivered(30)
        agent.stop()
        assert (30, 30) == ((found := verdict(agent))["records"], found["delivered"])
        assert 330 == verdict(agent, "--scan")["records"]
        assert 30 == verdict(agent, "--since", between)["records"]


# ---- files that move


@pytest.mark.long
def test_a_file_is_followed_through_rotation_truncation_and_compression(
    topics: Topics, tmp_path: Path
) -> None:
    """Its lines are sent under the names that it had: none of them is asked for twice."""
    with Agent(tmp_path, topics, receipts=SOON, source={"scan_s": 0.2}) as agent:
        moved, cut = agent.root / "acme/moved.jsonl", agent.root / "acme/cut.jsonl"
        append(moved, map(feedback, range(100)))
        append(cut, map(feedback, range(100, 200)))
        agent.start().until_delivered(200)
        agent.until_committed()
        with gzip.open(moved.with_name("moved.jsonl.1.gz"), "wb") as packed:
            packed.write(moved.read_bytes())
        moved.unlink()
        cut.with_name("cut.jsonl.1").write_bytes(cut.read_bytes())
        cut.write_bytes(b"")
        append(cut, map(feedback, range(200, 250)))
        agent.until_delivered(250)
        time.sleep(1)
        found = verdict(agent)
        agent.stop()
        after = verdict(agent)
    for one in (found, after):
        assert {"acme/cut.jsonl": 50, "acme/cut.jsonl.1": 100, "acme/moved.jsonl.1.gz": 100} == {
            file["path"]: file["delivered"] for file in one["files"]
        }
        assert 250 == one["lines"]
        assert 0 == one["gone_files"]


@pytest.mark.long
def test_of_a_file_that_is_gone_the_bytes_are_held_against_receipts(
    mocked: Kafka, tmp_path: Path
) -> None:
    with Agent(tmp_path, mocked.topics(), receipts=SOON) as agent:
        for name in ("a", "b"):
            append(agent.root / f"acme/{name}.jsonl", map(feedback, range(50)))
        agent.start().until_delivered(50)
        time.sleep(0.5)
        agent.stop()
        sizes = {path.name: path.stat().st_size for path in agent.root.rglob("*.jsonl")}
        sent = [place(r) for r in records(agent.topics, agent.topics.events)]
        for path in agent.root.rglob("*.jsonl"):
            path.unlink()
        assert (len({p.source for p in sent}), []) == (
            (found := verdict(agent))["gone_files"],
            found["gone"],
        )
        (gone,) = verdict(copied(agent, mocked, removed={sent[0]}), "--scan")["gone"]
    assert sent[0].end - sent[0].start == gone["gap_bytes"]
    assert gone["settled"] in sizes.values()
    assert (1, gone["settled"] - gone["gap_bytes"]) == (gone["gaps"], gone["delivered"])


def test_a_file_that_cannot_be_read_is_no_proof(
    shipped: tuple[Agent, Kafka], tmp_path: Path
) -> None:
    """Nor is it waited for."""
    os.mkfifo(tmp_path / "fifo.jsonl")
    agent, _ = shipped
    found = verdict(agent, str(tmp_path / "fifo.jsonl"), code=1)
    assert (1, "cannot be read: not_regular") == (found["unreadable"], found["files"][0]["note"])


def test_a_file_that_moves_meanwhile_is_not_compared(topics: Topics, tmp_path: Path) -> None:
    """Its lines are another file's by now, and none of them is missing."""
    names = ("deleted", "rotated", "stays", "truncated")
    with Agent(tmp_path, topics, receipts=SOON) as agent:
        for name in names:
            append(agent.root / f"acme/{name}.jsonl", [feedback(n, by=name) for n in range(20)])
        agent.start().until_delivered(80)
        agent.until_committed()
        agent.stop()
        config = configuration.load(agent.config, {})
        deleted, rotated, _, truncated = (agent.root / f"acme/{name}.jsonl" for name in names)

    def progress(what: str, _done: int, _total: int) -> None:
        if what == "comparing files" and deleted.exists():
            deleted.unlink()
            rotated.rename(rotated.with_name("rotated.jsonl.1"))
            truncated.write_bytes(b"")
            append(rotated, [feedback(21)])
            append(truncated, [feedback(22)])

    found = asyncio.run(verify(config, config.kafka, [], Options(), progress))

    moved = "moved or changed meanwhile: not compared"
    assert [moved, moved, "", moved] == [file.note for file in found.files]
    assert (True, 0, 20) == (found.whole, found.missing, found.delivered)


def test_names_that_are_no_text_are_printed(topics: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, topics) as agent:
        name = os.fsdecode(b"acme/\xff\x1b.jsonl")
        append(agent.root / name, [feedback(1)])
        found = verdict(agent)
        assert ["acme/\\xff\\x1b.jsonl"] == [file["path"] for file in found["files"]]
        assert "\x1b" not in run(agent).stdout


# ---- who may read


@pytest.mark.long
@pytest.mark.kafka
def test_who_may_only_write_is_told_what_to_do(
    request: pytest.FixtureRequest, kafka: str, tmp_path: Path
) -> None:
    """A node's principal has Write and Describe, and keeps them."""
    secured = secured_kafka.start(request.config.stash[RUN] / SECURED)
    topics = secured.topics()
    for topic in (topics.events, topics.dead_letters):
        secured.allow(topic, USER, WRITE, DESCRIBE)
        secured.allow(topic, OUTSIDER, 3, DESCRIBE)  # READ
    password = tmp_path / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    sasl = {"mechanism": "SCRAM-SHA-256", "username": USER, "password_file": str(password)}
    section = secured.kafka("SASL", topics, sasl=sasl)
    reader = tmp_path / "reader.yaml"
    reader.write_text(json.dumps({"kafka": {**section, "sasl": {**sasl, "username": OUTSIDER}}}))
    with Agent(tmp_path, topics, kafka=section, receipts=SOON) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(9)))
        agent.start().until_delivered(9)
        agent.stop()
        denied = run(agent)
        assert {"delivered": 9} == counts(verdict(agent, "--consumer-config", str(reader)))
    assert 1 == denied.exit_code
    assert f"{USER} may not read" in denied.stderr
    assert "--consumer-config" in denied.stderr
    assert 1 == len(denied.stderr.splitlines())


def test_a_broker_that_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    with Agent(tmp_path, NOWHERE, kafka={"request_timeout_s": 1}) as agent:
        append(agent.root / "acme/a.jsonl", [feedback(1)])
        command = [sys.executable, "-m", "agent", "verify", "--config", str(agent.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 1 == done.returncode
    assert done.stderr.startswith("feedback-agent: error: unreachable")
    assert 1 == len(done.stderr.splitlines())


def test_a_missing_topic_is_said(topics: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, Topics(topics.bootstrap_servers, "absent", "none")) as agent:
        done = run(agent)
    assert (1, "feedback-agent: error: there is no topic absent\n") == (
        done.exit_code,
        done.stderr,
    )


# ---- beside a running agent


def test_what_was_sent_above_the_checkpoint_counts(tmp_path: Path) -> None:
    """It is committed a moment after the acknowledgement; the file is the same all the same."""
    path = tmp_path / "a.jsonl"
    append(path, [b"0123456789"] * 9)
    with Descriptor(os.open(path, os.O_RDONLY)) as file:
        row = starting_at(22, file, first_generation(file.birth, "a.jsonl", "default"))
        known = Index([row]).identify(file, "a.jsonl", "default")
    assert (((row.source_id, 0), BEYOND[0]),) == known.own
    assert 22 == known.settled_to


def test_checkpoints_are_copied_while_they_are_written(tmp_path: Path) -> None:
    """A copy is as the database was at some time: all rows are of one commit, and none is gone."""
    with Agent(tmp_path, NOWHERE) as agent:
        config = configuration.load(agent.config, {})
    store, stop = Store.open(agent.state_dir, "demo"), threading.Event()
    first = [checkpoint(0, n) for n in range(200)]
    store.save(first)

    def write_on() -> None:
        watermark = 0
        while not stop.is_set():
            watermark += 1
            anchor = Anchor(watermark, b"x" * 16)
            store.save(
                [replace(row, watermark=watermark, anchor=anchor, older=()) for row in first]
            )

    writing = threading.Thread(target=write_on)
    writing.start()
    try:
        seen = [{row.watermark for row in books(config).rows} for _ in range(30)]
    finally:
        stop.set()
        writing.join()
        store.close()
    assert all(len(watermarks) == 1 for watermarks in seen)
    assert sorted(seen, key=max) == seen
    assert max(seen[-1]) > min(seen[0])


@pytest.mark.long
def test_what_the_agent_does_is_not_disturbed(topics: Topics, tmp_path: Path) -> None:
    """It writes, is proved again and again, and no line and no lock is lost."""
    with Agent(tmp_path, topics, receipts=SOON) as agent:
        agent.start()
        for number in range(6):
            append(agent.root / "acme/a.jsonl", map(feedback, range(number * 50, number * 50 + 50)))
            found = verdict(agent)
            assert not found["missing"]
        agent.until_delivered(300)
        assert 0 == agent.stop()
        assert {"delivered": 300} == counts(verdict(agent))
