"""Kafka is away for longer than patience lasts: lines go through the spool, and all is as if not.

The embedded broker closes connections at once, and forgets no answer: what was under way when it
went is known to be refused or acknowledged. So nothing at all may arrive twice here.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.demo.broker import ALL_BROKERS, EmbeddedKafka
from agent.demo.scene import Topics
from tests.running import Agent, append, assert_each_once, feedback, mock_topics, verdict

IMPATIENT: dict[str, Any] = {
    "retry": {"backoff_s": 0.2, "backoff_max_s": 1},
    "breaker": {"cooldown_s": 1, "ack_age_max_s": 1},
}
SPOOL_BYTES = 1 << 20
SLOW_MS = 200
"""What brokers take for an answer where a test has to meet the agent while it replays."""
SMALL: dict[str, Any] = {
    "in_flight": {"bytes_max": SPOOL_BYTES},
    "kafka": {"compression": "none"},
}


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def spooled(agent: Agent, sink: str = "events") -> int:
    return int(agent.status()["sinks"][sink]["spooled_records"])


@contextmanager
def writing(path: Path) -> Iterator[list[int]]:
    """Append to ``path`` until the end of the block; the list holds one entry a line by then."""
    stopped, written = threading.Event(), list[int]()

    def write() -> None:
        while not stopped.wait(0.02):
            begin = len(written)
            written.extend(range(begin, begin + 20))
            append(path, map(feedback, range(begin, begin + 20)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stopped.set()
        writer.join()


def begin_outage(agent: Agent, embedded: EmbeddedKafka, lines: int) -> None:
    """Start the agent, let Kafka go, and write: ``lines`` in all, the first of them delivered."""
    path = agent.root / "acme/a.jsonl"
    append(path, [feedback(0)])
    agent.start()
    agent.until_delivered(1)
    embedded.broker_down()
    append(path, map(feedback, range(1, lines)))


def test_lines_go_through_the_spool_and_live_again_in_order(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Across both seams, under a writer that never pauses; the producer lives, so nothing twice."""
    with Agent(tmp_path, mock, **IMPATIENT) as agent:
        path = agent.root / "acme/a.jsonl"
        agent.start()
        with writing(path) as written:
            agent.until_delivered(200)
            embedded.broker_down()
            agent.until(lambda: agent.mode() == "spooling", "spooling")
            assert not agent.not_ready(), "it takes lines in"
            agent.until(lambda: spooled(agent) > 2000, "the spool fills")
            assert agent.behind_bytes() < path.stat().st_size / 2, "files may go"
            embedded.broker_up()
            agent.until(lambda: agent.mode() == "live", "live again")
            assert 0 == agent.metric("spool_records", sink="events")
        agent.until_delivered(len(written))
        assert agent.metric("spooled_total", sink="events") == agent.metric(
            "replayed_total", sink="events"
        )
        modes = [e["event"] for e in agent.log_entries() if e.get("sink") == "events"]
        assert ["sink.up", "sink.down", "spool.mode"] == modes[:3]

        assert 0 == agent.stop()
        assert_each_once(agent, len(written))


def test_a_kill_while_spooling_and_a_start_without_kafka_lose_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """What is committed in the spool counts as settled: the file may be gone by then."""
    with Agent(tmp_path, mock, kafka={"start_s": 1}, **IMPATIENT) as agent:
        path = agent.root / "acme/a.jsonl"
        agent.start()
        with writing(path) as written:
            agent.until_delivered(100)
            embedded.broker_down()
            agent.until(lambda: spooled(agent) > 500, "the spool fills")
            agent.kill()
            agent.start()
            agent.until(lambda: agent.mode() == "spooling", "spooling, for the spool is not empty")
            before = spooled(agent)
            agent.until(lambda: spooled(agent) > before + 500, "it fills on")
            agent.kill()
            agent.start()
            agent.until(lambda: spooled(agent) > before + 500, "nothing of it is gone")
            embedded.rtt(ALL_BROKERS, SLOW_MS)
            embedded.broker_up()
            agent.until(lambda: agent.mode() == "replaying", "replaying")
            agent.kill()
            embedded.rtt(ALL_BROKERS, 0)
            agent.start()
        agent.until(lambda: agent.mode() == "live" and not agent.behind_bytes(), "live")
        assert 0 == agent.stop()
        found = verdict(agent)
        assert found.ok, found.examples
        assert len(written) == found.lines == found.delivered


def test_a_stop_while_the_spool_is_replayed_sends_the_rest_of_it(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Where a node goes away with its spool, or a pod's own volume, it is the last chance."""
    with Agent(tmp_path, mock, **IMPATIENT) as agent:
        begin_outage(agent, embedded, 5000)
        agent.until(lambda: not agent.behind_bytes(), "settled by the spool")
        embedded.rtt(ALL_BROKERS, SLOW_MS)
        embedded.broker_up()
        agent.until(lambda: agent.mode() == "replaying", "replaying")
        append(agent.root / "acme/a.jsonl", map(feedback, range(5000, 5100)))
        assert 0 == agent.stop()
        assert not agent.log_entries("drain.cut_short")

        assert_each_once(agent, 5100)


def test_dead_letters_of_a_backlog_go_to_their_topic_from_the_first_one_on(
    mock: Topics, tmp_path: Path
) -> None:
    """Not through the spool because events were connected a moment earlier, at a start."""
    with Agent(tmp_path, mock) as agent:
        for first in range(0, 3000, 1000):
            lines = [
                feedback(n) if n % 2 else b"no json %d" % n for n in range(first, first + 1000)
            ]
            append(agent.root / "acme/a.jsonl", lines)
            agent.start()
            assert 0 == agent.stop()
            assert not agent.log_entries("spool.mode")

        assert_each_once(agent, 3000)


def test_a_file_that_is_gone_after_it_was_spooled_arrives(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """The point of a spool: the disk of the apps need not wait for Kafka."""
    with Agent(tmp_path, mock, **IMPATIENT) as agent:
        begin_outage(agent, embedded, 5000)
        path = agent.root / "acme/a.jsonl"
        agent.until(lambda: not agent.behind_bytes(), "settled by the spool")
        kept = path.rename(tmp_path / "kept.jsonl")
        embedded.broker_up()
        agent.until_delivered(5000)

        assert 0 == agent.stop()
        kept.rename(path)  # for the oracle
        assert_each_once(agent, 5000)


def test_a_stop_in_an_outage_reads_all_into_the_spool(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    own = {"drain_s": 3600}
    with Agent(tmp_path, mock, agent=own, kafka={"start_s": 1}, **IMPATIENT) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(0)])
        agent.start()
        agent.until_delivered(1)
        embedded.broker_down()
        append(path, [feedback(1)])
        agent.until(lambda: agent.mode() == "spooling", "spooling")
        append(path, map(feedback, range(2, 20_000)))

        assert 0 == agent.stop()
        assert not agent.log_entries("drain.cut_short"), agent.tail()
        with sqlite3.connect(agent.state_dir / "spool.db") as spool:
            held = spool.execute("SELECT sum(count) FROM spooled_events").fetchone()[0]
        spool.close()
        assert 19_999 == held

        embedded.broker_up()
        agent.start()
        agent.until_delivered(19_999)
        assert 0 == agent.stop()
        found = verdict(agent)
        assert found.ok, found.examples


def test_without_a_spool_reading_stops_and_goes_on(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Backpressure alone: in flight is full, the file is the buffer, and memory does not grow."""
    bounded: dict[str, Any] = {"in_flight": {"events_max": 500}, "spool": {"enabled": False}}
    with Agent(tmp_path, mock, **IMPATIENT, **bounded) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(0)])
        agent.start()
        agent.until_delivered(1)
        agent.until_committed()
        embedded.broker_down()
        for begin in range(1, 20_001, 500):
            append(path, map(feedback, range(begin, begin + 500)))
        agent.until(lambda: agent.not_ready() == ["events: unanswered"], "not ready")
        agent.until(lambda: agent.metric("in_flight_events") >= 500, "in flight is full")
        read = agent.metric("lines_read_total")
        assert 500 <= read < 4000, "one read over the limit at most"
        assert read - 1 == agent.metric("in_flight_events")
        embedded.broker_up()
        agent.until_delivered(20_001)

        assert 0 == agent.stop()
        assert_each_once(agent, 20_001)


def test_a_full_spool_stops_reading_and_drops_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    lines = 60_000
    with Agent(tmp_path, mock, spool={"bytes_max": SPOOL_BYTES}, **IMPATIENT, **SMALL) as agent:
        begin_outage(agent, embedded, lines)
        full = ["events: spool full (bytes_max)"]
        agent.until(lambda: agent.not_ready() == full, "full")
        held = agent.metric("spool_bytes", sink="events")
        assert SPOOL_BYTES <= held < 4 * SPOOL_BYTES, "what was in flight comes on top"
        assert agent.behind_bytes() > 0
        embedded.broker_up()
        agent.until_delivered(lines)

        agent.until(lambda: not agent.reasons(), "live")
        assert 0 == agent.stop()
        assert_each_once(agent, lines)


def test_drop_oldest_drops_the_oldest_and_counts_them_exactly(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Never the default: what is lost is exactly what the metric says."""
    lines = 60_000
    spool = {"bytes_max": 6 * SPOOL_BYTES, "when_full": "drop_oldest"}
    with Agent(tmp_path, mock, spool=spool, **IMPATIENT, **SMALL) as agent:
        begin_outage(agent, embedded, lines)
        agent.until(lambda: not agent.behind_bytes(), "all read")
        dropped = agent.metric("spool_dropped_total", sink="events")
        assert dropped > 0
        embedded.broker_up()
        agent.until_delivered(lines - int(dropped))

        agent.until(lambda: agent.mode() == "live", "live")
        assert 0 == agent.stop()
        found = verdict(agent)
        assert (dropped, 0, 0) == (found.lost, found.copies, found.out_of_order)


def test_a_flood_of_bad_lines_slows_its_client_and_no_other(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """It says so, and lets go by itself; no line is held back for good."""
    with Agent(tmp_path, mock, dlq={"topic": mock.dead_letters, "lines_per_s_max": 300}) as agent:
        append(agent.root / "noisy/a.jsonl", [b"bad"] * 3000)
        agent.start()
        agent.until(lambda: agent.metric("lines_read_total") == 3000, "read")
        append(agent.root / "noisy/a.jsonl", [b"bad"] * 10)
        agent.until(lambda: agent.metric("clients_slowed") == 1, "slowed")
        append(agent.root / "quiet/a.jsonl", map(feedback, range(1000)))
        agent.until_delivered(1000)  # its debt is paid after nine seconds
        assert 1 == agent.metric("clients_slowed"), "the others did not wait for it"
        agent.until_delivered(1000, 3010)
        agent.until(lambda: not agent.metric("clients_slowed"), "released")

        said = [(e["event"], e["client"]) for e in agent.log_entries() if "client" in e]
        assert [("client.slowed", "noisy"), ("client.released", "noisy")] == said
        assert 0 == agent.stop()
        assert_each_once(agent, 4010)


def test_a_client_over_its_quota_is_read_later_and_a_stop_reads_what_is_there(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Nothing is dropped, nobody else waits. Paying the debt would take longer than this test."""
    quota = {"client": {"events_per_s": 1.0, "burst_s": 1.0}}
    with Agent(tmp_path, mock, quota=quota) as agent:
        append(agent.root / "greedy/a.jsonl", map(feedback, range(3000)))
        agent.start()
        agent.until(lambda: agent.metric("clients_slowed") == 1, "slowed")
        append(agent.root / "quiet/a.jsonl", [feedback(3000)])
        agent.until(lambda: "quiet/a.jsonl" not in behind(agent), "delivered")
        assert agent.metric("lines_read_total") < 3001, "greedy waits"

        assert 0 == agent.stop()

        said = [
            (e["event"], e["client"], e["reason"]) for e in agent.log_entries() if "client" in e
        ]
        spell = ("greedy", "events_per_s")
        assert [("client.slowed", *spell), ("client.released", *spell)] == said
        assert_each_once(agent, 3001)


def behind(agent: Agent) -> set[str]:
    """Return the files that are not settled to their end."""
    rows = {file["path"]: file["watermark"] for file in agent.status()["files"]}
    files = {str(p.relative_to(agent.root)): p.stat().st_size for p in agent.root.rglob("*.jsonl")}
    return {path for path, size in files.items() if rows.get(path, -1) < size}
