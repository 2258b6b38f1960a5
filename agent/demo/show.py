"""The demo: apps write, the agent ships and is killed half way, and nothing is lost.

Three brokers, four apps that rotate their files, the agent, a reader: real processes, files and
sockets, all on this machine, in a directory that stays only where a promise was broken.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import confluent_kafka as _  # noqa: F401  where the extra is missing, the command says so
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.clock import SystemClock
from agent.demo.app import defect
from agent.demo.broker import EmbeddedKafka
from agent.demo.oracle import Arrivals, Verdict, compare, sources_below
from agent.demo.scene import AgentProcess, App, Reader, SceneFailed, Topics, tail, write_config

CLIENTS = ("checkout", "search", "assistant", "mobile")
BROKERS, PARTITIONS = 3, 12
SECONDS = 14.0
SECONDS_MIN = 3.0
RATE, RATE_MAX = 3000.0, 6000.0
"""Lines a second of all apps together, where the demo may choose."""
ROTATIONS = 3
LINE_BYTES = 330  # of an app's line, about
DEAD_S = 0.7
TICK_S = 0.1
AGENT_LOG = "agent.log"
SAY_S = 2.0

_clock = SystemClock()


class Plan(NamedTuple):
    seconds: float
    lines: int

    @property
    def lines_each(self) -> int:
        return max(1, self.lines // len(CLIENTS))

    @property
    def rate_each(self) -> float:
        return self.lines_each / self.seconds

    @property
    def rotate_bytes(self) -> int:
        return max(4096, self.lines_each * LINE_BYTES // (ROTATIONS + 1))


def plan(seconds: float | None, lines: int | None) -> Plan:
    """Fill in what was left open: how long the apps write, and how many lines in all."""
    if lines is None:
        seconds = SECONDS if seconds is None else seconds
        return Plan(seconds, max(len(CLIENTS), int(seconds * RATE)))
    if seconds is None:
        seconds = max(SECONDS_MIN, min(lines / RATE, max(SECONDS, lines / RATE_MAX)))
    return Plan(seconds, lines)


def main(*, seconds: float | None = None, lines: int | None = None) -> int:
    """Play the demo. Return 0 if nothing was lost, out of order or altered, else 1."""
    console = Console(highlight=False)
    try:
        verdict = asyncio.run(_play(console, plan(seconds, lines)))
    except SceneFailed as failed:
        Console(stderr=True, highlight=False).print(
            f"the demo stopped: {failed}", markup=False, soft_wrap=True
        )
        return 1
    return 0 if verdict.ok else 1


async def _play(console: Console, planned: Plan) -> Verdict:
    work = Path(tempfile.mkdtemp(prefix="feedback-agent-demo-"))
    verdict = None
    try:
        verdict = await _play_in(work, console, planned)
    finally:
        if verdict is None or verdict.ok:
            shutil.rmtree(work)
        else:
            console.print(f"Kept, to look into it: {work}", markup=False, soft_wrap=True)
            console.print(tail(work / AGENT_LOG), markup=False, soft_wrap=True)
    return verdict


async def _play_in(work: Path, console: Console, planned: Plan) -> Verdict:
    with EmbeddedKafka(BROKERS) as kafka:
        topics = Topics(kafka.bootstrap_servers, "feedback-events", "feedback-events-dlq")
        kafka.create_topic(topics.events, PARTITIONS)
        kafka.create_topic(topics.dead_letters, 1)
        show = Show(console, planned, work, topics)
        try:
            async with Reader(topics, show.arrivals) as reader:
                with show.on_screen():
                    await show.play(reader)
        finally:
            show.close()
        verdict = await asyncio.to_thread(compare, sources_below(show.root), show.arrivals, defect)
        show.table(verdict)
        return verdict


class Show:
    """What is played, and how it looks."""

    def __init__(self, console: Console, planned: Plan, work: Path, topics: Topics) -> None:
        self.arrivals = Arrivals()
        self.root = work / "feedback"
        self.root.mkdir()
        self._console = console
        self._plan = planned
        config = work / "config.yaml"
        write_config(config, self.root, work / "state", topics)
        self._agent = AgentProcess(config, work / AGENT_LOG)
        self._apps = [App(self.root, work, client) for client in CLIENTS]
        self._began_s = _clock.monotonic()
        self._said_s = 0.0
        self._shipping_s = 0.0
        self._live: Live | None = None

    # ---- the play

    async def play(self, reader: Reader) -> None:
        self._say(f"Kafka: {BROKERS} brokers, {PARTITIONS} partitions, embedded")
        await self._agent.start()
        self._say(f"agent: started, pid {self._agent.pid}")
        began_s = _clock.monotonic()
        for number, app in enumerate(self._apps):
            await app.start(
                number,
                lines=self._plan.lines_each,
                rate=self._plan.rate_each,
                rotate_bytes=self._plan.rotate_bytes,
            )
        self._say(f"apps: {len(CLIENTS)} write {self._plan.rate_each:,.0f} lines a second each")
        await self._until_written(self._total // 2)
        await self._agent.kill()
        self._say("agent: killed (SIGKILL), the apps write on", "bold red")
        await self._tick_for(DEAD_S)
        await self._agent.start()
        self._say(f"agent: started again, pid {self._agent.pid}")
        await self._until_written(self._total)
        self._say("apps: done")
        stopping = asyncio.create_task(self._agent.stop())
        while not stopping.done():
            await self._tick()
        await stopping
        await reader.caught_up()
        self._shipping_s = _clock.monotonic() - began_s
        self._draw()
        self._say("agent: drained and stopped (SIGTERM, exit code 0)")

    async def _until_written(self, lines: int) -> None:
        while self._written < lines and sum(app.look() for app in self._apps):
            self._agent.check()
            await self._tick()

    async def _tick_for(self, seconds: float) -> None:
        until_s = _clock.monotonic() + seconds
        while _clock.monotonic() < until_s:
            await self._tick()

    async def _tick(self) -> None:
        for app in self._apps:
            app.look()
        self._draw()
        await asyncio.sleep(TICK_S)

    def close(self) -> None:
        self._agent.close()
        for app in self._apps:
            app.close()

    @property
    def _dead(self) -> bool:
        """Whether it is killed, and not yet started again."""
        return self._agent.pid is None and self._agent.kills > 0 and not self._shipping_s

    @property
    def _total(self) -> int:
        return self._plan.lines_each * len(CLIENTS)

    @property
    def _written(self) -> int:
        return sum(app.lines for app in self._apps)

    # ---- the screen

    @contextmanager
    def on_screen(self) -> Iterator[None]:
        """Draw a live view on a terminal; elsewhere say in lines how it goes."""
        if not self._console.is_terminal:
            yield
            return
        with Live(self._view(), console=self._console, auto_refresh=False) as self._live:
            yield
        self._live = None

    def _say(self, what: str, style: str = "") -> None:
        at = f"{_clock.monotonic() - self._began_s:6.1f} s  "
        self._console.print(Text.assemble((at, "dim"), (what, style)))

    def _draw(self) -> None:
        now_s = _clock.monotonic()
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
        elif now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            self._say(f"written {self._written:,}, arrived {len(self.arrivals):,}")

    def _view(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(justify="right", no_wrap=True, min_width=12)
        for app in self._apps:
            files = f"{app.files} file{'s' if app.files != 1 else ''}" if app.files else ""
            grid.add_row(app.client, self._bar(app.lines, self._plan.lines_each, "cyan"),
                         f"{app.lines:,}", Text(files, "dim"))  # fmt: skip
        arrived = min(len(self.arrivals), self._written)  # a copy is no progress
        behind = self._written - arrived
        color = "red" if self._dead else "green"
        late = Text(f"{behind:,} behind" if behind else "", "yellow")
        bar = self._bar(arrived, self._total, color)
        grid.add_row(Text("in Kafka", "bold"), bar, f"{arrived:,}", late)
        return Panel(Group(grid, Text(), self._status()), title="feedback-agent demo")

    @staticmethod
    def _bar(completed: int, total: int, style: str) -> ProgressBar:
        return ProgressBar(total=total, completed=completed, complete_style=style,
                           finished_style=style)  # fmt: skip

    def _status(self) -> Text:
        if self._agent.pid:
            agent = Text(f"● running, pid {self._agent.pid}", "green")
        elif self._dead:
            agent = Text("● dead", "bold red")
        else:
            agent = Text("○ stopped")
        times = f"killed {self._agent.kills} time{'s' if self._agent.kills != 1 else ''}"
        arrived = self.arrivals
        parts: list[Text | str | tuple[str, str]] = [
            ("agent     ", "dim"), agent, (f"   {times}\n", "dim"),
            ("Kafka     ", "dim"), (f"● {BROKERS} brokers", "green"), ("   events ", "dim"),
            f"{arrived.events:,}", ("   dead letters ", "dim"), f"{arrived.dead_letters:,}",
        ]  # fmt: skip
        return Text.assemble(*parts)

    # ---- the end

    def table(self, verdict: Verdict) -> None:
        console, kills = self._console, self._agent.kills
        table = Table(title="What was written against what arrived", title_justify="left",
                      show_header=False)  # fmt: skip
        table.add_column()
        table.add_column(justify="right")
        table.add_column()
        must = "must be 0"
        rows: list[tuple[str, str | Text, str]] = [
            (
                "lines written",
                f"{verdict.lines:,}",
                f"in {self._files} files of {len(CLIENTS)} apps",
            ),
            ("delivered", f"{verdict.delivered:,}", "events"),
            ("dead-lettered", f"{verdict.dead_lettered:,}", "bad lines, each with its reason"),
            ("lost", _zero(verdict.lost), must),
            ("out of order", _zero(verdict.out_of_order), must),
            ("altered", _zero(verdict.altered), must),
            ("misjudged", _zero(verdict.misjudged + verdict.foreign), must),
            ("twice", f"{verdict.copies:,}", f"in flight at {kills} SIGKILL; same event_id"),
            ("lines a second", f"{verdict.lines / self._shipping_s:,.0f}", "start to last record"),
        ]
        for percent, note in (
            (50, "append to consumer, so an upper bound"),
            (99, "the same; the agent's death included"),
        ):
            value = verdict.percentile_ms(percent / 100)
            shown = "-" if value is None else f"{value:,.0f} ms"
            rows.append((f"latency p{percent}", shown, note))
        for name, count, remark in rows:
            table.add_row(name, count, Text(remark, "dim"))
        console.print()
        console.print(table)
        for example in verdict.examples:
            console.print(f"  {example}", markup=False, style="red")
        good, bad = Text("Nothing lost.", "bold green"), Text("A promise was broken.", "bold red")
        console.print(good if verdict.ok else bad)

    @property
    def _files(self) -> int:
        return sum(app.files for app in self._apps)


def _zero(count: int) -> Text:
    return Text(f"{count:,}", "bold green" if count == 0 else "bold red")


if __name__ == "__main__":
    sys.exit(main())
