"""The status as tables: of a running agent, or of what a stopped one left behind."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from agent.operator import screen
from agent.status_page.units import count, size, span

CLIENTS_MAX = 10
NAMES_MAX = 10
LOOKS = {
    "live": "green",
    "closed": "green",
    "replaying": "yellow",
    "half_open": "yellow",
    "spooling": "yellow",
}
NOTHING = "-"

Status = Mapping[str, Any]


def well(status: Status) -> bool:
    """Return whether an agent runs that is healthy and takes in what is written."""
    return bool(status["running"] and status["health"]["ok"] and status["ready"]["ok"])


def drawn(status: Status, files_max: int) -> RenderableType:
    """Return the whole screen; of the files those that are most behind."""
    return Group(*(_running(status) if status["running"] else _stopped(status)),
                 *_clients(status), *_files(status, files_max), *_more(status))  # fmt: skip


def _running(status: Status) -> Iterator[RenderableType]:
    verdict, look = _verdict(status)
    said = f"up {span(status['up_s'])}, version {status['version']}, {status['at']}"
    yield Text.assemble(screen.cell(status["node"], "bold"), "  ", (verdict, look), f"  {said}")
    for reason in (*status["health"]["reasons"], *status["ready"]["reasons"]):
        yield screen.cell(f"! {reason}", look)
    if status["watcher"] not in {None, "root_missing"}:
        yield screen.cell(f"! no hints from the kernel: {status['watcher']}", "yellow")
    for what, one in status["reloaded"].items():
        if one["problem"] is not None:
            yield screen.cell(f"! {what}, the last good one stays: {one['problem']}", "yellow")
    made = screen.table("sink", "mode", "breaker", "spooled", "batches", "problem",
                        right=("batches",))  # fmt: skip
    for column in (made.columns[0], made.columns[3]):  # a number is read with its unit
        column.no_wrap = True
    for name, sink in status["sinks"].items():
        made.add_row(*_sink(name, sink))
    yield made
    if letters := status.get("dead_letters"):  # an older agent does not say
        most = sorted(letters.items(), key=lambda one: (-one[1], one[0]))
        said = ", ".join(f"{count(lines)} {reason}" for reason, lines in most)
        yield screen.cell(f"dead letters since its start: {said}", "yellow")


def _verdict(status: Status) -> tuple[str, str]:
    if not status["health"]["ok"]:
        return "hangs", "bold red"
    if not status["ready"]["ok"]:
        return "not ready", "bold red"
    return ("ready, with remarks", "yellow") if status["ready"]["reasons"] else ("ready", "green")


def _sink(name: str, sink: Status) -> Iterator[Text]:
    """Yield its cells. That of the audit log's topic has no spool, and so no mode."""
    mode = sink.get("mode", "live" if sink["problem"] is None else sink["phase"])
    yield screen.cell(name)
    for word in (mode, sink["breaker"]):
        yield screen.cell(word.replace("_", " "), LOOKS.get(word, "bold red"))
    spooled = NOTHING
    if "mode" in sink:
        records = sink["spooled_records"]
        spooled = f"{count(records)} in {size(sink['spooled_bytes'])}" if records else "0"
        if sink["spool_full"]:
            spooled += f", full: {sink['spool_full']}"
    yield screen.cell(spooled, "bold red" if sink.get("spool_full") else "")
    yield screen.cell(count(sink["batches_queued"]))
    problem = (sink["problem"] or NOTHING).replace("_", " ")  # and is folded where words end
    yield screen.cell(problem, "yellow" if sink["problem"] else "")


def _stopped(status: Status) -> Iterator[RenderableType]:
    found = "does not answer" if status["owner"] else "no agent answers"
    head = Text.assemble(screen.cell(status["node"] or "?", "bold"), "  ", (found, "bold red"))
    yield head.append(f"  {status['at']}")
    yield screen.cell(f"! {status['why']}", "yellow")
    if status["owner"]:
        said = f"pid {status['owner']} holds {status['state_dir']}; below is its last checkpoint"
        yield screen.cell(f"! {said}", "yellow")
    if status["root"]["problem"]:
        yield screen.cell(f"! {status['root']['path']}: {status['root']['problem']}", "bold red")
    age_s = _s(status["at"]) - _s(status["checkpointed_at"])
    yield screen.cell(f"last checkpoint {span(max(0.0, age_s))} ago, in {status['state_dir']}")
    spooled = {name: sink["spooled_records"] for name, sink in status["sinks"].items()}
    said = ", ".join(f"{name.replace('_', ' ')} {count(n)}" for name, n in spooled.items())
    records = said or "nothing"
    yield screen.cell(f"spooled then: {records}; spool.db is {size(status['spool_bytes'])}")


def _clients(status: Status) -> Iterator[RenderableType]:
    clients: Sequence[Status] = status["clients"]
    if not clients:
        return
    numbers = ("lag", "oldest", "lines read") if status["running"] else ("lag",)
    made = screen.table("client", *numbers, right=numbers)
    for one in clients[:CLIENTS_MAX]:
        cells = [screen.cell(one["client"]), _lag(one["lag_bytes"])]
        if status["running"]:
            oldest = NOTHING if one["lag_s"] is None else span(one["lag_s"])
            cells += [screen.cell(oldest), screen.cell(count(one["lines_read"]))]
        made.add_row(*cells)
    yield made
    yield from _rest(len(clients) - CLIENTS_MAX, "clients")


def _files(status: Status, files_max: int) -> Iterator[RenderableType]:
    files: Sequence[Status] = status["files"]
    total = status.get("files_open", len(files))
    if not files or not files_max:
        yield screen.cell(f"{count(total)} files" if files else "no files", "dim")
        return
    made = screen.table("file", "offset", "size", "lag", right=("offset", "size", "lag"))
    for file in files[:files_max]:
        made.add_row(
            screen.cell(file["path"]),
            f"{file['watermark']:,}" if file["source"] else "new",
            "gone" if file["size"] is None else size(file["size"]),
            _lag(file["lag_bytes"]),
        )
    yield made
    yield from _rest(total - min(files_max, len(files)), "files, less behind")


def _lag(lag_bytes: int | None) -> Text:
    if lag_bytes is None:
        return screen.cell("?")
    return screen.cell(size(lag_bytes), "yellow" if lag_bytes else "")


def _more(status: Status) -> Iterator[RenderableType]:
    for one in status.get("unreadable", ())[:NAMES_MAX]:
        yield screen.cell(f"not read: {one['path']}: {one['reason']}", "yellow")
    problems = status.get("problems", ())
    if problems:
        yield screen.cell("Lately", "bold")
    for one in problems[:NAMES_MAX]:
        fields = " ".join(f"{k}={v}" for k, v in one["fields"].items() if v not in {None, ""})
        age = span(max(0.0, _s(status["at"]) - _s(one["at"])))
        said = f"{age} ago, {_times(one['count'])}: {one['event']} {fields}"
        yield Padding(screen.cell(said), (0, 0, 0, 2))


def _times(number: int) -> str:
    return "once" if number == 1 else f"{count(number)} times"


def _rest(left: int, what: str) -> Iterator[RenderableType]:
    if left > 0:
        yield screen.cell(f"and {count(left)} {what}", "dim")


def _s(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
