"""Lines without end and files that are mostly nothing: real files, a real agent, flat memory.

``FEEDBACK_AGENT_LONG_LINE_BYTES=3000000000`` writes a line of 3 GB instead of 200 MB.
"""

import os
import re
from pathlib import Path

import pytest

from agent.core.lines import CHUNK_BYTES
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests.running import Agent, append, feedback, mock_topics, records

LONG_BYTES = int(os.environ.get("FEEDBACK_AGENT_LONG_LINE_BYTES", "200000000"))
HOLE_BYTES = 8 << 30
GROWTH_KIB_MAX = 8 << 10
LINES = 300
WITHIN_S = 120 + LONG_BYTES / 20e6


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def peak_kib(agent: Agent) -> int:
    assert agent.pid is not None
    status = Path(f"/proc/{agent.pid}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    return int(found[1])


def warmed_up(agent: Agent) -> int:
    """Let the agent do all it does once, with lines as long as any; return its peak."""
    long = feedback(0, metadata={"x": "y" * 700_000})
    append(agent.root / "acme/warm.jsonl", [feedback(n) for n in range(LINES)] + [long] * 4)
    append(agent.root / "acme/warm.jsonl", [b"x" * 1_000_000])
    agent.until_delivered(LINES + 4, 1)
    return peak_kib(agent)


def test_a_line_of_gigabytes_costs_no_memory(mock: Topics, tmp_path: Path) -> None:
    """It is a dead letter, the lines around it are events, and nothing of it is held."""
    with Agent(tmp_path, mock) as agent:
        agent.start()
        before_kib = warmed_up(agent)
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(n) for n in range(1000, 1000 + LINES)])
        block = b"x" * (1 << 20)
        with path.open("ab") as file:
            for _ in range(LONG_BYTES >> 20):
                file.write(block)
            file.write(b"\n")
        append(path, [feedback(n) for n in range(2000, 2000 + LINES)])

        agent.until_delivered(3 * LINES + 4, 2, within_s=WITHIN_S)

        assert peak_kib(agent) - before_kib < GROWTH_KIB_MAX
        assert 0 == agent.stop()
    dead = [record for record in records(mock, mock.dead_letters) if len(record.value) < 100_000]
    headers = [dict(record.headers) for record in dead]
    assert {b"oversize"} == {h["reason"] for h in headers}
    assert b"%d" % (LONG_BYTES >> 20 << 20) in {h["cut"] for h in headers}


def test_a_hole_of_8_gib_costs_neither_memory_nor_reading(mock: Topics, tmp_path: Path) -> None:
    """As truncation leaves it under a writer that goes on where it was."""
    with Agent(tmp_path, mock) as agent:
        agent.start()
        before_kib = warmed_up(agent)
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(n) for n in range(1000, 1000 + LINES)])
        os.truncate(path, HOLE_BYTES)
        append(path, [feedback(n) for n in range(2000, 2000 + LINES)])

        agent.until_delivered(3 * LINES + 4, 1)

        assert peak_kib(agent) - before_kib < GROWTH_KIB_MAX
        assert HOLE_BYTES - (1 << 20) < agent.metric("hole_bytes_total") < HOLE_BYTES
        assert 1 == agent.metric("lines_rejected_total")


@pytest.mark.parametrize("hole_bytes", [1, 5000, CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
def test_lines_before_and_behind_a_hole_are_events(
    mock: Topics, tmp_path: Path, hole_bytes: int
) -> None:
    """At the beginning as in the middle, whatever its length is against one read."""
    first, second = feedback(1) + b"\n", feedback(2) + b"\n"
    with Agent(tmp_path, mock) as agent:
        (agent.root / "acme").mkdir()
        hole = bytes(hole_bytes)
        (agent.root / "acme/a.jsonl").write_bytes(hole + first + hole + second)
        agent.start()
        agent.until_delivered(2)

        assert (2, 0) == (agent.metric("lines_read_total"), agent.metric("lines_rejected_total"))
        assert 2 * hole_bytes == agent.metric("hole_bytes_total")
        agent.until(lambda: agent.behind_bytes() == 0, "a checkpoint behind the last line")


def test_a_file_that_was_allocated_ahead_is_read_as_it_is_filled(
    mock: Topics, tmp_path: Path
) -> None:
    """Its NULs are no hole: lines come where they stand. Nothing goes twice."""
    with Agent(tmp_path, mock) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(0)])
        fd = os.open(path, os.O_WRONLY)
        end = os.fstat(fd).st_size
        os.posix_fallocate(fd, end, 2_000_000)
        agent.start()
        for n in range(1, 20):
            line = feedback(n) + b"\n"
            end += os.pwrite(fd, line, end)
            agent.until_delivered(n + 1)
        os.close(fd)

        assert 20 == agent.metric("lines_read_total")
        assert 0 == agent.metric("generations_total")
        assert 0 == agent.stop()


def test_the_last_line_of_a_deleted_file_is_a_dead_letter(mock: Topics, tmp_path: Path) -> None:
    """What an app that died could not end is not lost with its file."""
    with Agent(tmp_path, mock) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(0)])
        with path.open("ab") as file:
            file.write(b"\0" * 100 + b'{"type":"user_feed')
        agent.start()
        agent.until_delivered(1)
        path.unlink()

        assert 0 == agent.stop()
    (dead,) = records(mock, mock.dead_letters)
    headers = dict(dead.headers)
    assert (b'{"type":"user_feed', b"unterminated") == (dead.value, headers["reason"])
    assert "cut" not in headers, "all that somebody wrote is there"
