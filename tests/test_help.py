"""What every command says of itself: to ``--help`` and to ``man``."""

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from tests.man import HEADING, VERBATIM, commands, help_of, pages

COMMANDS = {" ".join(path): command for path, command in commands()}
COLUMNS, MARGIN = 80, 7
"""Of a terminal, and of ``man`` left of the text."""


@pytest.mark.parametrize("called", COMMANDS)
def test_every_command_has_an_example_of_itself_and_says_what_its_options_do(called: str) -> None:
    command = COMMANDS[called]
    if not isinstance(command, click.Group) or called == "feedback-agent":
        _, _, examples = help_of(command).partition(f"{VERBATIM}Examples:\n")
        assert called in examples
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    summary = help_of(command).partition("\n")[0]
    assert summary.endswith((".", "?")), "its line in the list of commands"


def test_every_command_that_shows_something_takes_json() -> None:
    """A script need not know which ones print nothing else."""
    others = {"run", "demo", "completion"}
    for called, command in COMMANDS.items():
        if not isinstance(command, click.Group) and called.split()[1] not in others:
            assert any("--json" in one.opts for one in command.params), called


def test_each_block_of_help_that_is_left_as_it_is_has_a_heading_and_fits_a_terminal() -> None:
    """It becomes a section of a manual page; at 80 columns no line is folded in the middle."""
    for command in COMMANDS.values():
        for block in help_of(command).split("\n\n"):
            if block.startswith(VERBATIM):
                assert HEADING.match(block.removeprefix(VERBATIM))
                for line in block.splitlines():
                    assert len(line.strip()) <= COLUMNS - MARGIN, line


def test_a_list_of_commands_says_of_each_all_that_it_has_to_say() -> None:
    """And not "List dead letters, oldest first, and count them by reason and..."."""
    for called, command in COMMANDS.items():
        if isinstance(command, click.Group):
            with click.Context(command, info_name=called, terminal_width=COLUMNS - 2) as context:
                shown = command.get_help(context)
            assert "..." not in shown.partition("Commands:")[2].partition("Examples:")[0], called


def test_there_is_a_manual_page_of_every_command_and_it_says_how_to_call_it(tmp_path: Path) -> None:
    made = pages()

    assert {called.replace(" ", "-") + ".1" for called in COMMANDS} == made.keys()
    audit = made["feedback-agent-audit-verify.1"]
    for part in (".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", ".SH EXAMPLES", "\\-\\-from\\-topic"):
        assert part in audit
    assert ".SH EXIT CODES" in made["feedback-agent.1"]


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff on this machine")
def test_the_formatter_has_nothing_to_say_against_them() -> None:
    for name, page in pages().items():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z"], input=page, capture_output=True, text=True, check=True
        )
        assert "" == done.stderr, name
