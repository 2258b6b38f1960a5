"""What ``feedback-agent validate`` says of lines is what becomes of them."""

import functools
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from agent import config as configuration
from agent.cli import main
from agent.config import Config
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import write_config
from agent.operator.validate import Validation, Verdict, client
from tests.running import NOWHERE, Agent, append, feedback, mock_topics, records

BAD = b'{"type":"user_feedback","session_id":"s","rating":9}'
ADDRESS = "jo.doe@example.com"
MANY = 100


@pytest.fixture(autouse=True)
def _nobody_elses_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEEDBACK_AGENT_CONFIG", raising=False)
    monkeypatch.delenv("FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.setattr(configuration, "PATH_DEFAULT", tmp_path / "default.yaml")


def validate(*args: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["validate", *map(str, args)], input=stdin)


def told(*args: object, stdin: bytes = b"") -> list[dict[str, Any]]:
    result = validate(*args, "--json", stdin=stdin)
    said = json.loads(result.stdout)
    assert result.exit_code == (0 if said["good"] else 1), result.output
    files: list[dict[str, Any]] = said["files"]
    return files


def written(path: Path, *lines: bytes) -> Path:
    append(path, lines)
    return path


def places(file: dict[str, Any]) -> list[tuple[int, int, int, str]]:
    return [(one["line"], one["start"], one["end"], one["reason"]) for one in file["rejections"]]


# ---- what it says


def test_each_line_that_would_be_rejected_is_named_with_its_place(tmp_path: Path) -> None:
    good = feedback(1)
    file = written(tmp_path / "a.jsonl", good, BAD, b"", b"nonsense", good)
    second, fourth = len(good) + 1, len(good) + len(BAD) + 3

    (found,) = told(file)

    assert (5, 2, 2, 1) == tuple(found[key] for key in ("lines", "events", "rejected", "blank"))
    assert [
        (2, second, second + len(BAD) + 1, "schema"),
        (4, fourth, fourth + 9, "invalid_json"),
    ] == places(found)
    assert "rating: expected int <= 5" == found["rejections"][0]["detail"]
    assert "user_feedback" == found["rejections"][0]["type"]
    assert {"schema": 1, "invalid_json": 1} == found["by_reason"]
    assert {"user_feedback": 2} == found["by_type"]
    assert file.stat().st_size == found["bytes"]


def test_what_is_good_is_exit_code_0_and_what_is_not_1(tmp_path: Path) -> None:
    good, bad = written(tmp_path / "a", feedback(1)), written(tmp_path / "b", BAD)

    assert [0, 1, 1] == [validate(*files).exit_code for files in ((good,), (bad,), (good, bad))]


def test_what_the_agent_sends_is_what_is_shown(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """Value for value and header for header, ids included: they are the very same rooms."""
    lines = [feedback(1), BAD, feedback(2, comment=f"mail {ADDRESS}"), b"x", b'{"type":"none"}']
    lines += [feedback(3, metadata={"client": "another"}), b"\xff" * 9]
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        file = written(agent.root / "acme/a.jsonl", *lines)
        agent.start()
        agent.until_delivered(3, 4)
        result = validate("--show", file, "--config", agent.config)
        topics = agent.topics
        assert 0 == agent.stop()

    shown = [json.loads(line) for line in result.stdout.splitlines()]
    sent = [*records(topics, topics.events), *records(topics, topics.dead_letters)]
    assert 7 == len(shown) == len(sent)
    by_source = {dict(record.headers)["source"].decode(): record for record in sent}
    for one in shown:
        record = by_source[one["headers"]["source"]]
        value = record.value.decode()
        assert one["value"] == (json.loads(value) if one["topic"] == topics.events else value)
        assert one["headers"] == {key: value.decode() for key, value in record.headers}
        assert (one["topic"], one["key"]) == (record.topic, record.key.decode())


@given(
    st.lists(st.sampled_from([feedback(1), BAD, b"", b" ", b"x", b"\0\0", b"y" * 3000, b"\xff"]))
)
def test_every_line_is_counted_once_and_no_place_is_another_lines(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "a.jsonl"
        file.write_bytes(b"".join(line + b"\n" for line in lines))
        verdict = judged(file, short_lines())

    assert len(lines) == verdict.lines == verdict.events + verdict.rejected + verdict.blank
    assert sum(line == feedback(1) for line in lines) == verdict.events
    content = b"".join(line + b"\n" for line in lines)
    for one in verdict.rejections:
        assert content[one.start : one.end] == lines[one.line - 1] + b"\n"


def config(work: Path, **sections: Any) -> Config:
    file = work / "config.yaml"
    write_config(file, work / "feedback", work / "state", NOWHERE, **sections)
    return configuration.load(file, {})


@functools.cache
def short_lines() -> Validation:
    with tempfile.TemporaryDirectory() as work:
        return Validation(config(Path(work), source={"line_bytes_max": 2000}), MANY)


def judged(file: Path, by: Validation) -> Verdict:
    with Path(os.devnull).open("rb") as stdin:
        return by.judge(str(file), stdin)


def test_a_line_over_the_limit_is_one_line_with_its_whole_range(tmp_path: Path) -> None:
    long = b'"' + b"a" * 2_000_000 + b'"'
    file = written(tmp_path / "a.jsonl", feedback(1), long, BAD)
    start = len(feedback(1)) + 1

    (found,) = told(file)

    assert (2, start, start + len(long) + 1, "oversize") == places(found)[0]
    assert (3, "schema") == (places(found)[1][0], places(found)[1][3])


def test_a_hole_is_no_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(feedback(1) + b"\n" + b"\0" * 3_000_000 + BAD + b"\n")

    (found,) = told(file)

    assert 2 == found["lines"]
    assert [(2, "schema")] == [(one[0], one[3]) for one in places(found)]


def test_a_line_without_its_end_is_waited_for_and_not_rejected(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(feedback(1) + b"\n" + b'{"type":')

    (found,) = told(file)

    assert (1, 0, 8) == (found["lines"], found["rejected"], found["unfinished_bytes"])


def test_only_so_many_are_named_and_all_are_counted(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", *[BAD] * 30)

    (found,) = told(file, "--limit", 7)

    assert (30, 7) == (found["rejected"], len(found["rejections"]))
    assert "and 23 more" in validate(file, "--limit", 7).stdout


# ---- where lines come from


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_files_are_read_like_the_files_they_were(tmp_path: Path, ending: str) -> None:
    content = feedback(1) + b"\n" + BAD + b"\n" + b"torn"
    file = tmp_path / f"a.jsonl{ending}"
    if ending == ".gz":
        file.write_bytes(gzip.compress(content))
    else:
        zstd = pytest.importorskip("backports.zstd")
        file.write_bytes(zstd.compress(content))

    (found,) = told(file)

    assert [(2, "schema"), (3, "unterminated")] == [(one[0], one[3]) for one in places(found)]
    assert len(content) == found["bytes"]


def test_a_damaged_file_is_a_problem_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join([feedback(1)] * 5000) + b"\n")[:-300])

    (found,) = told(file)

    assert "ends before its end" == found["problem"]


def test_stdin_is_read_to_its_end() -> None:
    (found,) = told("-", stdin=feedback(1) + b"\n" + BAD + b"\n")

    assert ("-", 1, 1) == (found["file"], found["events"], found["rejected"])


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing", "no such file or directory"), ("directory", "not a regular file"),
     ("fifo", "not a regular file")],
)  # fmt: skip
def test_what_cannot_be_read_is_said_and_the_rest_is_read(
    tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")

    first, second = told(tmp_path / name, written(tmp_path / "a.jsonl", feedback(1)))

    assert (problem, 1) == (first["problem"], second["events"])


# ---- what it keeps to itself


def test_nothing_unredacted_is_printed(tmp_path: Path) -> None:
    """Not of good lines, not of bad ones, not where redaction is off."""
    file = written(
        tmp_path / "a.jsonl",
        feedback(1, comment=f"mail {ADDRESS}"),
        f"nonsense {ADDRESS}".encode(),
        json.dumps({"type": ADDRESS, "session_id": ADDRESS}).encode(),
        json.dumps({"type": "user_feedback", "session_id": "s", "rating": ADDRESS}).encode(),
    )
    config(tmp_path, redact={"enabled": False})

    for args in ((), ("--json",), ("--show",)):
        for of in ((), ("--config", tmp_path / "config.yaml")):
            assert ADDRESS not in validate(file, *args, *of).output, args
    shown = validate(file, "--show", "--config", tmp_path / "config.yaml")
    assert "[EMAIL]" in shown.stdout
    assert "redact.enabled is false" in shown.stderr


def test_lines_do_not_drive_the_terminal(tmp_path: Path) -> None:
    hostile = "\x1b]0;owned\x07 \x9b2J \u202egpj"
    file = written(tmp_path / "a.jsonl", hostile.encode(), json.dumps(hostile).encode())

    shown = validate(file, "--show").stdout

    assert all(line.isprintable() for line in shown.splitlines())
    assert hostile == json.loads(shown.splitlines()[0])["value"]


def test_records_go_to_stdout_and_the_rest_to_stderr(tmp_path: Path) -> None:
    """What is piped on is JSON lines and nothing else."""
    result = validate(written(tmp_path / "a.jsonl", feedback(1), BAD), "--show")

    assert [1, 2] == [json.loads(line)["line"] for line in result.stdout.splitlines()]
    assert "1 rejected" in result.stderr
    assert 64 == validate(tmp_path / "a.jsonl", "--show", "--json").exit_code


def test_a_long_file_has_a_bar_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.modules["agent.cli.validate"], "LONG_BYTES", 1)
    file = written(tmp_path / "long-file.jsonl", *[feedback(1)] * 3000)
    assert "" == validate(file).stderr

    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal

    assert "long-file.jsonl" in validate(file).stderr


# ---- by which rules


def test_rules_are_those_of_the_configuration(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", b'{"type":"own","session_id":"s"}')
    loaded = config(tmp_path, schema={"unknown_types": "pass"})

    assert 1 == told(file)[0]["rejected"]
    assert 1 == judged(file, Validation(loaded, MANY)).events


def test_the_client_is_who_the_path_says_it_is(tmp_path: Path) -> None:
    loaded = config(tmp_path)

    assert "acme" == client(loaded, str(tmp_path / "feedback/acme/deep/a.jsonl"))
    assert "default" == client(loaded, str(tmp_path / "elsewhere/a.jsonl"))
    assert "default" == client(loaded, "-")


def test_a_configuration_that_is_wrong_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{redact: {rules: [nothing]}}")

    assert 78 == validate("-", "--config", tmp_path / "config.yaml").exit_code
