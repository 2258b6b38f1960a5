"""``feedback-agent spool``: what waits on this node's disk until Kafka takes it."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from agent import asking, offline
from agent.clock import SystemClock
from agent.config import Config
from agent.errors import NotRunning
from agent.operator.screen import cell, console, counted, progress, table

LOOK_S = 0.5
HASTEN_S = 5.0
"""Between two tries: brokers that are just coming back have enough to do."""


def queues(config: Config) -> Iterator[dict[str, Any]]:
    """Yield each queue: its records, bytes, rows, the first and the last time at which something
    in it was read, and, of a running agent, what it is doing with it."""
    try:
        yield from asking.ask(config.agent.state_dir, "spool")
    except NotRunning:
        with offline.taken(config) as state, offline.spool(state) as spool:
            for name, queue in spool.queues.items():
                yield {"queue": name, **queue.census()._asdict(), "mode": "down"}


def exported(config: Config, queue: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a queue, oldest first, as they were put by: redacted. All stay there.

    The agent goes on meanwhile: what it replays before it is reached is not among them.
    """
    try:
        for page in asking.ask(config.agent.state_dir, "export", queue=queue):
            yield from page
    except NotRunning:
        with offline.taken(config) as state, offline.spool(state) as spool:
            yield from offline.spooled(spool.queues[queue])


def drain(config: Config, wait_s: float) -> list[dict[str, Any]]:
    """Let the agent try Kafka at once; return the queues as they are when nothing is left, or time
    is up. Raises ``NotRunning``."""
    directory = config.agent.state_dir
    found = list(asking.ask(directory, "drain"))
    clock, first = SystemClock(), left(found)
    hastened_s = clock.monotonic()
    ends_s = hastened_s + wait_s
    if not first:
        return found
    with progress(console(stderr=True)) as bar:
        task = bar.add_task("replaying", total=first, rate="")
        while left(found) and clock.monotonic() < ends_s:
            time.sleep(LOOK_S)
            again = clock.monotonic() >= hastened_s + HASTEN_S
            hastened_s = clock.monotonic() if again else hastened_s
            found = list(asking.ask(directory, "drain" if again else "spool"))
            bar.update(task, completed=max(0, first - left(found)), rate=_problem(found))
    return found


def left(found: list[dict[str, Any]]) -> int:
    return sum(int(queue["spooled_records"]) for queue in found)


def _problem(found: list[dict[str, Any]]) -> str:
    return next((str(q["problem"]) for q in found if q["spooled_records"] and q["problem"]), "")


# ---- for people


def show(found: list[dict[str, Any]]) -> None:
    out = console()
    names = ("queue", "mode", "records", "bytes", "rows", "oldest", "newest")
    shown = table(*names, right=("records", "bytes", "rows"))
    for one in found:
        full = f", full ({one['spool_full']})" if one.get("spool_full") else ""
        shown.add_row(
            one["queue"],
            cell(f"{one['mode']}{full}"),
            *(f"{one[name]:,}" for name in ("records", "bytes", "rows")),
            *(_at(one[name]) for name in ("oldest_ms", "newest_ms")),
        )
    out.print(shown)


def show_drained(found: list[dict[str, Any]]) -> None:
    out = console()
    for queue in found:
        records, why = queue["spooled_records"], queue["problem"]
        if not records:
            out.print(cell(f"{queue['queue']}: nothing is left", "green"))
        else:
            why = f"; Kafka: {why}" if why else ""
            what = f"{counted(records, 'record')} {'is' if records == 1 else 'are'} left{why}"
            out.print(cell(f"{queue['queue']}: {what}", "yellow"))


def _at(at_ms: int | None) -> str:
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
