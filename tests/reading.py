"""Scanner, registry and sources over a real directory, as the agent has them, without Kafka."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from agent.clock import Clock
from agent.core.identity import Checkpoint
from agent.opener import Opened, open_beneath
from agent.registry import Registry
from agent.scanner import Scanner
from agent.sources import Sources
from agent.telemetry import Metrics
from tests.fakes import no_deletion, unlimited_turns


class Reading:
    """The reading side of one life. How it reads, and what becomes of it, is up to a test.

    Args:
        rows: What the store holds at the start.
        limits: Others of ``Sources`` than those below.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        rows: Iterable[Checkpoint] = (),
        *,
        files_max: int = 1000,
        line_bytes_max: int = 4096,
        **limits: Any,
    ) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.scanner = Scanner(root, ["*.jsonl*"], client_files_max=files_max)
        self.registry = Registry(
            rows,
            line_bytes_max=line_bytes_max,
            forget_after_s=1e9,
            clock=clock,
            metrics=self.metrics,
        )
        self.sources = Sources(
            self.open_file,
            self.registry,
            line_bytes_max=line_bytes_max,
            **{
                "descriptors_max": 8,
                "start_at_end": False,
                "turns": unlimited_turns(clock, self.metrics),
                **limits,
            },
            deletion=no_deletion(clock, self.metrics),
            clock=clock,
            metrics=self.metrics,
        )
        self._root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def open_file(self, path: str) -> Opened:
        return open_beneath(self._root_fd, path)

    def close(self) -> None:
        for followed in self.sources.opened:
            assert followed.harvester is not None
            followed.harvester.file.close()
        os.close(self._root_fd)
