"""One run from files on disk to the last acknowledgement: what it took, and whether all is there."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from agent.demo.scene import Topics
from tests.bench import usage
from tests.bench.brokers import Brokers
from tests.bench.reader import Checked, Count, Reader, reading
from tests.running import Agent

POLL_S = 0.02
STALLED_S = 10.0
"""What did not come within that after the record before is lost."""
FIRST_WITHIN_S = 120.0


class Finished(NamedTuple):
    """A run.

    Args:
        cpu_s: From its start until the last acknowledgement.
        start_s: From its start until the first record was at the consumer.
        took_s: From that one to the last.
        checked: What came; None where brokers had dropped some before they were read, so that
            records could only be counted.
    """

    lines: int
    cpu_s: float
    start_s: float
    took_s: float
    peak_rss_mb: float
    count: Count
    checked: Checked | None

    @property
    def lost(self) -> int:
        arrived = self.count.records if self.checked is None else self.checked.lines
        return max(0, self.lines - arrived)

    @property
    def copies(self) -> int:
        return max(0, self.count.records - self.lines)

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
    delivered: Whether it knows by itself that so many lines were acknowledged.
    tail: The end of its log.
    """

    pid: int
    delivered: Callable[[int], bool]
    tail: Callable[[], str]


class OurAgent:
    """The agent with its default configuration, but for ``sections``."""

    def __init__(self, name: str = "agent", **sections: dict[str, object]) -> None:
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
                assert agent.pid is not None
                yield Running(agent.pid, lambda lines: delivered(agent) >= lines, agent.tail)
                assert 0 == agent.stop(), agent.tail()
            finally:
                place.rename(corpus)


def delivered(agent: Agent) -> int:
    """Return how many lines this life has had acknowledged."""
    return int(agent.metric("events_delivered_total") + agent.metric("dead_letters_delivered_total"))


def run(
    subject: Subject,
    brokers: Brokers,
    work: Path,
    corpus: Path,
    lines: int,
    *,
    plant: bool = False,
    stalled_s: float = STALLED_S,
) -> Finished:
    """Run ``subject`` once, in the new directory ``work``.

    Raises ``AssertionError`` with the end of its log where it ends with an error or nothing comes.
    """
    work.mkdir()
    with brokers.topics() as topics, reading(brokers, topics, work, plant=plant) as reader:
        reader.count()  # it is up
        began_ns = time.time_ns()
        with subject.running(work, corpus, topics) as running:
            count = _all_came(running, reader, lines, stalled_s)
            cpu_s, peak_mb = count[1], count[2]
        checked = None if count[0].dropped else reader.check(lines)
    return Finished(
        lines,
        cpu_s,
        (count[0].first_ns - began_ns) / 1e9,
        (count[0].last_ns - count[0].first_ns) / 1e9,
        peak_mb,
        count[0],
        checked,
    )


def _all_came(
    running: Running, reader: Reader, lines: int, stalled_s: float
) -> tuple[Count, float, float]:
    """Wait for all lines, or for no more. Return the count, the CPU seconds and the peak of RSS."""
    peak_mb, count, moved_s = 0.0, Count(), time.monotonic()
    while True:
        found = reader.count()
        if found.records != count.records:
            count, moved_s = found, time.monotonic()
        peak_mb = max(peak_mb, usage.peak_rss_mb(running.pid))
        if count.records >= lines and running.delivered(lines):
            break
        patience_s = stalled_s if count.first_ns else FIRST_WITHIN_S
        if time.monotonic() - moved_s > patience_s:
            assert count.first_ns, f"nothing came\n{running.tail()}"
            break
        time.sleep(POLL_S)
    return count, usage.cpu_s(running.pid), peak_mb
