"""Apps that write, the agent as a process of its own that can be killed, and a reader of both
topics: the demo plays on it, and so do the kill tests.
"""

import asyncio
import contextlib
import json
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Never, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from agent.clock import SystemClock
from agent.demo.app import ROTATE_BYTES
from agent.demo.oracle import Arrival, Arrivals

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 40.0
"""Longer than ``agent.drain_s``."""
CAUGHT_UP_WITHIN_S = 60.0
LOG_TAIL_LINES = 15
STARTED = re.compile(rb'"event":"agent.started".*"http_port":([0-9]+)')
FETCH_MS = 100
FETCH_WAIT_MS = 10
FETCH_RECORDS = 2000

_clock = SystemClock()


class SceneFailed(Exception):
    """A process ended that should not have; ``str()`` carries the end of its log."""


class Topics(Struct, frozen=True):
    bootstrap_servers: str
    events: str
    dead_letters: str


def write_config(
    path: Path, root: Path, state_dir: Path, topics: Topics, **sections: Mapping[str, object]
) -> None:
    """Write a configuration of the agent; ``sections`` add to what a scene needs."""
    config: dict[str, dict[str, object]] = {
        "agent": {"node": "demo", "state_dir": str(state_dir)},
        "source": {"root": str(root)},
        "kafka": {"bootstrap_servers": topics.bootstrap_servers, "topic": topics.events},
        "dlq": {"topic": topics.dead_letters},
        "http": {"port": 0},
        "log": {"format": "json"},
    }
    for name, keys in sections.items():
        config[name] = {**config.get(name, {}), **keys}
    path.write_text(json.dumps(config, indent=1))  # JSON is YAML


async def _python(log: Path, *arguments: str) -> Process:
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdin=DEVNULL, stdout=output, stderr=output
        )


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


class AgentProcess:
    """``feedback-agent run``, life after life over one state directory."""

    def __init__(self, config: Path, log: Path) -> None:
        self.log = log
        self.kills = 0
        self.started_ms: list[int] = []
        """When each life began, milliseconds since the epoch."""
        self._config = config
        self._process: Process | None = None
        self._life_at = 0  # where its log begins

    @property
    def pid(self) -> int | None:
        """The process id, None between two lives."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        assert self._process is None, "one life at a time"
        self.started_ms.append(int(_clock.wall() * 1000))
        self._life_at = self.log.stat().st_size if self.log.exists() else 0
        self._process = await _python(self.log, "-m", "agent", "run", "--config", str(self._config))

    def check(self) -> None:
        """Raise ``SceneFailed`` where the agent ended by itself."""
        if self._process is not None and self._process.returncode is not None:
            code = self._process.returncode
            raise SceneFailed(f"the agent ended with exit code {code}:\n{tail(self.log)}")

    async def ready(self) -> None:
        """Return when it says that all goes to Kafka: before, a stop leaves some to the next start.

        Raises ``SceneFailed`` and ``TimeoutError``.
        """
        async with asyncio.timeout(READY_WITHIN_S):
            while not await asyncio.to_thread(self._is_ready):
                self.check()
                await asyncio.sleep(0.05)

    def _is_ready(self) -> bool:
        said = STARTED.search(self.log.read_bytes(), self._life_at)
        if said is None:
            return False
        connection = HTTPConnection("127.0.0.1", int(said[1]), timeout=5)
        try:
            connection.request("GET", "/readyz")
            answer = json.load(connection.getresponse())
        except (OSError, ValueError):
            return False
        finally:
            connection.close()
        return bool(answer["ok"] and not answer["reasons"])

    async def ended(self) -> Never:
        """Wait for an end that nobody asked for; raises ``SceneFailed``."""
        assert self._process is not None
        await self._process.wait()
        self.check()
        raise AssertionError("it ended")

    async def kill(self) -> None:
        """SIGKILL. Returns when it is gone."""
        self.check()
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        self._process = None
        self.kills += 1

    async def stop(self) -> None:
        """SIGTERM. Raises ``SceneFailed`` unless the agent drains and ends with 0."""
        await self.ready()
        self.check()
        assert self._process is not None
        self._process.terminate()
        try:
            code = await asyncio.wait_for(self._process.wait(), STOP_WITHIN_S)
        except TimeoutError:
            late = f"the agent did not stop within {STOP_WITHIN_S:.0f} s"
            raise SceneFailed(f"{late}:\n{tail(self.log)}") from None
        if code != 0:
            raise SceneFailed(f"the agent ended with exit code {code}:\n{tail(self.log)}")
        self._process = None

    def close(self) -> None:
        """End it if it runs: for the way out of a scene that failed."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


class App:
    """One ``agent.demo.app``. ``lines`` and ``files`` are as its ledger said last."""

    def __init__(self, root: Path, work: Path, client: str) -> None:
        self.client = client
        self.lines = 0
        self.files = 0
        self._root = root
        self._ledger = work / f"{client}.ledger"
        self._log = work / f"{client}.log"
        self._process: Process | None = None

    async def start(
        self,
        seed: int,
        *,
        lines: int | None = None,
        rate: float = 0.0,
        rotate_bytes: int = ROTATE_BYTES,
        bad_share: float | None = None,
    ) -> None:
        arguments = ["-m", "agent.demo.app", "--root", str(self._root), "--client", self.client]
        arguments += ["--ledger", str(self._ledger), "--seed", str(seed), "--rate", str(rate)]
        arguments += ["--rotate-bytes", str(rotate_bytes)]
        arguments += [] if lines is None else ["--lines", str(lines)]
        arguments += [] if bad_share is None else ["--bad-share", str(bad_share)]
        self._process = await _python(self._log, *arguments)

    def look(self) -> bool:
        """Read the ledger. Return whether the app is still writing; raises ``SceneFailed``."""
        assert self._process is not None
        code = self._process.returncode
        if code:
            raise SceneFailed(f"{self.client} ended with exit code {code}:\n{tail(self._log)}")
        if self._ledger.exists():
            counts = json.loads(self._ledger.read_text())
            self.lines, self.files = counts["lines"], counts["files"]
        return code is None

    def pause(self, paused: bool) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    async def done(self) -> None:
        """Return when it has written its lines; raises ``SceneFailed``."""
        assert self._process is not None
        await self._process.wait()
        self.look()

    async def stop(self) -> None:
        """SIGTERM; returns when the last line is written. A paused app goes on to hear it."""
        assert self._process is not None
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        await self._process.wait()
        self.look()

    def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


class Reader:
    """Reads both topics from their beginning into ``arrivals``, while they are written to.

    The embedded broker keeps little of a partition: whoever reads late reads gaps, and they are
    no losses of the agent's. Raises ``SceneFailed`` for them.
    """

    def __init__(self, topics: Topics, arrivals: Arrivals) -> None:
        self._topics = topics
        self._arrivals = arrivals
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=topics.bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=FETCH_RECORDS,
            # The embedded broker answers an empty fetch at the end of its wait, come what may.
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        self._partitions: list[TopicPartition] = []
        self._taken_to: dict[TopicPartition, int] = {}  # the consumer's own position is ahead of it
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        metadata = await self._consumer._client.fetch_all_metadata()  # noqa: SLF001  by name it creates
        for topic in (self._topics.events, self._topics.dead_letters):
            numbers = sorted(metadata.partitions_for_topic(topic) or ())
            assert numbers, f"no topic {topic}"
            self._partitions += [TopicPartition(topic, number) for number in numbers]
        self._consumer.assign(self._partitions)
        await self._consumer.seek_to_beginning(*self._partitions)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._reading is not None
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):  # of a fetch that was under way
            await self._consumer.stop()

    async def caught_up(self) -> None:
        """Return when all that the topics hold by now was read."""
        assert self._reading is not None
        ends = await self._consumer.end_offsets(self._partitions)
        async with asyncio.timeout(CAUGHT_UP_WITHIN_S):
            for partition, end in ends.items():
                while self._taken_to.get(partition, 0) < end:
                    if self._reading.done():
                        self._reading.result()
                    await asyncio.sleep(0.01)

    async def _read(self) -> None:
        while True:
            fetched = await self._consumer.getmany(timeout_ms=FETCH_MS)
            received_ns = int(_clock.wall() * 1e9)
            for partition, records in fetched.items():
                dead = partition.topic == self._topics.dead_letters
                for record in records:
                    expected = self._taken_to.get(partition, 0)
                    if record.offset != expected:
                        raise SceneFailed(
                            f"the reader met {partition.topic}/{partition.partition} at offset "
                            f"{record.offset}, not {expected}: what is between was not read"
                        )
                    self._arrivals.add(_arrival(record, received_ns, dead=dead))
                    self._taken_to[partition] = record.offset + 1
                await asyncio.sleep(0)  # whoever draws the screen gets its turn


def _arrival(record: Any, received_ns: int, *, dead: bool) -> Arrival:  # aiokafka's ConsumerRecord
    return Arrival(
        dead,
        record.partition,
        record.key,
        record.value,
        record.headers,
        record.timestamp,
        received_ns,
    )
