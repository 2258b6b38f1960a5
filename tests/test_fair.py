"""The bench of fairness measures and loses nothing; what it measures is for people to judge."""

import json
import subprocess
import sys


def test_a_short_run_reads_every_line_and_says_what_it_took() -> None:
    plan = ["--pairs", "1", "--seconds", "1", "--clients", "3", "--rate", "50", "--flood", "5000"]
    command = [sys.executable, "-m", "tests.fair", *plan, "--warm", "0.2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)

    assert 0 == done.returncode, done.stderr
    said = json.loads(done.stdout)
    (pair,) = said["pairs"]
    assert 0 == said["lost"]
    assert 0 < pair["alone"]["lines"] < 200  # a slow machine writes fewer
    assert pair["beside"]["lines"] > pair["alone"]["lines"]
    for phase in pair.values():
        assert 0 < phase["p50_ms"] <= phase["p99_ms"]
        assert phase["taken_in_p99_ms"] <= phase["p99_ms"]
