"""Killed again and again, a backfill on real Kafka loses nothing, and copies have equal ids."""

import asyncio
import json
import os
import signal
from pathlib import Path
from uuid import UUID

import pytest
from aiokafka import ConsumerRecord

from agent.demo.scene import Topics
from tests import conftest, real_kafka
from tests.backfilling import backfill, interrupted
from tests.running import Agent, source_of

LINES = int(os.environ.get("FEEDBACK_AGENT_BACKFILL_LINES", "100000"))
KILLS = 5
FILES = 4
ID_BYTES = 16


def line(number: int) -> bytes:
    """Return a line of always the same length, without an id of its own."""
    named = b'{"type":"user_feedback","session_id":"s%09d"' % number
    return named + b',"rating":4,"comment":"Quick and right."}\n'


WIDTH = len(line(0))


class Seen:
    """Which lines arrived, and with which id; 17 bytes a line."""

    def __init__(self, lines: int, firsts: dict[str, int]) -> None:
        self._firsts = firsts  # by source: the number of its first line
        self._ids = bytearray(ID_BYTES * lines)
        self.times = bytearray(lines)
        self.other_ids = 0

    def take(self, record: ConsumerRecord) -> None:
        _, source, _, start, _ = dict(record.headers)["source"].decode().split(";")
        number = self._firsts[source] + int(start) // WIDTH
        event = json.loads(record.value)
        assert f"s{number:09}" == event["session_id"]
        place = slice(number * ID_BYTES, (number + 1) * ID_BYTES)
        found = UUID(event["event_id"]).bytes
        if self.times[number]:
            self.other_ids += self._ids[place] != found
        self._ids[place] = found
        self.times[number] = min(255, self.times[number] + 1)


async def read_into(seen: Seen, topics: Topics) -> None:
    async with real_kafka._reader(topics.bootstrap_servers, topics.events) as (consumer, ends):
        behind = [tp for tp, end in ends.items() if end]
        while behind:
            fetched = await consumer.getmany(*behind, timeout_ms=1000, max_records=20_000)
            for record in (record for records in fetched.values() for record in records):
                seen.take(record)
            behind = [tp for tp in behind if await consumer.position(tp) < ends[tp]]


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.timeout(0)  # as long as the lines take; each wait in it has its own bound
def test_killed_five_times_it_loses_nothing_and_copies_have_equal_ids(
    kafka: str, topics: conftest.Topics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Topics(kafka, asyncio.run(topics(12)), asyncio.run(topics(1)))
    archive, each = tmp_path / "archive", LINES // FILES
    (archive / "checkout").mkdir(parents=True)
    firsts = {}
    for at in range(FILES):
        path = archive / f"checkout/{at}.jsonl"
        with path.open("wb") as file:
            file.writelines(line(at * each + n) for n in range(each))
        firsts[source_of(path)] = at * each
    paths = (archive, "--root", archive)
    with Agent(tmp_path, real) as agent:
        total = each * FILES * WIDTH
        for kill in range(1, KILLS + 1):
            after = total * kill // (KILLS + 2)
            later_s = kill * 0.08
            ended = interrupted(
                agent, *paths, by=signal.SIGKILL, after_bytes=after, later_s=later_s
            )
            assert -signal.SIGKILL == ended.code, "it was through before"
        last = backfill(agent, *paths)
    assert 0 == last.code, last
    seen = Seen(each * FILES, firsts)
    asyncio.run(read_into(seen, real))

    lost, copies = seen.times.count(0), sum(seen.times) - len(seen.times)
    with capsys.disabled():
        said = f"lines {len(seen.times):,}, kills {KILLS}, lost {lost}, copies {copies:,}"
        print(f"\n{said}, with another id {seen.other_ids}; {last.summary['counts']}")  # noqa: T201
    assert (0, 0) == (lost, seen.other_ids)
