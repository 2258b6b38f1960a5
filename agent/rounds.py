"""Scan after scan: what the kernel hints at is looked at soon, everything now and then.

The scan is the truth. A hint may be lost and costs then at most ``source.scan_s``.
"""

import asyncio
import logging
from concurrent.futures import Executor
from pathlib import Path

from agent.clock import Clock, wait_event
from agent.core.discovery import Looking, Scan
from agent.intake import Intake
from agent.memory import give_back
from agent.telemetry import event
from agent.watcher import Problem, Watcher

log = logging.getLogger(__name__)

SCAN_GAP_S = 0.05
"""Between two scans that hints asked for, so that a storm of new files costs one scan."""
SCAN_BLIND_S = 0.5
"""Between two scans where the kernel gives no hints."""
SCAN_REST = 4
"""As many times as long as a scan took is nothing scanned: names cost a client nothing to make."""


class Rounds:
    """Keeps the intake informed of which files there are. ``run`` until cancelled, then ``close``.

    Args:
        executor: One thread, for the walks through the tree.
        interval_s: Between two scans that nothing asked for.
    """

    def __init__(
        self,
        root: Path,
        scanner: Looking,
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
        self._problem: Problem | None = None  # of the watcher, as last said
        self._hinted = asyncio.Event()
        self._watcher = Watcher(
            root,
            on_data=intake.hint,
            on_change=self._hinted.set,
            rest_s=lambda: intake.rest_s,
        )

    async def run(self) -> None:
        while True:
            self._hinted.clear()
            self._watcher.start(asyncio.get_running_loop())
            began_s = self._clock.monotonic()
            self._watch(await self.scan())  # not kept: with many files it is large
            problem = self._watcher.problem
            pause_s = self._interval_s if problem is None else min(self._interval_s, SCAN_BLIND_S)
            self._say(problem, pause_s)
            await asyncio.get_running_loop().run_in_executor(self._executor, give_back)
            await self._clock.sleep(
                max(SCAN_GAP_S, SCAN_REST * (self._clock.monotonic() - began_s))
            )
            await wait_event(self._hinted, pause_s)

    async def scan(self) -> Scan:
        """Look once, hand what was met to the intake, and say when the root changed its state."""
        loop = asyncio.get_running_loop()
        scan = await loop.run_in_executor(self._executor, self._look)
        await self._intake.take_in(scan)
        if scan.root_problem != self.root_problem:
            self.root_problem = scan.root_problem
            level = logging.INFO if scan.root_problem is None else logging.WARNING
            event(log, level, "root.scanned", root=str(self.root), problem=scan.root_problem,
                  files=len(scan.files))  # fmt: skip
        return scan

    def _watch(self, scan: Scan) -> None:
        if scan.root_problem is None:
            self._watcher.watch_all(scan.directories)

    def _look(self) -> Scan:
        return self._scanner.scan(self._intake.known, self._intake.remembered)

    @property
    def watcher_problem(self) -> str | None:
        """Return why hints do not come, None while they do."""
        return self._watcher.problem

    def close(self) -> None:
        self._watcher.close()

    def _say(self, problem: Problem | None, pause_s: float) -> None:
        """Say once why hints do not come. A root that is missing, ``root.scanned`` says."""
        if problem in {"root_missing", self._problem}:
            return
        self._problem = problem
        if problem is None:
            event(log, logging.INFO, "watcher.restored")
        else:
            event(log, logging.WARNING, "watcher.degraded", problem=problem,
                  effect="what is written is read after the next scan, not at once",
                  scan_s=pause_s)  # fmt: skip
