"""Receipts on disk: what Kafka acknowledged, kept for a while so that a proof finds it again.

``receipts.jsonl`` beside the checkpoints, and beside it ``.1`` (newer) to ``.7`` (older). They are
read while the agent runs, so they are no database. They are help and no truth: nothing waits for
them, nothing is synced, and what cannot be written is counted, said once, and forgotten. A proof
then reads more of the topic.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from agent.audit_file import lines, opened
from agent.clock import Clock, wait_event
from agent.core.batch import Batch
from agent.core.places import Place
from agent.core.policy import ReceiptsPolicy
from agent.core.receipts import UNTOLD, Receipt, Tally, Window, decoded, encoded
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

NAME = "receipts.jsonl"
FILES_MAX = 8
"""Files that share the bytes and the hours: so much of the oldest goes at a time."""
WINDOWS_MAX = 32_768
"""Generations of files by partitions between two writes, 200 bytes of memory each; what is more
goes without receipts."""
LIVES_MAX = 1024
"""Generations of files after which a write does not wait for ``write_s``: each takes 500 bytes
more, and ten thousand of them would leave holes behind that nothing fills."""
CLOSE_S = 2.0
"""What a stop waits for the last of them."""


class Receipts:
    """Collects on the event loop, writes in a thread. Lifetime: ``run`` until cancelled, ``close``.

    Args:
        topics: By the name of the sink.
    """

    def __init__(
        self,
        state_dir: Path,
        policy: ReceiptsPolicy,
        topics: Mapping[str, str],
        *,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._path = state_dir / NAME
        self._policy = policy
        self._topics = topics
        self._clock = clock
        self._metrics = metrics
        self._tally = Tally(WINDOWS_MAX)
        self._crowded = asyncio.Event()
        self._begun_s: float | None = None  # when the newest file was, of the wall clock
        self._said = False

    def acked(self, sink: str, batch: Batch, kafka_offset: int) -> None:
        """Note that Kafka has ``batch``; ``kafka_offset`` of its first record, -1 if untold."""
        if not self._policy.enabled:
            return
        window = (kafka_offset, kafka_offset + batch.count - 1) if kafka_offset >= 0 else UNTOLD
        self._tally.acked(batch.places, self._topics[sink], batch.partition, window)
        self._look()

    def spooled(self, sink: str, places: Iterable[Place], window: Window) -> None:
        """Note that a batch was put by, as the records ``window`` of its queue."""
        if self._policy.enabled:
            self._tally.spooled(places, sink, window)
            self._look()

    async def run(self) -> None:
        while self._policy.enabled:
            await wait_event(self._crowded, self._policy.write_s)
            await self.write()

    async def close(self) -> None:
        """Write what there is, but wait no longer than ``CLOSE_S``."""
        writing = asyncio.ensure_future(self.write())
        await asyncio.wait({writing}, timeout=CLOSE_S)

    def _look(self) -> None:
        if self._tally.held >= WINDOWS_MAX // 2 or self._tally.lives >= LIVES_MAX:
            self._crowded.set()

    async def write(self) -> None:
        """Write what there is, if it can be."""
        self._crowded.clear()
        dropped, self._tally.dropped = self._tally.dropped, 0
        receipts = self._tally.take(self._clock.wall())
        if receipts:
            try:
                await asyncio.to_thread(self._append, encoded(receipts))
                self._said = False
            except OSError as error:
                dropped += len(receipts)
                self._begun_s = None
                if not self._said:
                    self._said = True
                    event(log, logging.WARNING, "receipts.unwritable", detail=str(error),
                          effect="verify reads more of the topic")  # fmt: skip
        self._metrics.receipts_lost.inc(dropped)

    def _append(self, text: bytes) -> None:
        now_s = self._clock.wall()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                text = b"\n" + text  # a crash tore the last one
            if self._begun_s is None:
                self._begun_s = _first_at(fd, now_s)
            if size and self._full(size + len(text), now_s):
                os.close(fd)
                fd = -1
                self._rotate(now_s)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                fd = os.open(self._path, flags, 0o600)
                self._begun_s = now_s
            _write_all(fd, text)
        finally:
            if fd >= 0:
                os.close(fd)

    def _full(self, size: int, now_s: float) -> bool:
        assert self._begun_s is not None
        old = now_s - self._begun_s >= self._policy.keep_s / FILES_MAX
        return old or size > self._policy.bytes_max // FILES_MAX

    def _rotate(self, now_s: float) -> None:
        """Make room for a new file; those that are too old, or too many, go."""
        for number in range(FILES_MAX - 1, 0, -1):
            older = self._path.with_name(f"{NAME}.{number}")
            newer = older.with_name(NAME if number == 1 else f"{NAME}.{number - 1}")
            if not newer.exists():
                continue
            if newer.stat().st_mtime < now_s - self._policy.keep_s:
                newer.unlink()
            else:
                newer.replace(older)


def read(state_dir: Path, since_s: float) -> Iterator[Receipt]:
    """Yield the receipts since then, oldest first. Raises ``OSError``.

    A running agent may write meanwhile. What is torn or damaged is left out.
    """
    with ExitStack() as keep:
        if not state_dir.is_dir():
            return
        for file in opened(state_dir / NAME, keep):
            for line in lines(file):
                receipt = decoded(line)
                if receipt is not None and receipt.at >= since_s:
                    yield receipt


def _first_at(fd: int, now_s: float) -> float:
    """Return when the first receipt of an open file was written, ``now_s`` where there is none."""
    first = decoded(os.pread(fd, 1 << 16, 0).partition(b"\n")[0])
    return now_s if first is None else min(first.at, now_s)


def _write_all(fd: int, text: bytes) -> None:
    left = memoryview(text)
    while left:
        left = left[os.write(fd, left) :]
