"""Faults of the agent's own process; the brokers are well."""

import asyncio
import signal
import traceback
from pathlib import Path

from agent.demo.scene import Topics
from tests.faults.cluster import Kafka
from tests.faults.outcome import Outcome
from tests.faults.registry import besieged, on_its_own
from tests.faults.scale import Scale
from tests.faults.stage import SETTINGS, Stage
from tests.kills.siege import besiege

PARTITIONS = 12


@besieged
def sigkill_at_random(kafka: Kafka, scale: Scale, work: Path, seed: str) -> Outcome:
    """While it starts, ships, or has nothing to do."""
    work.mkdir(parents=True)
    topics = Topics(kafka.bootstrap_servers, f"siege-{seed}", f"siege-{seed}-dlq")
    replication = len(kafka.nodes)
    kafka.create(topics.events, PARTITIONS, replication, SETTINGS)
    kafka.create(topics.dead_letters, 1, replication, SETTINGS)
    siege = asyncio.run(besiege(work, topics, kills=scale.random_kills, seed=int(seed)))
    kafka.delete(topics.events, topics.dead_letters)
    outcome = Outcome(
        fault="sigkill_at_random",
        seed=seed,
        verdict=siege.verdict,
        ends=siege.kills,
        copies_max=siege.kills * siege.copies_max,
    )
    try:
        siege.check()  # it knows what each kill may cost
    except AssertionError as broken:
        outcome.error = "".join(traceback.format_exception(broken)) + str(siege)
    return outcome


@on_its_own
def sigstop(stage: Stage) -> None:
    """It stands still, and goes on as if nothing had been; no alarm stays."""
    stage.create_topics()
    stage.begin()
    stage.agent.signal(signal.SIGSTOP)
    stage.wait(stage.scale.stopped_s)
    stage.agent.signal(signal.SIGCONT)
    stage.over()
    stage.well()
    assert 0 == stage.agent.metric("producer_retirements_total"), stage.agent.tail()
