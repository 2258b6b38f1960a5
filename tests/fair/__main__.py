"""Prints what one client that floods costs the others. ``scripts/bench/fair`` starts this."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import uuid4

import click
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import real_kafka
from tests.fair.rounds import PARTITIONS, Phase, Plan, reading, run
from tests.running import Agent, mock_topics

EXIT_LOST = 1
WIDTH_MIN = 100
WARM_PHASES = {False: 1, True: 4}
"""Phases that do not count, with the embedded broker and with a real one: Java is slow at first."""
AIM = 2.0
"""The others' p99 less than doubles."""


class Pair(NamedTuple):
    alone: Phase
    beside: Phase

    @property
    def p99_ratio(self) -> float:
        return self.beside.p99_ms / self.alone.p99_ms


@contextmanager
def embedded_topics(_: Path) -> Iterator[Topics]:
    with EmbeddedKafka() as cluster:
        yield mock_topics(cluster)


@contextmanager
def real_topics(work: Path) -> Iterator[Topics]:
    """Of a name of their own, on the brokers that the environment names, else on one of ours."""
    with ExitStack() as stack:
        servers = os.environ.get(real_kafka.ADDRESS)
        if servers is None:
            cluster = work / "kafka"
            cluster.mkdir()
            stack.callback(real_kafka.run_script, cluster, "stop")
            servers = real_kafka.start(cluster)
        topics = Topics(servers, f"fair-{uuid4().hex}", f"fair-{uuid4().hex}")
        asyncio.run(real_kafka.create_topic(servers, topics.events, PARTITIONS))
        asyncio.run(real_kafka.create_topic(servers, topics.dead_letters, 1))
        yield topics


def sections(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Return the configuration that ``section.key=value`` ask for."""
    found: dict[str, dict[str, object]] = {}
    for pair in pairs:
        path, _, value = pair.partition("=")
        section, _, name = path.partition(".")
        found.setdefault(section, {})[name] = yaml.safe_load(value)
    return found


def table(pairs: list[Pair]) -> Table:
    title = "from append to the consumer, and until the agent had read it; median (least to most)"
    shown = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in (
        "",
        "p50\nms",
        "p99\nms",
        "until read\np99 ms",
        "flood\nlines/s",
        "read\nlines/s",
    ):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, phases in (
        ("alone", [pair.alone for pair in pairs]),
        ("beside a flood", [pair.beside for pair in pairs]),
    ):
        shown.add_row(
            name,
            spread([phase.p50_ms for phase in phases]),
            spread([phase.p99_ms for phase in phases]),
            spread([phase.taken_in_p99_ms for phase in phases]),
            f"{median(phase.flood_written_per_s for phase in phases):,.0f}",
            f"{median(phase.read_per_s for phase in phases):,.0f}",
        )
    p50 = [pair.beside.p50_ms / pair.alone.p50_ms for pair in pairs]
    p99 = [pair.p99_ratio for pair in pairs]
    shown.add_row("ratio", spread(p50, "{:.2f}".format), spread(p99, "{:.2f}".format))
    return shown


def spread(numbers: list[float], form: Callable[[float], str] = "{:,.0f}".format) -> str:
    return f"{form(median(numbers))} ({form(min(numbers))} to {form(max(numbers))})"


def measure(
    plan: Plan, count: int, more: dict[str, Any], console: Console, *, kafka: bool
) -> list[Pair]:
    pairs: list[Pair] = []
    with ExitStack() as stack:
        # Its files are read at the speed at which they are written: not on a slow disk.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedback-agent-fair-")))
        topics = stack.enter_context((real_topics if kafka else embedded_topics)(work))
        agent = stack.enter_context(Agent(work, topics, **more)).start()
        reader = stack.enter_context(reading(topics))
        for number in range(-WARM_PHASES[kafka], 0):
            run(agent, reader, plan, number=number, beside=True)
        for number in range(1, count + 1):
            phases: dict[bool, Phase] = {}
            for beside in (False, True) if number % 2 else (True, False):
                phases[beside] = run(agent, reader, plan, number=number, beside=beside)
            pairs.append(Pair(phases[False], phases[True]))
            said = pairs[-1]
            console.print(
                f"pair {number}: p99 {said.alone.p99_ms:.0f} ms alone, "
                f"{said.beside.p99_ms:.0f} ms beside; drained {said.beside.drained_s:.1f} s later"
            )
        assert agent.stop() == 0, agent.tail()
    return pairs


@click.command()
@click.option("--pairs", "count", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=Plan().seconds, show_default=True, help="Measured, a phase.")
@click.option("--warm", default=Plan().warm_s, show_default=True, help="Before it is measured.")
@click.option("--clients", default=Plan().clients, show_default=True, type=click.IntRange(1))
@click.option("--rate", default=Plan().client_per_s, show_default=True, help="Lines/s of each.")
@click.option("--flood", default=Plan().flood_per_s, show_default=True, help="Lines/s of the one.")
@click.option("--set", "more", multiple=True, metavar="SECTION.KEY=VALUE", help="Of the agent.")
@click.option("--kafka", is_flag=True, help="A real one, not the embedded broker.")
@click.option("--json", "as_json", is_flag=True, help="All numbers, for a program.")
def main(
    *,
    count: int,
    seconds: float,
    warm: float,
    clients: int,
    rate: float,
    flood: float,
    more: tuple[str, ...],
    kafka: bool,
    as_json: bool,
) -> None:
    """Measure clients that write a little, alone and beside one that floods, in turns."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is ended either way
    plan = Plan(clients, rate, flood, seconds, warm)
    console = Console(highlight=False, stderr=as_json)
    console.width = max(console.width, WIDTH_MIN)
    console.print(
        f"{clients} clients at {rate:g} lines/s, alone and beside one at {flood:,.0f}; "
        f"{'Apache Kafka' if kafka else 'embedded broker'}, {os.cpu_count()} CPUs"
    )
    pairs = measure(plan, count, sections(more), console, kafka=kafka)
    phases = [phase for pair in pairs for phase in pair]
    lost, copies = sum(p.lost for p in phases), sum(p.copies for p in phases)
    ratio = median(pair.p99_ratio for pair in pairs)
    if as_json:
        rows = [{name: of._asdict() for name, of in pair._asdict().items()} for pair in pairs]
        said = {"plan": plan._asdict(), "p99_ratio": ratio, "lost": lost, "pairs": rows}
        click.echo(json.dumps(said, indent=1))
    else:
        console.print(table(pairs))
        console.print(
            f"{sum(p.lines for p in phases):,} lines, {lost:,} lost, {copies:,} twice; p99 beside "
            f"a flood is {ratio:.2f} times that alone, the aim is less than {AIM:g}"
        )
    sys.exit(EXIT_LOST if lost else 0)


if __name__ == "__main__":
    main()
