"""The benches measure and see a lost line; what they measure is for people to judge."""

import json
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.bench import corpus
from tests.bench.codecs import CASES, OVER, WIRE
from tests.bench.stages import STEPS
from tests.bench.table import Column, Report, console, spread
from tests.bench.telemetry import interval

BENCHES = ("catchup", "latency", "idle", "memory", "scale", "telemetry")
SCRIPTS = Path(__file__).parent.parent / "scripts" / "bench"
WITHIN_S = 250


def bench(name: str, *options: str) -> tuple[int, dict[str, Any]]:
    bench = [sys.executable, "-m", f"tests.bench.{name}", "--quick", "--json", *options]
    # by SIGTERM: what a bench started ends with it
    command = ["timeout", str(WITHIN_S), *bench]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, said


@pytest.mark.long
def test_the_agent_is_measured_beside_itself_on_harder_lines() -> None:
    code, said = bench("catchup", "--only", "agent")

    assert (0, 0, []) == (code, said["lost"], said["troubles"])
    assert {"cpu", "cores", "python", "feedback-agent", "broker"} <= said["machine"].keys()
    assert {
        "agent",
        "agent, lines without event_id",
        "agent, lines with unknown fields",
    } == said["rows"].keys()
    assert 1.0 == said["rows"]["agent"]["of the agent's CPU"]["median"]


@pytest.mark.long
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_finds_every_line_and_fails_for_one_that_is_lost(name: str) -> None:
    """The consumer overlooks one line of each row, as if it had not come. That is all that is
    missing, and no figure counts without it."""
    if name == "catchup" and shutil.which("kcat") is None:
        pytest.skip("kcat is not installed")
    only = ["--only", "kcat: raw, none"] if name == "catchup" else []
    code, said = bench(name, "--plant-loss", *only)

    assert 1 == code
    assert len(said["rows"]) == said["lost"] == len(said["troubles"])
    for row in said["rows"].values():
        for found in row.values():
            assert found["least"] <= found["median"] <= found["most"]


@pytest.mark.parametrize("name", [*BENCHES, "codecs", "stages"])
def test_each_bench_has_its_command_and_a_line_in_the_readme(name: str) -> None:
    assert f"python -m tests.bench.{name} " in (SCRIPTS / name).read_text()
    assert f"scripts/bench/{name} " in (SCRIPTS.parent.parent / "README.md").read_text()


def test_the_steps_of_the_hot_path_have_a_figure_each_and_keep_every_line() -> None:
    code, said = bench("stages")

    assert (0, 0, len(STEPS) + 1) == (code, said["lost"], len(said["rows"]))
    steps, whole = [row["ns a line"] for row in said["rows"].values()], said["rows"]["all of them"]
    for of_rounds in zip(*(step["values"] for step in steps), strict=True):
        assert sum(of_rounds) == pytest.approx(2 * of_rounds[-1])
    assert whole["ns a line"]["least"] > 0


def test_what_goes_on_the_wire_is_measured_for_each_codec_beside_the_lines_as_they_are() -> None:
    """Ids, headers and the agent's own metadata go with each line: they must cost next to nothing.
    Sizes do not depend on the machine, so here is what the design asks of the default."""
    code, said = bench("codecs", "--lines", "20000")

    assert (0, 0, len(CASES)) == (code, said["lost"], len(said["rows"]))
    assert 40 >= said["rows"]["gzip 1"][WIRE]["most"]
    assert 7 >= said["rows"]["gzip 1"][OVER]["most"]


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    """Of ten values the least and the most are left out: 22 of 1024 ways are outside."""
    assert (1.0, 1.0) == interval([1.0])
    assert (1.0, 5.0) == interval([3.0, 1.0, 5.0])
    assert (2.0, 9.0) == interval([float(n) for n in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)])


# ---- lines


def test_the_lines_are_the_same_in_each_run() -> None:
    """Figures of two days compare only over the same bytes: here is what they begin with."""
    first, again = list(corpus.lines(300)), list(corpus.lines(300))

    assert first == again
    fields = json.loads(first[0])
    assert ("model_response", "73c1f3d4-c4b4-407c-8820-15d780f50694", 0) == (
        fields["type"],
        fields["event_id"],
        fields["metadata"]["seq"],
    )


def test_the_lines_hold_what_they_promise() -> None:
    lines = list(corpus.lines(10_000))
    events = [json.loads(line) for line in lines]
    personal = re.compile(rb"@example\.com|\+49 30|4111 1111|192\.0\.2\.")

    assert [*range(10_000)] == [event["metadata"]["seq"] for event in events]
    assert 10_000 == len({event["event_id"] for event in events})
    assert 5 == len({event["type"] for event in events})
    assert 400 < sum(map(len, lines)) / len(lines) < 450
    assert 0.005 < sum(bool(personal.search(line)) for line in lines) / len(lines) < 0.02


def test_lines_can_lack_an_id_and_have_fields_that_nobody_knows() -> None:
    (bare,) = islice(corpus.lines(1, event_ids=False), 1)
    (rich,) = islice(corpus.lines(1, extras=True), 1)

    assert "event_id" not in json.loads(bare)
    assert {"team": "search", "trace": {"hop": 0}}.items() <= json.loads(rich).items()


# ---- table


def test_a_table_gives_the_median_and_the_spread_of_rounds() -> None:
    assert "2.0 (1.0 to 9.0)" == spread([9, 1, 2], 1)
    assert "1,234" == spread([1234.4], 0)
    assert "1,234" == spread([1234.4, 1233.6], 0)


def test_a_table_is_plain_where_nobody_reads_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("what", [Column("p50 ms"), Column("lines/s", 0)], {"broker": "one"})
    values = [{"p50 ms": 1.25, "lines/s": 1000}, {"p50 ms": 3.0}]
    for value in values:
        report.add("a row", **value)
    report.show(console(as_json=False))

    said = capsys.readouterr().out
    assert "| a row | 2.1 (1.2 to 3.0) | 1,000 |" in said
    assert "broker one" in said
    assert "lines lost: 0" in said
