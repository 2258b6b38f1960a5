"""``feedback-agent spool drain`` where no agent runs: the rooms of one send what waits on its disk.

With its own credentials, and owning its state directory, so that none can start meanwhile. No file
is looked for: what apps write is the next agent's.
"""

import logging
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from agent import logs, pipeline, redaction
from agent.assembly import InForce, Parts, in_force
from agent.clock import Clock
from agent.config import Config
from agent.operator.screen import console, progress
from agent.telemetry import SINKS, Metrics
from agent.wiring import Wiring

LOOK_S = 0.25


class Errand:
    """What ``pipeline`` is to do: to replay until nothing is left, or for ``wait_s``.

    Args:
        told: Called now and then with how many records are left, and why Kafka does not take them.
    """

    def __init__(self, wait_s: float, told: Callable[[int, str], None]) -> None:
        self._wait_s = wait_s
        self._told = told
        self._wiring: Wiring | None = None
        self._problems: dict[str, str | None] = {}

    def parts(self, config: Config, rules: InForce, clock: Clock, metrics: Metrics) -> Parts:
        return Parts(config, rules, clock, metrics)

    async def run(self, wiring: Wiring) -> None:
        self._wiring = wiring
        ends_s = wiring.clock.monotonic() + self._wait_s
        try:
            while (left := self._left(wiring)) and wiring.clock.monotonic() < ends_s:
                await wiring.clock.sleep(LOOK_S)
                self._told(left, self._problem(wiring))
        finally:
            self._problems = {way.outlet.name: way.outlet.problem for way in wiring.ways}

    def queues(self) -> list[dict[str, Any]]:
        """Return what is left when the run is over, as a running agent says it."""
        assert self._wiring is not None, "it did not run"
        return [
            {"queue": name, "problem": self._problems.get(name), **way.status(), "mode": "down"}
            for way in self._wiring.ways
            for name in [way.outlet.name]
        ]

    def _left(self, wiring: Wiring) -> int:
        return sum(way.spooled_records for way in wiring.ways)

    def _problem(self, wiring: Wiring) -> str:
        stuck = (way.outlet.problem for way in wiring.ways if way.spooled_records)
        return next(filter(None, stuck), "")


def drain(config: Config, wait_s: float, records: int) -> list[dict[str, Any]]:
    """Send what waits, ``records`` or so; return the queues as they are after at most ``wait_s``
    and ``agent.drain_s``. Raises ``AgentError``, ``StateOwned`` where an agent runs by now."""
    if not records:
        return [_nothing(name) for name in SINKS]
    # It is one node and one person who waits: there is nothing to spread in time.
    config = replace(config, agent=replace(config.agent, start_jitter_s=0.0))
    rules = in_force(config)
    shown = redaction.shown(lambda: rules.redaction.value)
    with progress(console(stderr=True)) as bar:
        task = bar.add_task("replaying", total=records, rate="")

        def told(left: int, problem: str) -> None:
            bar.update(task, completed=max(0, records - left), rate=problem)

        errand = Errand(wait_s, told)
        handler = logs.setup("error", config.log.format, shown=shown)
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it says, the result says
        try:
            pipeline.run(config, rules, errand)
        finally:
            logging.getLogger().removeHandler(handler)
    return errand.queues()


def _nothing(queue: str) -> dict[str, Any]:
    return {
        "queue": queue,
        "problem": None,
        "mode": "down",
        "spooled_records": 0,
        "spooled_bytes": 0,
        "spool_full": None,
    }
