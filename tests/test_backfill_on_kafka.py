"""What only a real Kafka shows of a backfill: topics that delete by time, and topics that are not
there."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from agent.demo.scene import Topics
from tests import conftest, real_kafka
from tests.backfilling import backfill, summary
from tests.running import Agent, append, feedback

DAY_MS = 86_400_000
pytestmark = [pytest.mark.kafka]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    append(
        tmp_path / "archive/checkout/a.jsonl", [feedback(1), feedback(2, timestamp=None), b"bad"]
    )
    return tmp_path / "archive"


def test_it_warns_of_events_that_the_topic_would_delete_at_once(
    kafka: str, topics: conftest.Topics, tmp_path: Path, archive: Path
) -> None:
    """With kafka.timestamp: event, retention goes by the time of the event; else it does not."""

    async def made() -> Topics:
        return Topics(kafka, await topics(1, retention_ms=7 * DAY_MS), await topics(1))

    real = asyncio.run(made())
    for timestamp, expired in (("event", 1), ("produce", 0)):
        with Agent(tmp_path / timestamp, real, kafka={"timestamp": timestamp}) as agent:
            ended = backfill(agent, archive, "--root", archive)
        assert 0 == ended.code, ended
        assert expired == ended.summary["expired"]
        assert bool(expired) == ("older than 7.0 days" in ended.err)


@pytest.mark.long
def test_dead_letters_wait_for_their_topic_and_go_with_the_next_run(
    kafka: str, topics: conftest.Topics, tmp_path: Path, archive: Path
) -> None:
    """Nothing else waits for them; what is not over is exit code 1."""
    missing = f"test-{uuid4().hex}"
    real = Topics(kafka, asyncio.run(topics(1)), missing)
    with Agent(tmp_path, real) as agent:
        ended = backfill(agent, archive, "--root", archive)

        assert 1 == ended.code
        assert (2, 1) == (ended.summary["counts"]["sent"], ended.summary["put_by"])
        asyncio.run(real_kafka.create_topic(kafka, missing, 1))
        assert 1 == summary(agent, archive, "--root", archive)["counts"]["dead_letters"]
