"""How commands show what they found: tables, colours and bars on a terminal, plain text elsewhere.

Names come from files that anyone may make: ``cell`` is the one door for them to a screen.
"""

import sys

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from agent.logs import escaped

WIDTH_PLAIN = 200
"""Columns where there is no terminal: what reads it should not meet wrapped names."""

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
"""Of the three verdicts that anything can have."""


def console(*, stderr: bool = False) -> Console:
    """Return where to print. Without a terminal there is no colour and nothing is redrawn."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_PLAIN
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def cell(text: object, style: str = "") -> Text:
    """Return ``text`` as it may be shown: control characters escaped, brackets no markup."""
    return Text(escaped(str(text)), style)


def counted(number: int, what: str) -> str:
    """Return 1 line, 2 lines, 1,240 lines."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns named in ``right`` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def progress(of: Console, *, in_bytes: bool = False) -> Progress:
    """Return a bar for long work, on stderr: what is piped stays clean."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=of,
        disable=not of.is_terminal,
    )
