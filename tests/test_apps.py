"""What docs/apps.md tells apps works as it stands there."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.core.decode import Decoded, Decoder
from agent.core.policy import SchemaPolicy
from agent.writer import LINE_BYTES_MAX, Settings
from tests import cost

DOCUMENT = (Path(__file__).parent.parent / "docs/apps.md").read_text()
SNIPPETS = dict(re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE))
COUNT = 40


def works(*command: str | Path) -> bool:
    """Whether a tool is there and does what it is asked to."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


def built(language: str, work: Path) -> list[str | Path]:
    """Return the command that runs the snippet; skips where its tools are missing."""
    name = {"sh": "feedback.sh", "go": "feedback.go", "java": "Feedback.java", "ts": "feedback.ts"}
    source = work / name[language]
    source.write_text(SNIPPETS[language])
    match language:
        case "sh":
            return ["sh", source]
        case "go" if works("go", "version"):
            build: list[str | Path] = ["go", "build", "-o", work / "feedback", source]
            subprocess.run(build, check=True, cwd=work, timeout=300)
            return [work / "feedback"]
        case "java" if works("javac", "-version"):
            subprocess.run(["javac", "-Xlint:all", "-Werror", "-d", work, source], check=True)
            return ["java", "-cp", work, "Feedback"]
        case "ts" if works("node", "--experimental-strip-types", "-e", ""):
            return ["node", "--no-warnings", "--experimental-strip-types", source]
    tools = {"go": "go", "java": "javac", "ts": "node 22.6 or later"}
    pytest.skip(f"{tools[language]} is missing")


def test_every_language_has_one_snippet() -> None:
    assert {"sh", "go", "java", "ts"} == SNIPPETS.keys()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", SNIPPETS)
def test_a_snippet_writes_whole_lines_into_files_of_its_own(language: str, tmp_path: Path) -> None:
    """Two processes at once; what they leave is finished and every line of it accepted."""
    directory, work = tmp_path / "checkout", tmp_path / "work"
    directory.mkdir()
    work.mkdir()
    command = [*built(language, work), directory, str(COUNT)]

    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert (0, b"") == (process.returncode, said)

    files = list(directory.iterdir())
    assert 2 == len(files)
    decoder, now_s, ids = Decoder(SchemaPolicy()), time.time_ns() / 1e9, set[str]()
    for path in files:
        assert path.name.endswith(".jsonl.1")
        content = path.read_bytes()
        assert content.endswith(b"\n")
        lines = content.split(b"\n")[:-1]
        assert [f"session-{n}" for n in range(COUNT)] == [
            json.loads(x)["session_id"] for x in lines
        ]
        for line in lines:
            decoded = decoder.decode(line, now_s)
            assert isinstance(decoded, Decoded), decoded
            assert decoded.event.timestamp
            ids.add(json.loads(line)["event_id"])
            assert not decoded.suspect
    assert 2 * COUNT == len(ids), "made where it happened: a line that is written twice counts once"


def test_the_settings_and_their_defaults_are_said() -> None:
    shown = {"16 MiB": 16 << 20, "2 GiB": 2 << 30, "8 MiB": 8 << 20, "0644": 0o644, "3600": 3600.0}
    table = DOCUMENT.partition("| setting |")[2].partition("\n\n")[0]
    said = dict(re.findall(r"^\| `([a-z_]+)` \| `?(.+?)`? \|", table, re.MULTILINE))
    assert said.keys() == Settings._field_defaults.keys()
    for name, default in Settings._field_defaults.items():
        assert default == shown.get(said[name], said[name]) or str(default) == said[name], name
    assert str(LINE_BYTES_MAX) in DOCUMENT


def test_the_bench_prints_a_table() -> None:
    """What it measures is for people to judge."""
    command = [sys.executable, "-m", cost.__name__, "--events", "70"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr
    rows = re.findall(r"^\| `(.+)` \| [0-9.]+ \| [0-9.]+ \|$", done.stdout, re.MULTILINE)
    assert rows == re.findall(r"^\| `(.+)` \| [0-9.]+ \| [0-9.]+ \|$", DOCUMENT, re.MULTILINE)
