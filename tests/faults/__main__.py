"""Plays faults on real brokers and prints a table. ``scripts/faults`` starts this."""

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct, field
from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests import real_kafka
from tests.faults.cluster import Brokers, guarded, stop
from tests.faults.faults import FAULTS, by_trouble, on_their_own
from tests.faults.outcome import Outcome
from tests.faults.play import play, play_together
from tests.faults.scale import LONG, QUICK, Scale

EXIT_FAULT, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
WAYS_OUT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Row(Struct):
    """All runs of one fault. ``problems``: what did not hold."""

    runs: int = 0
    lines: int = 0
    lost: int = 0
    twice: int = 0
    order_errors: int = 0
    longest_recovery_s: float | None = None
    problems: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.lines += outcome.verdict.lines
        self.lost += outcome.verdict.lost
        self.twice += outcome.verdict.copies
        self.order_errors += outcome.verdict.out_of_order
        if outcome.recovery_s is not None:
            self.longest_recovery_s = max(self.longest_recovery_s or 0.0, outcome.recovery_s)
        if outcome.problem:
            self.problems.append(outcome.problem)

    def cells(self) -> list[str]:
        numbers = (self.runs, self.lines, self.lost, self.twice, self.order_errors)
        recovery = "" if self.longest_recovery_s is None else f"{self.longest_recovery_s:.1f}"
        return [*(f"{number:,}" for number in numbers), recovery, "no" if self.problems else "yes"]


class Night:
    """All runs of the faults ``names``, one for each of ``seeds``; yields what each came to."""

    def __init__(
        self, names: list[str], scale: Scale, seeds: list[str], work: Path, console: Console
    ) -> None:
        self._names = names
        self._scale = scale
        self._seeds = seeds
        self._work = work
        self._console = console

    def outcomes(self) -> Iterator[Outcome]:
        yield from self._alone()
        yield from self._together()

    def _alone(self) -> Iterator[Outcome]:
        chosen = [fault for fault in on_their_own() if fault.name in self._names]
        if not chosen:
            return
        with cluster_below(self._work / "guarded") as run:
            with self._shown("one broker starts"):
                kafka = guarded(run)
            for number, seed in enumerate(self._seeds, 1):
                for fault in chosen:
                    with self._shown(fault.name, number):
                        outcome = play(
                            fault, kafka, self._scale, self._work / f"alone-{seed}", seed
                        )
                    yield outcome

    def _together(self) -> Iterator[Outcome]:
        """Play those of one trouble at the same time."""
        chosen = {
            trouble: [fault for fault in faults if fault.name in self._names]
            for trouble, faults in by_trouble().items()
        }
        if not any(chosen.values()):
            return
        with cluster_below(self._work / "three") as run:
            with self._shown("three brokers start"):
                brokers = Brokers(run)
            for number, seed in enumerate(self._seeds, 1):
                for trouble, faults in chosen.items():
                    if not faults:
                        continue
                    what = (
                        faults[0].name if len(faults) == 1 else f"{trouble}: {len(faults)} faults"
                    )
                    with self._shown(what, number):
                        here = self._work / f"{trouble}-{seed}"
                        outcomes = play_together(faults, brokers, self._scale, here, seed)
                    yield from outcomes

    @contextmanager
    def _shown(self, what: str, number: int | None = None) -> Iterator[None]:
        """Say what goes on, and since when, where somebody looks."""
        text = what if number is None else f"{what}, run {number} of {len(self._seeds)}"
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
        ) as on:
            on.add_task(text, total=None)
            yield


@contextmanager
def cluster_below(run: Path) -> Iterator[Path]:
    """Yield where a cluster can run; it is stopped at the end."""
    run.mkdir()
    try:
        yield run
    finally:
        stop(run)


def table(rows: dict[str, Row], scale: Scale) -> Table:
    found = Table(
        title=f"Faults, {scale.name}",
        title_justify="left",
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # 80 columns are enough
    )
    found.add_column("fault", no_wrap=True)
    for name in ("runs", "lines", "lost", "twice", "order\nerrors", "recovery\ns", "held"):
        found.add_column(name, justify="right")
    for name, row in rows.items():
        found.add_row(name, *row.cells(), style="red" if row.problems else "")
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which faults; without, all")
    parser.add_argument("--list", action="store_true", help="print their names and what they are")
    parser.add_argument("--long", action="store_true", help="outages of an hour, 1,000 kills")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="of each fault")
    parser.add_argument("--seed", type=int, help="repeat the run of that seed")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a number of tests/faults/scale.py, as down_s=600",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    scale = LONG if arguments.long else QUICK
    try:
        arguments.scale = scaled(scale, arguments.set)
    except (ValueError, msgspec.ValidationError) as error:
        parser.error(f"--set: {error}")
    return arguments


def scaled(scale: Scale, pairs: list[str]) -> Scale:
    """Return ``scale`` with each KEY=VALUE of ``pairs`` in it; raises ``ValueError``."""
    fields = msgspec.to_builtins(scale)
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in fields or key in {"name", "sections"}:
            raise ValueError(f"no number {key!r}")
        fields[key] = value
    return msgspec.convert(fields, Scale, strict=False)


def show(console: Console) -> None:
    found = Table(show_header=False, box=None)
    found.add_column(no_wrap=True)
    for name, fault in FAULTS.items():
        found.add_row(name, " ".join((fault.play.__doc__ or "").split()))
    console.print(found)


def interrupted(*_: object) -> None:
    """End once: what follows takes down what runs, and takes its time."""
    for number in WAYS_OUT:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    arguments = parse()
    console = Console(highlight=False)
    if arguments.list:
        show(console)
        return 0
    if lacking := real_kafka.missing():
        console.print(f"{' and '.join(lacking)} missing", style="red")
        return EXIT_USAGE
    draw = random.SystemRandom()
    seeds = [str(arguments.seed)] if arguments.seed is not None else []
    seeds += [str(draw.randrange(1 << 32)) for _ in range(arguments.runs - len(seeds))]
    console.print(f"seeds {' '.join(seeds)}")
    for number in WAYS_OUT:
        signal.signal(number, interrupted)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # that nobody waits for a killed app
    work = Path(tempfile.mkdtemp(prefix="feedback-agent-faults-"))
    rows = {name: Row() for name in FAULTS if name in (arguments.names or FAULTS)}
    interruption = ""
    try:
        for outcome in Night(list(rows), arguments.scale, seeds, work, console).outcomes():
            rows[outcome.fault].add(outcome)
            console.print(outcome.problem or f"{outcome.fault}: ok", markup=False)
    except KeyboardInterrupt:
        interruption = "interrupted; everything is stopped"
    played = {name: row for name, row in rows.items() if row.runs}
    if played:
        console.print(table(played, arguments.scale))
    if interruption:
        console.print(interruption)
    broken = any(row.problems for row in rows.values())
    if broken:
        console.print(f"what they wrote and said: {work}", soft_wrap=True)
    else:
        shutil.rmtree(work)
    return EXIT_INTERRUPTED if interruption else EXIT_FAULT if broken else 0


if __name__ == "__main__":
    sys.exit(main())
