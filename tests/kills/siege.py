"""Apps write and rotate, the agent is killed again and again, the oracle decides."""

import asyncio
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from agent.core.lines import CHUNK_BYTES
from agent.demo.app import defect
from agent.demo.oracle import Arrivals, Source, Verdict, compare, sources_below
from agent.demo.scene import AgentProcess, App, Reader, Topics, write_config

CLIENTS = ("checkout", "search", "assistant")
RATE_EACH = 250.0
ROTATE_BYTES = 128 << 10
BAD_SHARE = 0.02
EVENTS_MAX = 500
"""In flight; small, so that the bound on copies means something and backpressure takes part."""
IDLE_SHARE, START_SHARE = 0.2, 0.2
LAST_LIFE_S = 2.0
LAST_LIVES = 2
"""In peace. On a slow machine the first is over when it has just begun, and what it could not bring
to Kafka by then waits in the spool, as it must."""


class Life(NamedTuple):
    """One life of the agent. ``idle``: nothing is written during it."""

    seconds: float
    idle: bool


def lives(kills: int, seed: int) -> list[Life]:
    """Draw how long each life is: some end while starting, some with nothing to do."""
    draw = random.Random(seed)  # noqa: S311  to be repeated, not to be secret
    drawn = []
    for _ in range(kills):
        kind = draw.random()
        if kind < START_SHARE:
            drawn.append(Life(draw.uniform(0.05, 0.6), idle=False))
        elif kind < START_SHARE + IDLE_SHARE:
            drawn.append(Life(draw.uniform(1.2, 1.8), idle=True))
        else:
            drawn.append(Life(draw.uniform(0.6, 1.6), idle=False))
    return drawn


class Outcome(NamedTuple):
    seed: int
    verdict: Verdict
    kills: int
    shipped: int
    """Lives that brought a record to Kafka and were killed."""
    copies_by_kill: list[int]
    copies_max: int
    """What one kill may cost: what may be in flight."""

    def __str__(self) -> str:
        verdict = self.verdict
        counts = {
            "kills": self.kills,
            "of lives that shipped": self.shipped,
            "lines": verdict.lines,
            "delivered": verdict.delivered,
            "dead-lettered": verdict.dead_lettered,
            "lost": verdict.lost,
            "twice": verdict.copies,
            "order errors": verdict.out_of_order,
            "most copies of one kill": max(self.copies_by_kill, default=0),
            "allowed": self.copies_max,
        }
        return ", ".join(f"{name} {count:,}" for name, count in counts.items())

    def check(self) -> None:
        """Assert all that must hold."""
        verdict = self.verdict
        assert verdict.ok, (f"--kills-seed {self.seed}", verdict.examples)
        assert verdict.lines == verdict.delivered + verdict.dead_lettered > 0
        assert verdict.dead_lettered, "no bad line was among them"
        # All kills until then together: what one costs a later life than the next may send again,
        # if the next ended before it came to that file, or if a slow broker appends it late.
        for kills, copies in enumerate(accumulate(self.copies_by_kill), 1):
            assert copies <= kills * self.copies_max, kills
        assert sum(self.copies_by_kill) == verdict.copies, "twice without a kill"


async def besiege(work: Path, topics: Topics, *, kills: int, seed: int) -> Outcome:
    """Kill the agent ``kills`` times, let it end in peace, and compare."""
    root = work / "feedback"
    root.mkdir()
    config = work / "config.yaml"
    write_config(config, root, work / "state", topics, in_flight={"events_max": EVENTS_MAX})
    agent, arrivals = AgentProcess(config, work / "agent.log"), Arrivals()
    apps = [App(root, work, client) for client in CLIENTS]
    try:
        async with Reader(topics, arrivals) as reader:
            for app in apps:
                await app.start(
                    seed, rate=RATE_EACH, rotate_bytes=ROTATE_BYTES, bad_share=BAD_SHARE
                )
            for life in lives(kills, seed):
                await _live(agent, apps, life)
            for app in apps:
                await app.stop()
            for _ in range(LAST_LIVES):
                await agent.start()
                await asyncio.sleep(LAST_LIFE_S)
                await agent.stop()
            await reader.caught_up()
    finally:
        agent.close()
        for app in apps:
            app.close()
    return await asyncio.to_thread(_outcome, root, seed, arrivals, agent)


async def _live(agent: AgentProcess, apps: list[App], life: Life) -> None:
    for app in apps:
        app.look()
        app.pause(life.idle)
    await agent.start()
    await asyncio.sleep(life.seconds)
    await agent.kill()


def _outcome(root: Path, seed: int, arrivals: Arrivals, agent: AgentProcess) -> Outcome:
    sources = sources_below(root)
    verdict = compare(sources, arrivals, defect)
    copies = verdict.copies_between(agent.started_ms)
    produced = sorted(row.produced_ms for rows in arrivals.by_source.values() for row in rows)
    begins = [bisect_left(produced, at_ms) for at_ms in agent.started_ms]
    shipped = sum(begins[n] < begins[n + 1] for n in range(agent.kills))
    # What the first life sends twice no kill explains; what a later one does, the kill before it.
    allowed = EVENTS_MAX + chunk_lines_max(sources)
    return Outcome(seed, verdict, agent.kills, shipped, copies[1 : agent.kills + 1], allowed)


def chunk_lines_max(sources: Iterable[Source]) -> int:
    """Return how many lines one read can hold at most, in these files."""
    most = 0
    for source in sources:
        starts = [start for start, _ in source.lines()]
        for index, start in enumerate(starts):
            most = max(most, bisect_right(starts, start + CHUNK_BYTES) - index)
    return most
