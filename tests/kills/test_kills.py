"""0 lost, few twice, in order, whenever the agent is killed."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import conftest
from tests.kills.siege import besiege, lives

QUICK_KILLS = 5

Say = Callable[[str], None]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """As given with ``--kills-seed``, else a new one; pytest-randomly seeds ``random`` itself."""
    given: int | None = request.config.getoption("--kills-seed")
    return random.SystemRandom().randrange(1 << 32) if given is None else given


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Write a line that is read while the test runs."""

    def write(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", flush=True)  # noqa: T201

    return write


@pytest.fixture
async def real(kafka: str, topics: conftest.Topics) -> Topics:
    return Topics(kafka, await topics(partitions=12), await topics(partitions=1))


async def test_a_few_kills_lose_nothing(embedded: EmbeddedKafka, tmp_path: Path, seed: int) -> None:
    """The short form, for every day. The mock checks no sequence numbers."""
    topics = Topics(embedded.bootstrap_servers, "feedback-events", "feedback-events-dlq")
    embedded.create_topic(topics.events, 12)
    embedded.create_topic(topics.dead_letters, 1)

    outcome = await besiege(tmp_path, topics, kills=QUICK_KILLS, seed=seed)

    outcome.check()


@pytest.mark.kills
@pytest.mark.kafka
@pytest.mark.timeout(0)  # as long as the kills take; each wait in it has its own bound
async def test_no_kill_loses_a_line(
    real: Topics, tmp_path: Path, seed: int, say: Say, request: pytest.FixtureRequest
) -> None:
    """On real Kafka, as often as ``--kills`` says."""
    kills: int = request.config.getoption("--kills")
    say(f"--kills {kills} --kills-seed {seed}")

    outcome = await besiege(tmp_path, real, kills=kills, seed=seed)

    say(str(outcome))
    outcome.check()


def test_a_seed_repeats_its_kills_and_they_are_of_every_kind() -> None:
    drawn = lives(200, 1)

    assert drawn == lives(200, 1) != lives(200, 2)
    idle = [life for life in drawn if life.idle]
    starting = [life for life in drawn if life.seconds < 0.5]
    assert len(idle) > 20 < len(starting)
    assert sum(life.seconds for life in drawn) < 300
