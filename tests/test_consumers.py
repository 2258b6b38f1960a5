"""The consumer that the document shows keeps each event once, whoever is killed."""

import asyncio
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import real_kafka
from tests.patience import WITHIN_S
from tests.running import Agent, append, feedback, mock_topics

DOCUMENT = Path(__file__).parent.parent / "docs/consumers.md"
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LIVES, LINES = 3, 1500
"""Of the agent, and in each of them."""
SLOW_MS = 150


class Consumer:
    """The program of the document, life after life."""

    def __init__(self, work: Path, topics: Topics) -> None:
        (program,) = PROGRAM.findall(DOCUMENT.read_text())
        assert program.count("\n") < 50
        (work / "consumer.py").write_text(program)
        self._database = work / "events.db"
        self._arguments = [sys.executable, str(work / "consumer.py"), topics.bootstrap_servers]
        self._arguments += [topics.events, "readers", str(self._database)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._arguments)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def kept(self) -> int:
        if not self._database.exists():
            return 0
        connection = sqlite3.connect(self._database, timeout=WITHIN_S)
        try:
            (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        except sqlite3.OperationalError:  # it has not made its table yet
            return 0
        finally:
            connection.close()
        return int(count)

    def until(self, count: int) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while self.kept() < count:
            assert self._process.poll() is None, "it ended"
            assert time.monotonic() < deadline_s, self.kept()
            time.sleep(0.1)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_it_keeps_each_event_once_through_kills_of_the_agent_and_of_itself(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """Slow brokers: what is killed has batches under way that arrive, so there are copies."""
    topics = mock_topics(embedded)
    with Agent(tmp_path, topics, in_flight={"events_max": 500}) as agent:
        consumer = Consumer(tmp_path, topics)
        try:
            for life in range(LIVES):
                numbers = range(life * LINES, (life + 1) * LINES)
                append(agent.root / f"acme/{life}.jsonl", map(feedback, numbers))
                for broker in (1, 2, 3):
                    embedded.rtt(broker, SLOW_MS)
                agent.start()
                agent.until_delivered(1)
                agent.kill()
                if life == 1:
                    consumer.until(1)
                    consumer.kill()
                    consumer.start()
            for broker in (1, 2, 3):
                embedded.rtt(broker, 0)
            agent.start()
            agent.until(lambda: not agent.behind_bytes(), "all is delivered")
            assert 0 == agent.stop()
            ends = asyncio.run(real_kafka.end_offsets(topics.bootstrap_servers, topics.events))
            consumer.until(LIVES * LINES)
            assert LIVES * LINES == consumer.kept()
        finally:
            consumer.kill()
    assert sum(ends.values()) > LIVES * LINES, "no copy was there to be dropped"
