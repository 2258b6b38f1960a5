"""The demo as a person runs it, for a few seconds."""

import asyncio
import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agent.demo import oracle, show
from agent.demo.oracle import Verdict
from agent.demo.scene import AgentProcess, App, SceneFailed, Topics
from agent.demo.show import Plan, Show, plan
from tests.patience import WITHIN_S

DEMO = [sys.executable, "-m", "agent", "demo"]


def numbers(table: str) -> dict[str, str]:
    """Return the second column of the table by the first."""
    cells = [line.split("│") for line in table.splitlines() if line.startswith("│")]
    return {row[1].strip(): row[2].strip() for row in cells}


def test_the_demo_kills_the_agent_and_loses_nothing() -> None:
    done = subprocess.run(
        [*DEMO, "--seconds", "3", "--lines", "4000"],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "" == done.stderr
    assert "killed (SIGKILL)" in done.stdout
    assert "Nothing lost." in done.stdout
    shown = numbers(done.stdout)
    assert "4,000" == shown["lines written"]
    arrived = [int(shown[name].replace(",", "")) for name in ("delivered", "dead-lettered")]
    assert 4000 == sum(arrived)
    assert ["0"] * 4 == [shown[n] for n in ("lost", "out of order", "altered", "misjudged")]


@pytest.mark.parametrize("wrong", ["lost", "out_of_order", "altered", "misjudged", "foreign"])
def test_a_broken_promise_is_exit_status_1(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(console: Console, planned: Plan) -> Verdict:
        verdict = Verdict(lines=1, copies=5)
        setattr(verdict, wrong, 1)
        return verdict

    monkeypatch.setattr(show, "_play", play)

    assert 1 == show.main()


def test_copies_are_no_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(console: Console, planned: Plan) -> Verdict:
        return Verdict(lines=1, copies=5)

    monkeypatch.setattr(show, "_play", play)

    assert 0 == show.main()


def test_what_is_left_open_is_chosen() -> None:
    assert 14 == plan(None, None).seconds
    assert Plan(4.0, 12_000) == plan(4.0, None)
    assert Plan(4.0, 100) == plan(4.0, 100)
    assert 3 == plan(None, 10).seconds
    assert plan(None, 1_000_000).rate_each <= show.RATE_MAX / len(show.CLIENTS)
    assert 1 == plan(None, 1).lines_each


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_its_width(width: int, tmp_path: Path) -> None:
    """No row of the view or of the table is broken or cut, whatever the counts."""
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    playing = Show(console, Plan(14.0, 42_000), tmp_path, Topics("", "e", "d"))
    for app in playing._apps:
        app.lines, app.files = 1_234_567, 12
    playing.arrivals.events = 4_567_890
    playing.arrivals.dead_letters = 23_456
    playing._shipping_s = 1.0

    console.print(playing._view())
    playing.table(Verdict(lines=5_000_000, delivered=4_999_000, copies=9_999, latencies_us=[10**9]))

    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "dead letters 23,456" in text
    assert "…" not in text
    assert "in flight at 0 SIGKILL; same event_id │" in text


async def test_an_agent_that_ends_by_itself_stops_the_demo(tmp_path: Path) -> None:
    """And says what its log said last."""
    config = tmp_path / "config.yaml"
    config.write_text("kafka: {}\n")
    agent = AgentProcess(config, tmp_path / "agent.log")
    await agent.start()

    with pytest.raises(SceneFailed, match=r"(?s)exit code 78.*bootstrap_servers"):
        await agent.ended()


async def test_an_app_killed_and_started_again_writes_each_line_once(tmp_path: Path) -> None:
    app = App(tmp_path / "root", tmp_path, "a")
    await app.start(1, rate=2000, rotate_bytes=20_000)
    while app.files < 3 and app.look():  # noqa: ASYNC110  a file tells nobody that it changed
        await asyncio.sleep(0.02)
    app.close()
    with pytest.raises(SceneFailed, match="-9"):
        await app.done()

    await app.start(1, lines=3000, rotate_bytes=20_000)
    await app.done()

    assert 3000 == app.lines
    seen = [
        line for source in oracle.sources_below(tmp_path / "root") for _, line in source.lines()
    ]
    assert 3000 == len(seen) == len(set(seen))


async def test_a_paused_app_can_be_stopped(tmp_path: Path) -> None:
    app = App(tmp_path / "root", tmp_path, "a")
    await app.start(1, rate=500)
    app.pause(True)

    async with asyncio.timeout(WITHIN_S):
        with contextlib.suppress(SceneFailed):  # before it was there to hear a signal
            await app.stop()
