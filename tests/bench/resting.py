"""An agent that has shipped all there is, over many files of one line each."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench import corpus, usage
from tests.bench.command import Bench
from tests.bench.reader import Checked, Reader, reading
from tests.bench.runs import as_running, await_all
from tests.running import Agent

RESTARTED_WITHIN_S = 120.0
SETTLE_S, QUICK_SETTLE_S = 10.0, 0.5
"""Until what follows the last line is done: the checkpoint, a scan that finds nothing, and what
shipping took being given back."""
CLIENT_FILES = 5_000
"""Fewer than ``source.client_files_max``."""


class Resting(NamedTuple):
    """Args:
    lines: That were written, one to a file.
    first_s: From the agent's start until the first record was at the consumer.
    all_s: From its start until all were acknowledged.
    cpu_s: The agent's, until then.
    """

    agent: Agent
    pid: int
    reader: Reader
    lines: int
    first_s: float
    all_s: float
    cpu_s: float

    def idle_percent(self, seconds: float) -> float:
        """Return the agent's CPU of one core over ``seconds`` from now, in which nothing comes."""
        before_s, began_s = usage.cpu_s(self.pid), time.monotonic()
        time.sleep(seconds)
        return 100 * (usage.cpu_s(self.pid) - before_s) / (time.monotonic() - began_s)

    def restarted_s(self) -> float:
        """Stop it, start it again, append one more line; return how long from the start until that
        was at the consumer."""
        assert 0 == self.agent.stop(), self.agent.tail()
        append(self.agent.root, self.lines)
        before, began_ns = self.reader.count().records, time.time_ns()
        self.agent.start()
        self.agent.until(
            lambda: self.reader.count().records > before, "a line of meanwhile", RESTARTED_WITHIN_S
        )
        return (self.reader.count().last_ns - began_ns) / 1e9

    def check(self, *, more: int = 0) -> Checked:
        """Stop it, and look which of the lines, and of so many ``more``, came."""
        assert 0 == self.agent.stop(), self.agent.tail()
        return self.reader.check(self.lines + more)


def write(root: Path, files: int) -> None:
    """Write one line to each of ``files`` files, of as many clients as that takes."""
    for number, line in enumerate(corpus.lines(files)):
        path = _path(root, number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(line)


def append(root: Path, number: int) -> None:
    """Append line ``number`` to the first file."""
    *_, line = corpus.lines(number + 1)
    with _path(root, 0).open("ab") as file:
        file.write(line)


@contextmanager
def resting(bench: Bench, place: Path, files: int) -> Iterator[Resting]:
    """Start an agent in ``place`` over so many files; yield when it has shipped them, and rests."""
    place.mkdir()
    with (
        bench.brokers.topics() as topics,
        reading(bench.brokers, topics, place, plant=bench.plant) as reader,
        Agent(place, topics, **bench.more) as agent,
    ):
        write(agent.root, files)
        reader.count()  # it is up
        began_ns = time.time_ns()
        agent.start()
        assert agent.pid is not None
        count = await_all(as_running(agent), reader, files)
        shipped = Resting(
            agent,
            agent.pid,
            reader,
            files,
            (count.first_ns - began_ns) / 1e9,
            (count.last_ns - began_ns) / 1e9,
            usage.cpu_s(agent.pid),
        )
        time.sleep(QUICK_SETTLE_S if bench.quick else SETTLE_S)
        yield shipped


def _path(root: Path, number: int) -> Path:
    return root / f"app-{number // CLIENT_FILES}" / f"{number}.jsonl"
