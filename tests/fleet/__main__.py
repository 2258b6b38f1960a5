"""Prints a run of the fleet: a table of its phases, and a bar a second around the return."""

from math import ceil
from statistics import median

import click
from rich import box
from rich.console import Console
from rich.table import Table

from tests.fleet.story import Story, tell
from tests.fleet.world import AGENT, BEFORE_S, CALM_S, NAIVE, Plan

BAR = 24
WIDTH_MIN = 100
SHOWN = ("connections", "produce", "metadata", "refused", "queued", "window")


def phases(plan: Plan) -> list[tuple[str, float, float]]:
    return [
        ("start", 0.0, ceil(plan.start_jitter_s) + CALM_S),
        ("before", plan.down_s - BEFORE_S, plan.down_s),
        ("away", plan.down_s, plan.up_s),
        ("after, 1 s", plan.up_s, plan.up_s + 1),
        ("after, 10 s", plan.up_s, plan.up_s + 10),
        ("settled", plan.end_s - BEFORE_S, plan.end_s),
    ]


def table(stories: list[Story]) -> Table:
    """Return min, median and peak of a second in each phase; one number where they are one."""
    shown = Table(
        title=f"in a second: min/median/peak of {stories[0].plan.nodes:,} nodes together",
        box=box.SIMPLE,
    )
    for column in ("phase", *SHOWN):
        shown.add_column(column, justify="left" if column == "phase" else "right", no_wrap=True)
    for story in stories:
        shown.add_row(story.style.name, style="bold")
        for name, from_s, to_s in phases(story.plan):
            cells = []
            for meter in SHOWN:
                seconds = story.between(meter, from_s, to_s)
                three = min(seconds), int(median(seconds)), max(seconds)
                cells.append("/".join(dict.fromkeys(map(_short, three))))
            shown.add_row(name, *cells)
        shown.add_section()
    return shown


def _short(number: int) -> str:
    return str(number) if number < 1000 else f"{number / 1000:.3g}k"


def bars(stories: list[Story]) -> Table:
    """Return the seconds around the return, a bar each; a full bar is the whole fleet."""
    title = "connection attempts + metadata requests, share of the fleet"
    shown = Table(title=title, box=box.SIMPLE)
    shown.add_column("second", justify="right")
    for story in stories:
        shown.add_column(story.style.name, no_wrap=True)
    up_s = int(stories[0].plan.up_s)
    for second in range(up_s - 3, up_s + 18):
        cells = []
        for story in stories:
            share = story.arrivals(second, second + 1)[0] / story.plan.nodes
            bar = "█" * min(BAR, ceil(share * BAR)) + ("…" if share > 1 else "")
            cells.append(f"{bar:{BAR + 1}} {share:6.1%}")
        shown.add_row(f"{second - up_s:+d}", *cells, style="dim" if second < up_s else None)
    return shown


@click.command()
@click.option("--nodes", default=Plan().nodes, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=Plan().seed, show_default=True)
@click.option("--away", "away_s", default=Plan().away_s, show_default=True, help="Seconds.")
@click.option("--brokers", type=click.IntRange(1), help="Default: 1, with --rolling 3.")
@click.option("--rolling", is_flag=True, help="One broker after the other; leaders move.")
@click.option("--start-jitter", "start_jitter_s", default=Plan().start_jitter_s, show_default=True)
@click.option("--headroom", default=Plan().headroom, show_default=True, help="Capacity over load.")
def main(
    *,
    nodes: int,
    seed: int,
    away_s: float,
    brokers: int | None,
    rolling: bool,
    start_jitter_s: float,
    headroom: float,
) -> None:
    """Restart the brokers of a simulated fleet, and show what they meet on their return."""
    if brokers is None:
        brokers = 3 if rolling else 1
    plan = Plan(
        nodes=nodes,
        seed=seed,
        away_s=away_s,
        after_s=30.0 if rolling else max(40.0, 15.0 + away_s),
        start_jitter_s=start_jitter_s,
        brokers=brokers,
        rolling=rolling,
        headroom=headroom,
    )
    console = Console(highlight=False)
    console = Console(highlight=False, width=max(console.width, WIDTH_MIN))
    brokers_said = "1 broker" if brokers == 1 else f"{brokers} brokers"
    console.print(f"{plan.nodes:,} nodes, {brokers_said}, away {plan.away_s:g} s, seed {seed}")
    with console.status("simulating"):
        stories = [tell(plan, style) for style in (AGENT, NAIVE)]
    console.print(table(stories))
    console.print(bars(stories))
    for story in stories:
        peak = max(story.arrivals(plan.up_s, plan.end_s)) / plan.nodes
        drained_s = story.drained_s
        drained = "not drained" if drained_s is None else f"drained after {drained_s:g} s"
        console.print(
            f"{story.style.name}: at most {peak:.1%} of the fleet in a second after the return; "
            f"{drained}; longest queue {story.queue_s:.1f} s"
        )


if __name__ == "__main__":
    main()
