"""One run from lines on disk to the last acknowledgement: what it took, and if all is there."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from agent.demo.scene import Topics
from tests.bench import usage
from tests.bench.brokers import Brokers
from tests.bench.reader import Checked, Count, Reader, reading
from tests.running import Agent

Sections = dict[str, Any]
"""Of the agent's configuration."""

POLL_S = 0.02
FETCHED_WITHIN_S = 3.0
"""What did not come within that after it was acknowledged is lost."""
STALLED_S = 60.0
"""So is what did not come within that after the record before."""


class Finished(NamedTuple):
    """A run.

    Args:
        cpu_s: From its start until the last acknowledgement.
        start_s: From its start until the first record was at the consumer.
        took_s: From that one to the last.
        rss_mb: At the end, 0 where it ended by itself.
        checked: What came; None where brokers had dropped some before they were read, so that
            records could only be counted.
    """

    lines: int
    cpu_s: float
    start_s: float
    took_s: float
    rss_mb: float
    peak_rss_mb: float
    arrived: Count
    checked: Checked | None

    @property
    def cpu_s_per_million(self) -> float:
        return self.cpu_s / self.lines * 1e6

    @property
    def k_lines_per_s(self) -> float:
        return self.lines / max(self.took_s, POLL_S) / 1e3


class Subject(Protocol):
    """A program that ships files."""

    name: str

    @contextmanager
    def running(self, work: Path, corpus: Path, topics: Topics) -> Iterator["Running"]:
        """Run it in the directory ``work`` over the lines in ``corpus``."""


class Running(NamedTuple):
    """Args:
    delivered: Whether so many lines were acknowledged; None where it does not say.
    tail: The end of its log.
    """

    pid: int
    delivered: Callable[[int], bool | None]
    tail: Callable[[], str]


class OurAgent:
    """The agent with its default configuration, but for ``sections`` of it."""

    def __init__(self, sections: Sections, name: str = "agent") -> None:
        self.name = name
        self._sections = sections

    @contextmanager
    def running(self, work: Path, corpus: Path, topics: Topics) -> Iterator[Running]:
        with Agent(work, topics, **self._sections) as agent:
            place = agent.root / "app" / "feedback.jsonl"
            place.parent.mkdir(parents=True)
            corpus.rename(place)
            try:
                agent.start()
                yield as_running(agent)
                assert 0 == agent.stop(), agent.tail()
            finally:
                place.rename(corpus)


def as_running(agent: Agent) -> Running:
    assert agent.pid is not None
    return Running(agent.pid, lambda lines: _delivered(agent) >= lines, agent.tail)


def _delivered(agent: Agent) -> int:
    return int(
        agent.metric("events_delivered_total") + agent.metric("dead_letters_delivered_total")
    )


def run(
    subject: Subject,
    brokers: Brokers,
    work: Path,
    corpus: Path,
    lines: int,
    *,
    plant: bool = False,
) -> Finished:
    """Run ``subject`` once, in the new directory ``work``.

    Raises ``AssertionError`` with the end of its log where it ends with an error or nothing comes.
    """
    work.mkdir()
    peak_mb = 0.0
    with brokers.topics() as topics, reading(brokers, topics, work, plant=plant) as reader:
        reader.count()  # it is up
        began_ns = time.time_ns()
        with subject.running(work, corpus, topics) as running:

            def note_peak() -> None:
                nonlocal peak_mb
                peak_mb = max(peak_mb, usage.peak_rss_mb(running.pid))

            count = await_all(running, reader, lines, note_peak)
            cpu_s, rss_mb = usage.cpu_s(running.pid), usage.rss_mb(running.pid)
        checked = None if count.dropped else reader.check(lines)
    return Finished(
        lines=lines,
        cpu_s=cpu_s,
        start_s=(count.first_ns - began_ns) / 1e9,
        took_s=(count.last_ns - count.first_ns) / 1e9,
        rss_mb=rss_mb,
        peak_rss_mb=peak_mb,
        arrived=count,
        checked=checked,
    )


def await_all(
    running: Running, reader: Reader, lines: int, each: Callable[[], None] = lambda: None
) -> Count:
    """Wait for all lines, or until no more will come; call ``each`` meanwhile, again and again.

    Raises ``AssertionError`` where nothing comes at all.
    """
    count, moved_s = Count(), time.monotonic()
    while True:
        found = reader.count()
        if found.records != count.records:
            count, moved_s = found, time.monotonic()
        each()
        still_s = time.monotonic() - moved_s
        if count.records >= lines and running.delivered(lines) is not False:
            return count
        if count.first_ns and still_s > FETCHED_WITHIN_S and running.delivered(lines):
            return count
        if still_s > STALLED_S:
            assert count.first_ns, f"nothing came\n{running.tail()}"
            return count
        time.sleep(POLL_S)
