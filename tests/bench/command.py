"""What the commands of all benches share: their options, where they work, how they end."""

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml

from tests.bench import table
from tests.bench.brokers import Brokers, brokers
from tests.bench.reader import Checked
from tests.bench.runs import Finished, Sections

EXIT_FAILED = 1


class Bench(NamedTuple):
    """Args:
    work: A directory that is removed in the end.
    more: What ``--set`` asks for, of the agent's configuration.
    plant: Overlook a line.
    say: Prints how far it is.
    """

    work: Path
    brokers: Brokers
    quick: bool
    more: Sections
    plant: bool
    say: Callable[[str], None]


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that ``bench`` takes."""
    for add in (
        click.option("--plant-loss", "plant", is_flag=True, hidden=True),
        click.option("--json", "as_json", is_flag=True, help="All values, for a program."),
        click.option("--kafka", is_flag=True, help="A real one, not the embedded broker."),
        click.option("--quick", is_flag=True, help="Seconds, to see that it runs."),
        click.option(
            "--set", "more", multiple=True, metavar="SECTION.KEY=VALUE", help="Of the agent."
        ),
    ):
        command = add(command)
    return command


def finish(
    make: Callable[[Bench], table.Report],
    *,
    as_json: bool,
    kafka: bool,
    quick: bool,
    plant: bool,
    more: tuple[str, ...],
) -> None:
    """Measure, print, and end with 1 where something is wrong."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is ended either way
    console = table.console(as_json=as_json)
    with _working(kafka=kafka) as (work, found):
        bench = Bench(
            work=work,
            brokers=found,
            quick=quick,
            more=sections(more),
            plant=plant,
            say=lambda text: console.print(text, style="dim", markup=False, soft_wrap=True),
        )
        report = make(bench)
    if as_json:
        click.echo(report.to_json())
    else:
        report.show(console)
    sys.exit(EXIT_FAILED if report.failed else 0)


@contextmanager
def _working(*, kafka: bool) -> Iterator[tuple[Path, Brokers]]:
    with ExitStack() as stack:
        prefix = "feedback-agent-bench-"
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        yield work, stack.enter_context(brokers(work, kafka=kafka))


def sections(pairs: tuple[str, ...]) -> Sections:
    """Return the configuration that ``section.key=value`` ask for."""
    found: Sections = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        section, dot, name = path.partition(".")
        if not equals or not dot:
            raise click.UsageError(f"{pair!r} is not SECTION.KEY=VALUE")
        found.setdefault(section, {})[name] = yaml.safe_load(value)
    return found


def merged(more: Sections, **sections: dict[str, object]) -> dict[str, Any]:
    """Return ``sections`` with ``more`` above them."""
    names = {**sections, **more}
    return {name: {**sections.get(name, {}), **more.get(name, {})} for name in names}


def judge(report: table.Report, name: str, run: Finished) -> None:
    """Count what ``run`` lost, and say what else is wrong with what arrived."""
    if run.checked is not None:
        judge_checked(report, name, run.lines, run.checked)
        return
    report.notes.append(
        f"{name}: counted by offsets alone; the broker dropped {run.arrived.dropped:,} records "
        "before the consumer had them"
    )
    _judge_count(report, name, run.lines, run.arrived.records)


def judge_checked(report: table.Report, name: str, lines: int, checked: Checked) -> None:
    """The same for the lines that ``checked`` looked at."""
    _judge_count(report, name, lines, checked.lines)
    if checked.copies:
        report.notes.append(f"{name}: {checked.copies:,} lines came again")
    if checked.strangers:
        report.troubles.append(f"{name}: {checked.strangers:,} records are no line")


def _judge_count(report: table.Report, name: str, lines: int, arrived: int) -> None:
    lost = max(0, lines - arrived)
    report.lost += lost
    if lost:
        report.troubles.append(f"{name}: {lost:,} of {lines:,} lines lost")
