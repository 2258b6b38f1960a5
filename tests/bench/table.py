"""Prints what was measured: medians, and from the least to the most where there are several."""

import json
from collections.abc import Iterable, Mapping
from statistics import median
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.machine import machine

WIDTH_MIN = 120


class Column(NamedTuple):
    """Args:
    name: With its unit.
    digits: Behind the point.
    """

    name: str
    digits: int = 1


class Report:
    """Rows of measurements, each with every value that a round found for a column.

    Attributes:
        lost: Lines that were written and did not arrive. Any makes the bench fail.
        troubles: What else went wrong in words; fails it too.
        notes: What a reader of the figures has to know.
    """

    def __init__(self, title: str, columns: Iterable[Column], versions: Mapping[str, str]) -> None:
        self.lost = 0
        self.troubles: list[str] = []
        self.notes: list[str] = []
        self._title = title
        self._columns = {column.name: column for column in columns}
        self._versions = {**machine(), **versions}
        self._rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, **values: float) -> None:
        """Add one round's values to ``row``; keywords are the columns' names, ``_`` for blanks."""
        found = self._rows.setdefault(row, {})
        for name, value in values.items():
            column = self._columns[name.replace("_", " ")]
            found.setdefault(column.name, []).append(value)

    @property
    def failed(self) -> bool:
        return self.lost > 0 or bool(self.troubles)

    def to_json(self) -> str:
        rows = {
            name: {
                column: {
                    "median": median(values),
                    "least": min(values),
                    "most": max(values),
                    "values": values,
                }
                for column, values in found.items()
            }
            for name, found in self._rows.items()
        }
        said = {
            "title": self._title,
            "machine": self._versions,
            "rows": rows,
            "lost": self.lost,
            "troubles": self.troubles,
            "notes": self.notes,
        }
        return json.dumps(said, indent=1)

    def show(self, console: Console) -> None:
        """Print a table of rich on a terminal, one of Markdown elsewhere."""
        console.print(self._title, markup=False)
        versions = ", ".join(f"{name} {value}" for name, value in self._versions.items())
        console.print(versions, markup=False, soft_wrap=True)
        cells = [[name, *self._cells(found)] for name, found in self._rows.items()]
        if console.is_terminal:
            console.print(_rich(["", *self._columns], cells))
        else:
            for line in _markdown(["", *self._columns], cells):
                console.print(line, markup=False, soft_wrap=True)
        for note in (*self.notes, *self.troubles):
            console.print(note, markup=False, soft_wrap=True)
        console.print(f"lines lost: {self.lost}")

    def _cells(self, found: Mapping[str, list[float]]) -> list[str]:
        return [
            spread(found[column.name], column.digits) if column.name in found else ""
            for column in self._columns.values()
        ]


def spread(values: list[float], digits: int) -> str:
    """Return the median and, where values differ in what is shown, the least and the most."""
    middle, least, most = (f"{of(values):,.{digits}f}" for of in (median, min, max))
    return middle if least == most else f"{middle} ({least} to {most})"


def console(*, as_json: bool) -> Console:
    """Return where a bench speaks; what is for a program stands alone on standard output."""
    made = Console(highlight=False, stderr=as_json)
    made.width = max(made.width, WIDTH_MIN)
    return made


def _rich(names: list[str], rows: list[list[str]]) -> Table:
    shown = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for name in names:
        shown.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for row in rows:
        shown.add_row(*row)
    return shown


def _markdown(names: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---" if not name else "---:" for name in names]
    return [f"| {' | '.join(row)} |" for row in (names, rule, *rows)]
