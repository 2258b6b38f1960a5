"""``feedback-agent backfill`` as a person would type it, beside an agent or without one."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka import ConsumerRecord
from click.testing import CliRunner

from agent.cli import main
from agent.operator.backfill.origins import checkpoints
from tests.running import Agent

WITHIN_S = 600.0
"""For millions of lines too; what hangs, the tests' own timeout ends sooner."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """Return what ``--json`` printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def command(agent: Agent, *arguments: object) -> list[str]:
    """Return the command over the configuration of ``agent``, which need not run."""
    own = [sys.executable, "-m", "agent", "backfill", "--config", str(agent.config), "--json"]
    return [*own, *map(str, arguments)]


def backfill(agent: Agent, *arguments: object) -> Ended:
    """Run it to its end, in this process: most of its time it would otherwise spend on imports."""
    done = CliRunner().invoke(main, command(agent, *arguments)[3:], prog_name="feedback-agent")
    return Ended(done.exit_code, done.stdout, done.stderr)


def summary(agent: Agent, *arguments: object) -> dict[str, Any]:
    """Run it to its end, which must be a good one."""
    ended = backfill(agent, *arguments)
    assert 0 == ended.code, ended
    return ended.summary


def interrupted(
    agent: Agent, *arguments: object, by: signal.Signals, after_bytes: int, later_s: float = 0.0
) -> Ended:
    """Run it until so much of all files is settled, then send it a signal, a little later."""
    with subprocess.Popen(
        command(agent, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline_s = time.monotonic() + WITHIN_S
        while settled_bytes(agent) < after_bytes and running.poll() is None:
            assert time.monotonic() < deadline_s, "nothing was settled"
            time.sleep(0.1)
        time.sleep(later_s)  # just now a commit was seen: there is less in flight than mostly
        running.send_signal(by)
        out, err = running.communicate(timeout=WITHIN_S)
    return Ended(running.returncode, out, err)


def settled_bytes(agent: Agent) -> int:
    """Return how much all backfills have settled, by their checkpoints."""
    states = agent.state_dir.glob("backfill/*")
    return sum(row.watermark for state in states for row in checkpoints(state) or [])


def ids(records: Iterable[ConsumerRecord]) -> dict[tuple[str, int, int], set[str]]:
    """Return the ids of events by generation and place of their line in the file."""
    found: dict[tuple[str, int, int], set[str]] = {}
    for record in records:
        _, source, generation, start, _ = dict(record.headers)["source"].decode().split(";")
        place = source, int(generation), int(start)
        found.setdefault(place, set()).add(json.loads(record.value)["event_id"])
    return found
