"""How long a line takes from its append to its acknowledgement, and to a consumer, at a few rates.

What is measured, of each line, is the time from just before its ``write(2)`` to

* ``acked``: when the whole answer to the request that it was in, with no error, had come to a relay
  through which the agent reaches its brokers: on the agent's side of them, before the agent read
  it. So the relay's part is in it: passing the request on, which is named below the table, and two
  wake-ups of its process. An upper bound of append to acknowledgement, by less than a millisecond.
* ``read``: when the answer to a fetch that has it had come to a consumer, which reads from the
  brokers without the relay, and whose polling is in it.
"""

import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

import click

from tests.bench import corpus, usage
from tests.bench.answered import relaying
from tests.bench.command import Bench, finish, judge_checked, merged, options
from tests.bench.reader import reading
from tests.bench.runs import Sections, as_running, await_all
from tests.bench.table import Column, Report
from tests.running import Agent

RATES = (1_000, 10_000)
TICK_S = 0.001
"""Between two looks of the writer at what is due."""
READY_WITHIN_S = 60.0
CUTS = {"p50 ms": 499, "p99 ms": 989, "p99.9 ms": 998}
"""Of 999 cuts between thousandths."""

COLUMNS = (
    *(Column(f"acked {cut}") for cut in CUTS),
    *(Column(f"read {cut}") for cut in CUTS),
    Column("agent CPU %"),
    Column("relay's part us", 0),
    Column("lines/s", 0),
)

_spawn = get_context("spawn")


class Plan(NamedTuple):
    """Args:
    rate: Lines a second.
    warm_s: Before ``seconds`` that are measured; a batch size has to be found first.
    """

    rate: int
    seconds: float
    warm_s: float

    @property
    def lines(self) -> int:
        return int(self.rate * (self.warm_s + self.seconds))


class Wrote(NamedTuple):
    measured_ns: int
    ended_ns: int

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.measured_ns) / 1e9


def write(path: Path, plan: Plan, tell: Connection) -> None:
    """Append lines that say when they were written; tell "begun", "measured" and ``Wrote``.

    Each has a write of its own. One that is late is written late, which counts for nobody.
    """
    halves = [line.split(b'"seq":') for line in corpus.lines(plan.lines)]
    warm, measured_ns = int(plan.rate * plan.warm_s), 0
    with path.open("ab", buffering=0) as file:
        tell.send("begun")
        began_s = time.monotonic()
        for number, (head, tail) in enumerate(halves):
            while (ahead_s := began_s + number / plan.rate - time.monotonic()) > 0:
                time.sleep(max(ahead_s, TICK_S))
            if number == warm:
                measured_ns = time.time_ns()
                tell.send("measured")
            file.write(head + b'"written_at_ns":%d,"seq":' % time.time_ns() + tail)
    tell.send(Wrote(measured_ns, time.time_ns()))


def measure(bench: Bench, report: Report, row: str, plan: Plan, more: Sections) -> None:
    place = Path(tempfile.mkdtemp(dir=bench.work))
    with (
        bench.brokers.topics() as topics,
        reading(bench.brokers, topics, place, plant=bench.plant) as reader,
        relaying(topics, place) as relay,
        Agent(place, relay.topics, **more).start() as agent,
    ):
        agent.until(lambda: not agent.not_ready(), "ready", READY_WITHIN_S)
        assert agent.pid is not None
        path = agent.root / "app" / "feedback.jsonl"
        path.parent.mkdir()
        ours, its = _spawn.Pipe()
        _spawn.Process(target=write, args=(path, plan, its), daemon=True).start()
        its.close()
        for said in ("begun", "measured"):
            assert said == ours.recv()
        before_s = usage.cpu_s(agent.pid)
        wrote: Wrote = ours.recv()
        cpu_s = usage.cpu_s(agent.pid) - before_s
        await_all(as_running(agent), reader, plan.lines)
        assert 0 == agent.stop(), agent.tail()
        checked = reader.check(plan.lines)
        answered = relay.answered()
    judge_checked(report, row, plan.lines, checked)
    if len(answered.latencies) < plan.lines:
        missing = plan.lines - len(answered.latencies)
        report.troubles.append(f"{row}: {missing:,} lines have no answer")
    values: dict[str, Any] = {
        **_cut("acked", answered.latencies, wrote.measured_ns),
        **_cut("read", checked.latencies, wrote.measured_ns),
        "agent CPU %": 100 * cpu_s / wrote.seconds,
        "relay's part us": answered.relay_ns / 1e3,
        "lines/s": plan.rate * plan.seconds / wrote.seconds,
    }
    report.add(row, **values)


def _cut(until: str, latencies: list[tuple[int, int]], measured_ns: int) -> dict[str, float]:
    """Return the columns of what was written since ``measured_ns``."""
    took = [took for written_ns, took in latencies if written_ns >= measured_ns]
    cut = quantiles(took, n=1000, method="inclusive")
    return {f"{until} {name}": cut[at] / 1e6 for name, at in CUTS.items()}


def report_on(bench: Bench, *, seconds: float, rounds: int) -> Report:
    title = f"from append to acknowledgement and to the consumer, {rounds} rounds of {seconds:g} s"
    report = Report(title, COLUMNS, {"broker": bench.brokers.name})
    report.notes.append(
        "acked: the broker's answer had come as far as the relay before the agent"
        "; read: a consumer had the line"
        + (f", up to {bench.brokers.fetch_wait_ms} ms of polling" if bench.brokers.polled else "")
    )
    kinds: dict[str, Sections] = {
        "default": bench.more,
        "batch.age_min_s: 0.002": merged(bench.more, batch={"age_min_s": 0.002}),
    }
    discarded = Report(title, COLUMNS, {})
    for number in range(-bench.brokers.warm_rounds, rounds):
        for rate in RATES[:1] if bench.quick else RATES:
            for kind, more in kinds.items():
                plan = Plan(rate, seconds, warm_s=min(5.0, seconds / 2))
                row = f"{rate:,} a second, {kind}"
                measure(bench, report if number >= 0 else discarded, row, plan, more)
                bench.say(f"round {number + 1}: {row}")
    return report


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Measured, of each row.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@options
def main(*, seconds: float, rounds: int, quick: bool, **common: Any) -> None:
    """Measure how long a line takes from its append to acknowledgement and to the consumer."""
    if quick:
        seconds, rounds = 1.0, 1
    finish(lambda bench: report_on(bench, seconds=seconds, rounds=rounds), quick=quick, **common)


if __name__ == "__main__":
    main()
