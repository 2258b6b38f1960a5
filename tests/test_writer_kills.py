"""Apps of many threads write by ``agent.writer``, and they and the agent are killed at random.

Each line that was said to be written is on disk, each complete line on disk arrives, none is torn
but a last one of a killed process, none is joined with another. 20,000 lines; more, on real Kafka:

    FEEDBACK_AGENT_WRITER_LINES=1000000 pytest tests/test_writer_kills.py
"""

import asyncio
import json
import os
import random
import sys
from asyncio.subprocess import Process
from collections import Counter
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.demo.oracle import Arrivals, Verdict, compare, sources_below
from agent.demo.scene import AgentProcess, Reader, Topics, write_config
from tests import conftest, writing
from tests.running import json_or_dead, mock_topics

LINES = 20_000
MORE_LINES = int(os.environ.get("FEEDBACK_AGENT_WRITER_LINES", "0"))
PROCESSES, THREADS = 8, 4
"""Of each process: 32 in all."""
AGENT_EVERY = 8
"""That kill, or start, is the agent's: it needs longer to come back than an app."""
LINES_A_KILL = 500
"""Kills come by lines, not by time: on a slow machine no life is too short to write one."""
TICK_S = 0.02
LAST_LIVES_MAX = 20


class Writers:
    """``PROCESSES`` apps in one directory, started again where they were killed."""

    def __init__(self, root: Path, work: Path, lines: int) -> None:
        self.killed = 0
        self._directory = root / "acme"
        self._notes = [work / f"notes-{n}" for n in range(PROCESSES)]
        self._each = lines // (PROCESSES * THREADS)
        self._running: dict[int, Process] = {}

    async def start(self) -> bool:
        """Start those that are not done and do not run. Return whether any is left to write."""
        for n in range(PROCESSES):
            process = self._running.get(n)
            if process is not None and process.returncode is None:
                continue
            assert process is None or process.returncode in {0, -9}
            self._running.pop(n, None)
            if min(self.noted(n)) < self._each:
                arguments = ["--directory", self._directory, "--notes", self._notes[n]]
                counts = ["--lines", self._each, "--threads", THREADS]
                self._running[n] = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.writing", *map(str, [*arguments, *counts])
                )
        return bool(self._running)

    async def kill(self, chance: random.Random) -> None:
        process = self._running[chance.choice(sorted(self._running))]
        if process.returncode is None:
            process.kill()
            self.killed += await process.wait() == -9

    def close(self) -> None:
        for process in self._running.values():
            if process.returncode is None:
                process.kill()

    def written(self) -> int:
        return sum(sum(self.noted(n)) for n in range(PROCESSES))

    def noted(self, process: int) -> list[int]:
        return writing.noted(self._notes[process], THREADS)

    def check(self) -> int:
        """Assert that every line is on disk, whole; return how many torn ones stand alone."""
        found, torn = Counter[tuple[str, int]](), 0
        for path in self._directory.iterdir():
            content = path.read_bytes()
            assert not content or content.endswith(b"\n"), path  # killed before its first line
            for body in content.split(b"\n")[:-1]:
                try:
                    event = json.loads(body)
                except ValueError:
                    torn += 1
                    continue
                found[event["session_id"], event["metadata"]["n"]] += 1
        for thread in range(THREADS):
            for n in range(self._each):
                assert found[f"s{thread}", n] >= PROCESSES, (thread, n)
        copies = found.total() - PROCESSES * THREADS * self._each
        assert copies <= self.killed * THREADS, "each was killed before it noted one"
        assert torn <= self.killed, "one process tears one line"
        return torn


async def siege(
    work: Path, topics: Topics, lines: int, chance: random.Random
) -> tuple[Writers, Verdict]:
    """Write ``lines`` while somebody kills; then let the agent end in peace and compare."""
    root = work / "feedback"
    root.mkdir()
    write_config(work / "config.yaml", root, work / "state", topics)
    agent, arrivals = AgentProcess(work / "config.yaml", work / "agent.log"), Arrivals()
    writers = Writers(root, work, lines)
    try:
        async with Reader(topics, arrivals) as reader:
            await agent.start()
            at = sorted(chance.sample(range(lines), lines // LINES_A_KILL), reverse=True)
            while await writers.start():
                await asyncio.sleep(TICK_S)
                if not at or writers.written() < at[-1]:
                    continue
                at.pop()
                if len(at) % AGENT_EVERY:
                    await writers.kill(chance)
                elif agent.pid is not None:
                    await agent.kill()
                else:
                    await agent.start()
            if agent.pid is not None:
                await agent.kill()
            await drain(agent)
            await reader.caught_up()
    finally:
        agent.close()
        writers.close()
    verdict = await asyncio.to_thread(compare, sources_below(root), arrivals, json_or_dead)
    return writers, verdict


async def drain(agent: AgentProcess) -> None:
    """Let it live and stop in peace until nothing is left for a next life."""
    for _ in range(LAST_LIVES_MAX):
        begin = agent.log.stat().st_size
        await agent.start()
        await agent.stop()
        said = agent.log.read_bytes()[begin:]
        if b'"mode":"spooling"' not in said and b"drain.cut_short" not in said:
            return
    raise AssertionError(f"not done after {LAST_LIVES_MAX} lives")


async def play(work: Path, topics: Topics, lines: int, seed: int | None) -> None:
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    print(f"--kills-seed {seed}")  # noqa: T201  shown where the test fails

    writers, verdict = await siege(work, topics, lines, random.Random(seed))  # noqa: S311

    torn = writers.check()
    print(f"killed {writers.killed} apps, torn {torn}, lines {verdict.lines}")  # noqa: T201
    assert verdict.ok, (verdict.rows(), verdict.examples)
    assert torn == verdict.dead_lettered
    assert verdict.lines == verdict.delivered + verdict.dead_lettered >= lines
    assert writers.killed > 2


async def test_kills_of_apps_and_agent_tear_join_and_lose_no_line(
    embedded: EmbeddedKafka, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await play(tmp_path, mock_topics(embedded), LINES, request.config.getoption("--kills-seed"))


@pytest.mark.kafka
@pytest.mark.skipif(not MORE_LINES, reason="FEEDBACK_AGENT_WRITER_LINES says how many lines")
@pytest.mark.timeout(0)  # as long as the lines take
async def test_neither_does_a_long_run(
    kafka: str, topics: conftest.Topics, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The embedded broker would drop records before so many are read."""
    real = Topics(kafka, await topics(partitions=12), await topics(partitions=1))
    await play(tmp_path, real, MORE_LINES, request.config.getoption("--kills-seed"))
