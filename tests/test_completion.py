"""Shells complete what the program has: asked of the program itself, by the script it prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.cli.completion import SHELLS, VARIABLE

PROGRAM = Path(sys.executable).parent / "feedback-agent"


def script(shell: str) -> str:
    result = CliRunner().invoke(main, ["completion", shell])
    assert 0 == result.exit_code, result.output
    return result.stdout


def completed(words: str, at: int) -> list[str]:
    environment = {
        **os.environ,
        VARIABLE: "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(at),
    }
    command = [sys.executable, "-c", "from agent.cli import main; main(prog_name='feedback-agent')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "at", "found"),
    [
        ("feedback-agent st", 1, "plain,status"),
        ("feedback-agent audit ", 2, "plain,verify"),
        ("feedback-agent doctor --j", 2, "plain,--json"),
        ("feedback-agent completion f", 2, "plain,fish"),
        ("feedback-agent dlq purge --reason inv", 4, "plain,invalid_json"),
        ("feedback-agent checkpoint reset a.jsonl --to e", 5, "plain,end"),
        ("feedback-agent checkpoint reset a", 3, "file,a"),
        ("feedback-agent explain a", 2, "file,a"),
    ],
)
def test_commands_options_and_choices_are_completed(words: str, at: int, found: str) -> None:
    assert found in completed(words, at)


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_takes_its_script(shell: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script(shell))
    assert VARIABLE in script(shell)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")

    subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_bash_completes_by_the_script(tmp_path: Path) -> None:
    """From the very function that bash calls at TAB."""
    if not PROGRAM.exists():
        pytest.skip("not installed")
    (tmp_path / "script").write_text(script("bash"))
    typed = f"source {tmp_path}/script; COMP_WORDS=(feedback-agent val) COMP_CWORD=1"
    call = "_feedback_agent_completion feedback-agent; echo ${COMPREPLY[@]}"
    environment = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}

    done = subprocess.run(
        ["bash", "-c", f"{typed}; {call}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "validate\n" == done.stdout


def test_an_unknown_shell_is_a_wrong_usage() -> None:
    assert 64 == CliRunner().invoke(main, ["completion", "csh"]).exit_code
