"""Whatever is missing: the agent comes up or ends with its code, says why once, and goes on by
itself when it is there."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from agent import config, pipeline
from agent.assembly import in_force
from agent.database import MAJOR
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics, write_config
from agent.intake import Intake
from agent.pipeline import DRAIN_STALL_S
from agent.spool import Spool
from agent.store import Store
from agent.wiring import Threads, Wiring
from tests import conftest, real_kafka
from tests.running import (
    NOWHERE,
    Agent,
    append,
    assert_each_once,
    event_id,
    feedback,
    mock_topics,
    records,
    verdict,
)

QUICK: dict[str, Any] = {
    "retry": {"backoff_s": 0.2, "backoff_max_s": 1},
    "breaker": {"cooldown_s": 1},
}
"""So that a test needs not wait as long as a node does."""
ENDLESS = {"drain_s": 3600}
"""A stop that ends at all does not wait for what cannot be."""
DOWN_S = 5.0


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def sole_line(agent: Agent) -> str:
    """Return what it said in all, which has to be one line and no traceback."""
    lines = agent.log_text().splitlines()
    assert 1 == len(lines), agent.log_text()
    return lines[0]


# ---- Kafka


def test_without_kafka_it_comes_up_says_so_once_and_stops(
    tmp_path: Path,
) -> None:
    """Restarting would not bring Kafka back, so it is alive; it takes lines in, and says why."""
    with Agent(tmp_path, NOWHERE, agent=ENDLESS, kafka={"start_s": 1}, **QUICK) as agent:
        append(agent.root / "acme/a.jsonl", [feedback(1)])
        agent.start()
        agent.until(lambda: bool(agent.log_entries("kafka.absent_at_start")), "start_s is over")
        time.sleep(3)  # a storm would need no longer

        assert 200 == agent.get("/healthz").status
        assert "events: spooling (unreachable)" in agent.reasons()
        assert not agent.not_ready()
        assert 1 == agent.metric("spool_records", sink="events")
        down = agent.log_entries("sink.down")
        assert {"events", "dead_letters"} == {entry["sink"] for entry in down}
        assert 2 == len(down), "said more than once"
        assert len(agent.log_text().splitlines()) < 15, agent.log_text()

        assert 0 == agent.stop()
        assert "Traceback" not in agent.log_text()


def test_a_broker_that_appears_later_gets_everything(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    embedded.broker_down()
    with Agent(tmp_path, mock, kafka={"start_s": 1}, **QUICK) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(500)))
        agent.start()
        agent.until(lambda: bool(agent.log_entries("kafka.absent_at_start")), "start_s is over")
        embedded.broker_up()
        agent.until_delivered(500)

        agent.until(lambda: not agent.not_ready(), "ready")
        assert 0 == agent.stop()
        assert_each_once(agent, 500)


def test_an_outage_of_all_brokers_loses_nothing_and_sends_nothing_twice(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """A writer goes on meanwhile. What was under way when they went is known to be refused or
    acknowledged here: the mock forgets no answer, it closes the connection before it reads."""
    with Agent(tmp_path, mock, **QUICK) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, map(feedback, range(1000)))
        agent.start()
        agent.until_delivered(1000)
        embedded.broker_down()
        for begin in range(1000, 3000, 100):
            append(path, map(feedback, range(begin, begin + 100)))
            time.sleep(DOWN_S / 20)
        embedded.broker_up()
        agent.until_delivered(3000)

        assert 0 == agent.stop()
        assert_each_once(agent, 3000)
        assert len(agent.log_entries("sink.down")) <= 4, agent.tail()


def test_sigterm_while_the_brokers_are_down_does_not_wait_for_them(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Nothing can be acknowledged then; the next life goes on from the checkpoints."""
    with Agent(tmp_path, mock, agent=ENDLESS, **QUICK) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, map(feedback, range(1000)))
        agent.start()
        agent.until_delivered(1000)
        embedded.broker_down()
        append(path, map(feedback, range(1000, 2000)))
        agent.until(lambda: agent.metric("lines_read_total") == 2000, "read")
        assert 0 == agent.stop()

        embedded.broker_up()
        agent.start()
        agent.until_delivered(1000)
        assert 0 == agent.stop()
        assert_each_once(agent, 2000)


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a broker that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_broker_that_never_answers_holds_up_neither_start_nor_stop(
    deaf: str, tmp_path: Path
) -> None:
    silent = Topics(deaf, "feedback-events", "feedback-events-dlq")
    kafka = {"start_s": 1, "request_timeout_s": 3}
    with Agent(tmp_path, silent, agent=ENDLESS, kafka=kafka, **QUICK) as agent:
        agent.start()
        agent.until(lambda: bool(agent.log_entries("sink.down")), "sink.down")
        agent.until(lambda: agent.reasons()[:1] == ["events: spooling (unreachable)"], "the reason")

        assert 0 == agent.stop()


def test_a_second_sigterm_ends_it_at_once(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    with Agent(tmp_path, mock, **QUICK) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(1)])
        agent.start()
        agent.until_delivered(1)
        embedded.broker_down()
        append(path, [feedback(2)])
        agent.until(lambda: agent.metric("lines_read_total") == 2, "read")
        agent.signal(signal.SIGTERM)
        agent.until(lambda: bool(agent.log_entries("agent.stopping")), "agent.stopping")
        agent.stop()

        said = agent.log_entries("agent.stopping", "agent.stopped")
        began, ended = (datetime.fromisoformat(entry["at"]) for entry in said)
        assert (ended - began).total_seconds() < DRAIN_STALL_S, "it waited for Kafka"
        assert "Traceback" not in agent.log_text()


# ---- topics


async def _topic_names(bootstrap: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()


@pytest.mark.kafka
def test_a_missing_topic_is_named_never_created_and_waited_for(kafka: str, tmp_path: Path) -> None:
    """The broker would create it on demand, with one partition: this must be nobody's accident."""
    wanted = Topics(kafka, f"later-{os.getpid()}-{time.time_ns()}", f"dlq-{time.time_ns()}")
    asyncio.run(real_kafka.create_topic(kafka, wanted.dead_letters, 1))
    with Agent(tmp_path, wanted, kafka={"start_s": 1}, **QUICK) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(100)))
        agent.start()
        missing = "events: spooling (topic_missing)"
        agent.until(lambda: missing in agent.reasons(), "topic_missing")
        time.sleep(2)
        assert 200 == agent.get("/healthz").status
        assert 1 == len(agent.log_entries("sink.down")), agent.tail()
        assert wanted.events not in asyncio.run(_topic_names(kafka))

        asyncio.run(real_kafka.create_topic(kafka, wanted.events, 12))
        agent.until_delivered(100)
        assert 0 == agent.stop()
        assert_each_once(agent, 100)


@pytest.mark.kafka
async def test_a_missing_dead_letter_topic_does_not_stop_good_events(
    kafka: str, topics: conftest.Topics, tmp_path: Path
) -> None:
    """Invariant 6. The dead letters wait and go when their topic is there."""
    dead_letters = f"dlq-{os.getpid()}-{time.time_ns()}"
    wanted = Topics(kafka, await topics(), dead_letters)
    with Agent(tmp_path, wanted, **QUICK) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [b"bad", *map(feedback, range(100))])
        agent.start()
        agent.until_delivered(100)
        append(path, map(feedback, range(100, 200)))
        agent.until_delivered(200)
        missing = ["dead_letters: spooling (topic_missing)"]
        agent.until(lambda: agent.reasons() == missing, "the reason")
        assert dead_letters not in await _topic_names(kafka)

        await real_kafka.create_topic(kafka, dead_letters, 1)
        agent.until_delivered(200, 1)
        assert 0 == agent.stop()
        await asyncio.to_thread(assert_each_once, agent, 201)


@pytest.mark.kafka
async def test_dead_letters_without_a_topic_wait_on_disk_and_hold_up_nothing(
    kafka: str, topics: conftest.Topics, tmp_path: Path
) -> None:
    """Invariant 6, far beyond what may be in flight, and across a SIGKILL."""
    dead_letters = f"dlq-{os.getpid()}-{time.time_ns()}"
    wanted = Topics(kafka, await topics(), dead_letters)
    with Agent(tmp_path, wanted, in_flight={"events_max": 200}, **QUICK) as agent:
        append(agent.root / "acme/a.jsonl", [b"bad", *map(feedback, range(2000)), b"worse"])
        append(agent.root / "beta/a.jsonl", map(feedback, range(2000, 4000)))
        agent.start()
        agent.until_delivered(4000)
        agent.until(lambda: agent.metric("spool_records", sink="dead_letters") == 2, "both put by")
        agent.kill()

        await real_kafka.create_topic(kafka, dead_letters, 1)
        agent.start()
        agent.until_delivered(0, 2)
        agent.until(
            lambda: agent.metric("spool_records", sink="dead_letters") == 0,
            "the disk is empty again",
        )
        assert 0 == agent.stop()
        await asyncio.to_thread(_assert_all_there, agent, 4002)


def _assert_all_there(agent: Agent, lines: int) -> None:
    """A SIGKILL may have cost copies, but nothing is lost, reordered or misjudged."""
    found = verdict(agent)
    assert (lines, 0, 0, 0) == (found.lines, found.lost, found.out_of_order, found.misjudged)


# ---- the state directory


def test_a_state_directory_that_cannot_be_is_one_line_and_74(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Agent(tmp_path, NOWHERE, agent={"state_dir": str(tmp_path / "file/state")}) as agent:
        agent.launch()

        assert 74 == agent.ended()
        assert str(tmp_path / "file") in sole_line(agent)


def test_a_state_directory_that_is_not_writable_is_one_line_and_74(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o500)
    with Agent(tmp_path, NOWHERE, obedient=True) as agent:
        agent.launch()

        assert 74 == agent.ended()
        assert str(agent.state_dir) in sole_line(agent)


def test_a_second_agent_on_the_same_state_is_refused_with_75(mock: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, mock) as first:
        first.start()
        with Agent(tmp_path / "second", mock, agent={"state_dir": str(first.state_dir)}) as other:
            other.launch()

            assert 75 == other.ended()
            assert str(first.state_dir) in sole_line(other)
        append(first.root / "acme/a.jsonl", [feedback(1)])
        first.until_delivered(1)
        assert 0 == first.stop()


def test_a_state_of_a_newer_major_version_is_refused_with_76(tmp_path: Path) -> None:
    with Agent(tmp_path, NOWHERE) as agent:
        agent.state_dir.mkdir()
        with sqlite3.connect(agent.state_dir / "checkpoints.db") as database:
            database.execute(f"PRAGMA user_version={(MAJOR + 1) * 1000}")
        database.close()
        agent.launch()

        assert 76 == agent.ended()
        assert f"{MAJOR + 1}.0" in sole_line(agent)


def test_a_wrong_configuration_is_one_line_and_78(tmp_path: Path) -> None:
    with Agent(tmp_path, NOWHERE, batch={"records_mx": 5}) as agent:
        agent.launch()

        assert 78 == agent.ended()
        assert "records_mx" in sole_line(agent)


# ---- the watched directory


def test_a_watched_directory_that_appears_later_is_read(mock: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, mock, source={"scan_s": 1}) as agent:
        agent.root.rmdir()
        agent.start()
        agent.until(lambda: agent.not_ready() == ["root: missing"], "root: missing")
        time.sleep(2.5)
        assert 1 == len(agent.log_entries("root.scanned")), agent.tail()
        assert 200 == agent.get("/healthz").status

        append(agent.root / "acme/a.jsonl", map(feedback, range(100)))
        agent.until_delivered(100)
        agent.until(lambda: not agent.not_ready(), "ready")
        append(agent.root / "acme/a.jsonl", [feedback(100)])
        agent.until_delivered(101)
        assert 0 == agent.stop()
        assert_each_once(agent, 101)


def test_a_watched_directory_that_goes_and_comes_back_is_read(mock: Topics, tmp_path: Path) -> None:
    """An unmounted volume: what it held is not taken for deleted."""
    with Agent(tmp_path, mock, source={"scan_s": 1}) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(100)))
        agent.start()
        agent.until_delivered(100)
        away = agent.root.rename(tmp_path / "away")
        agent.until(lambda: agent.not_ready() == ["root: missing"], "root: missing")
        away.rename(agent.root)
        append(agent.root / "acme/a.jsonl", map(feedback, range(100, 200)))
        append(agent.root / "beta/b.jsonl", map(feedback, range(200, 300)))
        agent.until_delivered(300)

        assert 0 == agent.stop()
        assert_each_once(agent, 300)


def test_what_may_not_be_read_is_named_and_read_once_it_may(mock: Topics, tmp_path: Path) -> None:
    """A directory, a file, and the rest goes on meanwhile."""
    with Agent(tmp_path, mock, obedient=True, source={"scan_s": 1}) as agent:
        append(agent.root / "open/a.jsonl", map(feedback, range(10)))
        append(agent.root / "shut/a.jsonl", map(feedback, range(10, 20)))
        append(agent.root / "open/shut.jsonl", map(feedback, range(20, 30)))
        (agent.root / "shut").chmod(0)
        (agent.root / "open/shut.jsonl").chmod(0)
        agent.start()
        agent.until_delivered(10)
        agent.until(lambda: agent.metric("files", state="unreadable") == 2, "both are counted")
        time.sleep(2)
        assert 1 == len(agent.log_entries("file.refused")), agent.tail()

        (agent.root / "shut").chmod(0o700)
        (agent.root / "open/shut.jsonl").chmod(0o600)
        agent.until_delivered(30)
        agent.until(lambda: agent.metric("files", state="unreadable") == 0, "none is counted")
        assert 0 == agent.stop()
        assert_each_once(agent, 30)


def test_a_root_that_may_not_be_read_is_named_and_read_once_it_may(
    mock: Topics, tmp_path: Path
) -> None:
    with Agent(tmp_path, mock, obedient=True, source={"scan_s": 1}) as agent:
        append(agent.root / "acme/a.jsonl", map(feedback, range(10)))
        agent.root.chmod(0)
        agent.start()
        agent.until(lambda: agent.not_ready() == ["root: permission"], "root: permission")

        agent.root.chmod(0o700)
        agent.until_delivered(10)
        assert 0 == agent.stop()
        assert_each_once(agent, 10)


def test_a_line_appended_to_an_idle_file_needs_no_scan(mock: Topics, tmp_path: Path) -> None:
    """Scans an hour apart: only the kernel's hint can bring it."""
    with Agent(tmp_path, mock, source={"scan_s": 3600}) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(1)])
        agent.start()
        agent.until_delivered(1)
        time.sleep(1)

        append(path, [feedback(2)])
        agent.until_delivered(2)
        append(agent.root / "acme/new/b.jsonl", [feedback(3)])
        agent.until_delivered(3)
        assert 0 == agent.stop()
        assert [event_id(n) for n in (1, 2, 3)] == sorted(
            record.key.decode() for record in records(mock, mock.events)
        )


def test_a_stop_ends_though_hundreds_of_apps_write_on(mock: Topics, tmp_path: Path) -> None:
    """Each line brings a hint. What is written after the stop's own scan is the next life's."""
    stopped = threading.Event()

    def write() -> None:
        for number in itertools.count():
            append(agent.root / f"acme/{number % 400}.jsonl", [feedback(number)])
            if stopped.is_set():
                return

    with Agent(tmp_path, mock, agent=ENDLESS) as agent, ThreadPoolExecutor(1) as writer:
        try:
            writer.submit(write)
            agent.start()
            agent.until_delivered(2000)
            assert 0 == agent.stop()
        finally:
            stopped.set()
        assert not agent.log_entries("drain.cut_short"), agent.tail()


async def test_what_breaks_in_a_drain_does_not_end_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken invariant is the same bug whenever it shows."""

    async def broken(self: Intake) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr(Intake, "finish", broken)
    (tmp_path / "root").mkdir()
    write_config(tmp_path / "config.yaml", tmp_path / "root", tmp_path / "state", NOWHERE)
    loaded = config.load(tmp_path / "config.yaml", {})
    with (
        contextlib.closing(Store.open(loaded.agent.state_dir, loaded.node)) as store,
        contextlib.closing(Spool(tmp_path / "spool.db", {})) as spool,
        ThreadPoolExecutor(1) as thread,
    ):
        threads = Threads(thread, thread, thread)
        wired = Wiring(loaded, in_force(loaded), store, spool, threads)
        wired.events.outlet.described.set()
        with pytest.raises(AssertionError, match="planted"):
            await pipeline.Life(wired)._drain()
