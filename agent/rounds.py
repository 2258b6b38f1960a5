"""Scan after scan: what the kernel hints at is looked at soon, everything now and then.

The scan is the truth. A hint may be lost and costs then at most ``source.scan_s``.
"""

import asyncio
import logging
from concurrent.futures import Executor
from pathlib import Path

from agent.clock import Clock, wait_event
from agent.core.discovery import Scan
from agent.intake import Intake
from agent.scanner import Scanner
from agent.telemetry import event
from agent.watcher import Watcher

log = logging.getLogger(__name__)

SCAN_GAP_S = 0.05
"""Between two scans that hints asked for, so that a storm of new files costs one scan."""
SCAN_BLIND_S = 0.5
"""Between two scans where the kernel gives no hints."""


class Rounds:
    """Keeps the intake informed of which files there are. ``run`` until cancelled, then ``close``.

    Args:
        executor: One thread, for the walks through the tree.
        interval_s: Between two scans that nothing asked for.
    """

    def __init__(
        self,
        root: Path,
        scanner: Scanner,
        intake: Intake,
        executor: Executor,
        *,
        interval_s: float,
        clock: Clock,
    ) -> None:
        self.root = root
        self.root_problem: str | None = "not scanned yet"
        self._scanner = scanner
        self._intake = intake
        self._executor = executor
        self._interval_s = interval_s
        self._clock = clock
        self._hinted = asyncio.Event()
        self._watcher = Watcher(root, on_data=intake.hint, on_change=self._hinted.set)

    async def run(self) -> None:
        while True:
            self._hinted.clear()
            self._watcher.start(asyncio.get_running_loop())
            scan = await self.scan()
            for directory in scan.directories:
                self._watcher.watch_directory(directory)
            await self._clock.sleep(SCAN_GAP_S)
            blind = self._watcher.problem is not None
            await wait_event(
                self._hinted, min(self._interval_s, SCAN_BLIND_S) if blind else self._interval_s
            )

    async def scan(self) -> Scan:
        """Look once, hand what was met to the intake, and say when the root changed its state."""
        known = self._intake.known
        loop = asyncio.get_running_loop()
        scan = await loop.run_in_executor(self._executor, self._scanner.scan, known)
        await self._intake.take_in(scan)
        if scan.root_problem != self.root_problem:
            self.root_problem = scan.root_problem
            level = logging.INFO if scan.root_problem is None else logging.WARNING
            event(log, level, "root.scanned", root=str(self.root), problem=scan.root_problem,
                  files=len(scan.files))  # fmt: skip
        return scan

    @property
    def watcher_problem(self) -> str | None:
        """Return why hints do not come, None while they do."""
        return self._watcher.problem

    def close(self) -> None:
        self._watcher.close()
