"""More files than may be open at once: all are read, and what is known of each is small.

FEEDBACK_AGENT_MANY_FILES says how many; the default is quick, 50,000 is what the bounds are for.
"""

import gc
import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.assembly import descriptors_within
from agent.clock import SystemClock
from agent.core.lines import Piece
from agent.demo.broker import EmbeddedKafka
from agent.harvester import Followed
from agent.opener import Descriptor, Refused, open_beneath
from tests.reading import Reading
from tests.running import Agent, append, feedback, mock_topics
from tests.test_opener import descriptors

FILES = int(os.environ.get("FEEDBACK_AGENT_MANY_FILES", "3000"))
pytestmark = pytest.mark.timeout(300 + FILES // 50)
CLIENTS = 20
FILE_BYTES_MAX = 900
"""Of memory for each known file: the fourth invariant allows a kibibyte."""
PEAK_BYTES_MAX = 1200
"""The same while a scan finds them all: what is freed then leaves holes that nothing fills."""
DESCRIPTORS_MAX = 16
LINE_BYTES_MAX = 1 << 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files that are named as an app's rotation names them, a line each."""
    for number in range(FILES):
        path = tmp_path / f"namespace-pod-{number % CLIENTS}/feedback.jsonl.{number}"
        if number < CLIENTS:
            path.parent.mkdir()
        path.write_bytes(feedback(number) + b"\n")
    return tmp_path


class Reader(Reading):
    """What is read is settled at once."""

    def __init__(self, root: Path) -> None:
        self.lines = 0
        self.open_max = 0
        super().__init__(
            root,
            SystemClock(),
            files_max=FILES,
            line_bytes_max=LINE_BYTES_MAX,
            descriptors_max=DESCRIPTORS_MAX,
        )

    def scan(self) -> float:
        """Scan and read all that it found. Return how long the scan itself took."""
        began_s = time.monotonic()
        scan = self.scanner.scan(self.sources.known)
        took_s = time.monotonic() - began_s
        self.sources.apply(scan)
        while not self.sources.idle:
            followed = self.sources.next()
            if followed is not None:
                self._read(followed)
            self.sources.registry.take()
        return took_s

    def _read(self, followed: Followed) -> None:
        harvester = followed.harvester
        assert harvester is not None
        self.open_max = max(self.open_max, len(self.sources.opened))
        piece = self.sources.read(followed)
        if isinstance(piece, Piece):
            self.lines += len(piece.lines)
            harvester.ledger.reserve(harvester.chunk(piece))
            harvester.ledger.take_passed()
        if harvester.more:
            self.sources.again(followed)

    def _open(self, path: str) -> Descriptor | Refused:
        return open_beneath(self._root_fd, path, links_max=None)


@pytest.fixture
def reader(root: Path) -> Iterator[Reader]:
    reader = Reader(root)
    yield reader
    reader.close()


def test_all_are_read_within_two_scans_with_few_descriptors(root: Path, reader: Reader) -> None:
    """And what is appended to any of them later is found by the next scan."""
    before = descriptors()
    reader.scan()
    reader.scan()
    assert FILES == reader.lines
    assert reader.open_max <= DESCRIPTORS_MAX
    assert descriptors() <= before + DESCRIPTORS_MAX

    grown = sorted(root.glob("*/*"))[:: max(1, FILES // 100)]
    for path in grown:
        with path.open("ab") as file:
            file.write(feedback(FILES) + b"\n")
    reader.scan()
    assert FILES + len(grown) == reader.lines


def test_a_known_file_costs_less_than_a_kibibyte(reader: Reader) -> None:
    """By what Python allocates, when all were read and few are open."""
    gc.collect()
    tracemalloc.start()
    try:
        reader.scan()
        reader.scan()
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held / FILES <= FILE_BYTES_MAX
    assert peak / FILES <= PEAK_BYTES_MAX


@pytest.mark.parametrize(
    ("limit", "allowed"), [(1 << 20, 512), (1024, 512), (512, 384), (256, 128), (64, 16), (3, 1)]
)
def test_descriptors_leave_room_for_connections_and_the_store(limit: int, allowed: int) -> None:
    assert allowed == descriptors_within(512, limit)


def test_an_agent_with_few_descriptors_says_so_and_reads_everything(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """The process's own limit; what it cannot open at once it opens in turn."""
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        agent._prefix = ["prlimit", "--nofile=64"]
        for n in range(200):
            append(agent.root / f"c{n % 7}/{n}.jsonl", [feedback(n)])
        agent.start()
        agent.until_delivered(200)
        assert 0 == agent.stop()
        (entry,) = agent.log_entries("descriptors.reduced")
        assert (512, 16, 64) == (
            entry["configured"],
            entry["descriptors_max"],
            entry["process_limit"],
        )
        assert [] == agent.log_entries("file.refused", "sink.down")
