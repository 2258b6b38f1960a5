"""Manual pages of every command, made of what ``--help`` says: ``scripts/man``.

The same program gives the same bytes. Format: man(7).
"""

import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent

import click

from agent import __version__
from agent.cli import main

PROGRAM = "feedback-agent"
HEADING = re.compile(r"([A-Z][A-Za-z ]+):\n")
VERBATIM = "\b\n"
"""What click leaves as it is begins with it."""


def pages() -> dict[str, str]:
    """Return each page by the name of its file."""
    return {f"{'-'.join(path)}.1": page(path, command) for path, command in commands()}


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with the words that call it, the program first."""
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((PROGRAM,), main)]
    for path, command in waiting:
        yield path, command
        if isinstance(command, click.Group):
            waiting += [((*path, name), one) for name, one in sorted(command.commands.items())]


def page(path: tuple[str, ...], command: click.Command) -> str:
    context = click.Context(command, info_name=" ".join(path))
    summary, *paragraphs = _paragraphs(help_of(command))
    first, _, rest = summary.partition(". ")
    texts = [text for text in (rest, *paragraphs) if text]
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [
        f'.TH {"-".join(path).upper()} 1 "" "{PROGRAM} {__version__}" "{PROGRAM}"',
        *_section("NAME", f"{_plain('-'.join(path))} \\- {_plain(first.rstrip('.'))}"),
        *_section("SYNOPSIS", f".B {_plain(' '.join(path))}\n{_plain(usage)}"),
    ]
    if said := [text for text in texts if not text.startswith(VERBATIM)]:
        lines += _section("DESCRIPTION", "\n.PP\n".join(map(_plain, said)))
    lines += _listed("OPTIONS", _options(command, context))
    if isinstance(command, click.Group):
        lines += _listed("COMMANDS", _subcommands(path, command))
    for text in texts:
        lines += _verbatim(text)
    if command is not main:
        parents = "-".join(path[:-1])
        lines += _section("SEE ALSO", f".BR {_plain(parents)} (1)")
    return "\n".join(lines) + "\n"


def help_of(command: click.Command) -> str:
    """Return all that it says of itself, without the indentation of the source."""
    return f"{cleandoc(command.help or '')}\n\n{command.epilog or ''}".strip()


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs, each as one line but for those that click leaves as they are."""
    found = re.split(r"\n\s*\n", text.strip())
    return [part if part.startswith(VERBATIM) else " ".join(part.split()) for part in found if part]


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # an argument is in the synopsis
            yield record


def _subcommands(path: tuple[str, ...], group: click.Group) -> Iterator[tuple[str, str]]:
    for name, command in sorted(group.commands.items()):
        yield "-".join((*path, name)) + "(1)", command.get_short_help_str(limit=200)


def _listed(heading: str, entries: Iterator[tuple[str, str]]) -> list[str]:
    found = [f".TP\n.B {_plain(term)}\n{_plain(' '.join(text.split()))}" for term, text in entries]
    return _section(heading, "\n".join(found)) if found else []


def _verbatim(text: str) -> list[str]:
    if not text.startswith(VERBATIM):
        return []
    text = text.removeprefix(VERBATIM)
    heading = HEADING.match(text)
    assert heading, f"a block of help without a heading: {text!r}"
    body = "\n".join(_plain(line) for line in dedent(text[heading.end() :]).splitlines())
    return _section(heading[1].upper(), f".nf\n{body}\n.fi")


def _section(heading: str, body: str) -> list[str]:
    return [f".SH {heading}", body]


def _plain(text: str) -> str:
    """Return text that troff takes for text."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\\&" + text if text.startswith(".") else text


if __name__ == "__main__":
    into = Path(sys.argv[1])
    into.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (into / name).write_text(text)
