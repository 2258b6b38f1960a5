"""What ``validate`` says to people."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from agent.operator import screen
from agent.operator.validate import Verdict
from agent.status_page.units import size


def of_file(verdict: Verdict) -> Group:
    """Return what is said of one input: a line, and a table of what would be rejected."""
    return Group(*_of_file(verdict))


def _of_file(verdict: Verdict) -> Iterator[RenderableType]:
    look = screen.STYLES["ok" if verdict.good else "fail"]
    said = [screen.counted(verdict.lines, "line"), screen.counted(verdict.events, "event")]
    others = ((verdict.rejected, "rejected"), (verdict.blank, "blank"))
    said += [f"{number:,} {what}" for number, what in others if number]
    if verdict.problem is not None:
        said = [verdict.problem, *(said if verdict.lines else ())]
    line = Text.assemble(screen.cell(verdict.file, "bold"), ": ", (", ".join(said), look))
    yield line.append(f"  {size(verdict.bytes)}", "dim") if verdict.bytes else line
    if verdict.unfinished_bytes:
        unfinished = screen.counted(verdict.unfinished_bytes, "byte")
        said_of_it = "at the end without a line break yet: the agent waits for the rest"
        yield screen.cell(f"! {unfinished} {said_of_it}", "yellow")
    if not verdict.rejections:
        return
    made = screen.table("line", "bytes", "type", "reason", "detail", right=("line",))
    for one in verdict.rejections:
        made.add_row(
            f"{one.line:,}",
            f"{one.start}..{one.end}",
            screen.cell(one.type or "-"),
            screen.cell(one.reason, "bold red"),
            screen.cell(one.detail),
        )
    yield made
    if more := verdict.rejected - len(verdict.rejections):
        yield screen.cell(f"and {more:,} more: --limit names them", "dim")


def summary(verdicts: Iterable[Verdict]) -> Group:
    """Return what there was of all inputs, by type, reason and what was redacted."""
    return Group(*_summary(verdicts))


def _summary(verdicts: Iterable[Verdict]) -> Iterator[RenderableType]:
    types, reasons, redacted = Counter[str](), Counter[str](), Counter[str]()
    for verdict in verdicts:
        types.update(verdict.by_type)
        reasons.update(verdict.by_reason)
        redacted.update(verdict.redacted)
    for heading, counts in (("type", types), ("reason", reasons), ("redacted", redacted)):
        if counts:
            made = screen.table(heading, "count", right=("count",))
            for name, number in counts.most_common():
                made.add_row(screen.cell(name or "(none)"), f"{number:,}")
            yield made


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON in which nothing drives a terminal."""
    text = msgspec.json.encode(record).decode()
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
