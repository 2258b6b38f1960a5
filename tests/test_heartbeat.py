"""A thread that hangs or is dead is noticed: threads are hung and ended for real."""

import asyncio
import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.heartbeat import BEAT_S, Heartbeat
from tests.fakes import FakeClock
from tests.patience import WITHIN_S
from tests.running import Agent, append, feedback, mock_topics

HANG_S = 2 * BEAT_S


class World:
    """A heartbeat of two threads, of which ``disk`` is to hang."""

    def __init__(self, disk: ThreadPoolExecutor, other: ThreadPoolExecutor) -> None:
        self.clock = FakeClock()
        self.disk = disk
        self.samples = 0
        self.back = threading.Event()
        self.heartbeat = Heartbeat(
            {"disk": disk, "other": other}, hang_s=HANG_S, each=self._sample, clock=self.clock
        )

    async def beats(self, count: int) -> None:
        """Let time pass, and who lives answer."""
        for _ in range(count):
            begun = self.samples
            self.clock.advance(BEAT_S)
            await self.answered("other", begun)

    async def answered(self, thread: str, begun: int = 0) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.samples == begun or thread in self.heartbeat._asked:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def _sample(self) -> None:
        self.samples += 1


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(1) as other:
        world = World(disk, other)
        beating = asyncio.create_task(world.heartbeat.run())
        await world.answered("disk")
        await world.answered("other")
        yield world
        world.back.set()
        beating.cancel()
        await asyncio.wait({beating})


async def test_threads_that_answer_do_not_hang(world: World) -> None:
    for _ in range(5):
        await world.beats(1)
        await world.answered("disk")

    assert [] == world.heartbeat.hung()


async def test_a_thread_hangs_that_does_not_come_back_until_it_does(world: World) -> None:
    """A disk that is slow once must not cost a restart, and one that never answers must."""
    world.disk.submit(world.back.wait)

    await world.beats(2)
    assert [] == world.heartbeat.hung()
    await world.beats(1)
    assert ["disk"] == world.heartbeat.hung()

    world.back.set()
    await world.answered("disk")
    assert [] == world.heartbeat.hung()


async def test_a_thread_that_died_is_noticed(world: World) -> None:
    """An executor takes work for a thread that is not there any more, and says nothing."""
    (thread,) = world.disk._threads
    assert thread.ident is not None
    ended = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    )
    assert 1 == ended

    await world.beats(1 + int(HANG_S / BEAT_S))

    assert ["disk"] == world.heartbeat.hung()
    assert not thread.is_alive()


async def test_what_else_is_to_be_done_is_done_at_each_beat(world: World) -> None:
    before = world.samples
    await world.beats(3)
    assert before + 3 == world.samples


@contextmanager
def hanging(agent: Agent, calls: str, path: Path) -> Iterator[None]:
    """Let the kernel take a minute for ``calls`` of the agent on ``path``, until the block ends."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing: scripts/system-packages installs it")
    inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=60000000"]
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(agent.pid), *inject]
    with subprocess.Popen([*command, "-P", str(path)], stderr=subprocess.DEVNULL) as tracer:
        try:
            while not traced(agent):
                if tracer.poll() is not None:
                    pytest.skip("strace may trace nothing here: ptrace is not allowed")
                time.sleep(0.01)
            yield
        finally:
            tracer.kill()


def traced(agent: Agent) -> bool:
    """Return whether every thread has a tracer."""
    statuses = Path(f"/proc/{agent.pid}/task").glob("*/status")
    return all("TracerPid:\t0\n" not in status.read_text() for status in statuses)


@pytest.mark.parametrize(
    ("thread", "calls", "path"),
    [
        ("worker", "pread64", "feedback/acme/a.jsonl"),
        ("store", "pwrite64", "state/checkpoints.db-wal"),
        ("scan", "getdents64", "feedback/acme"),
    ],
)
def test_a_disk_that_does_not_answer_makes_the_agent_unhealthy(
    thread: str, calls: str, path: str, tmp_path: Path, embedded: EmbeddedKafka
) -> None:
    """The loop serves on while a thread waits in the kernel: that alone is no health."""
    topics = mock_topics(embedded)
    with Agent(tmp_path, topics, agent={"hang_s": 1}, source={"scan_s": 0.5}) as agent:
        file = agent.root / "acme/a.jsonl"
        append(file, [feedback(0)])
        agent.start()
        agent.until_delivered(1)
        assert 200 == agent.get("/healthz").status

        with hanging(agent, calls, tmp_path / path):
            append(file, [feedback(1)])

            agent.until(lambda: agent.get("/healthz").status == 503, f"{thread} hangs")

            reasons = agent.status()["health"]["reasons"]
            assert f"{thread}: hung" in reasons
            assert "hangs" in agent.get("/").body
