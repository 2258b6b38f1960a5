"""Looks again and again at files that are read while the agent runs, and says what came of it.

To have one more thing reloaded, make a ``Reloaded`` of it where it is loaded first, and give that
to ``Reloading`` with what puts it to work.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

from agent.clock import wait_event
from agent.core.auditing import Note, unheard
from agent.reloaded import Outcome, Reloaded
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
"""Between two looks at the files."""
SETTLE_S: Final = 1.0
"""The same while they change."""


class Watched(NamedTuple):
    """``adopt`` puts the new ``reloaded.value`` to work, in the event loop."""

    reloaded: Reloaded[Any]
    adopt: Callable[[], Awaitable[None]]


class Reloading:
    """Looks at what is watched, again and again. ``run`` until cancelled.

    Args:
        executor: One thread, in which files are read.
    """

    def __init__(
        self,
        watched: Sequence[Watched],
        executor: Executor,
        *,
        note: Note = unheard,
        metrics: Metrics,
    ) -> None:
        self._watched = watched
        self._executor = executor
        self._note = note
        self._metrics = metrics
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Look now: whoever asks has written everything."""
        event(log, logging.INFO, "reload.asked")
        self._asked.set()

    async def run(self) -> None:
        wait_s = LOOK_S
        while True:
            at_once = await wait_event(self._asked, wait_s)
            self._asked.clear()
            outcomes = [await self._look(watched, at_once=at_once) for watched in self._watched]
            wait_s = SETTLE_S if "unsettled" in outcomes else LOOK_S

    async def _look(self, watched: Watched, *, at_once: bool) -> Outcome:
        reloaded, adopt = watched
        loop = asyncio.get_running_loop()
        outcome = await loop.run_in_executor(self._executor, lambda: reloaded.look(at_once=at_once))
        if outcome == "adopted":
            await adopt()
            self._metrics.reloads.labels(reloaded.what, outcome).inc()
            event(log, logging.INFO, "reload.adopted", what=reloaded.what, version=reloaded.version)
            self._note("reload.adopted", what=reloaded.what, version=reloaded.version)
        elif outcome == "refused":
            assert reloaded.problem is not None
            key, reason = reloaded.problem.where, reloaded.problem.detail
            self._metrics.reloads.labels(reloaded.what, outcome).inc()
            event(log, logging.WARNING, "reload.refused", what=reloaded.what, key=key,
                  reason=reason, effect="the last good one stays")  # fmt: skip
            self._note("reload.refused", what=reloaded.what, key=key, reason=reason)
        return outcome
