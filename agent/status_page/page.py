"""Makes the page out of what /status says and the last minutes. Words and layout: page.html.

Everything that is shown passes ``_text``: a client chooses names of directories and files.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from html import escape
from importlib import resources
from string import Template
from typing import Any, Final

from agent.logs import escaped
from agent.status_page.charts import bar, chart
from agent.status_page.history import Series
from agent.status_page.units import count, size, span

FILES_MAX: Final = 25
"""Files on the page; /status has more."""
UNREADABLE_MAX: Final = 25
TEXT_CHARACTERS_MAX: Final = 300

_HERE = resources.files("agent.status_page")
_STYLE = _HERE.joinpath("page.css").read_text("utf-8")
_PAGE = Template(_HERE.joinpath("page.html").read_text("utf-8"))

_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy to send with it: one style sheet, and nothing else at all."""

_LOOKS = {"live": "good", "spooling": "fair", "replaying": "fair", "closed": "good",
          "half_open": "fair"}  # fmt: skip
"""Of words that a sink says; all others are bad news."""


def page(status: Mapping[str, Any], series: Series) -> str:
    """Return the document. ``status``: as ``Report.status`` makes it."""
    clients, files, problems = status["clients"], status["files"], status["problems"]
    node = _text(status["node"])
    word, look = _verdict(status)
    return _PAGE.substitute(
        title=f"{word} - {node}",
        style=_STYLE,
        node=node,
        version=_text(status["version"]),
        up=span(status["up_s"]),
        root=_text(status["root"]["path"]),
        verdict=_pill(word, look),
        notices=_notices(status),
        charts=_charts(series),
        sinks="".join(_sink(name, sink) for name, sink in status["sinks"].items()),
        clients_said="as the last scan saw them" if clients else "",
        clients=_clients(clients),
        files_said=_files_said(status["files_open"]),
        files=_files(files[:FILES_MAX]),
        unreadable=_unreadable(status["unreadable"][:UNREADABLE_MAX]),
        problems_said="the last of each kind" if problems else "",
        problems=_problems(problems, datetime.fromisoformat(status["at"])),
        at=_text(status["at"]),
    )


def _verdict(status: Mapping[str, Any]) -> tuple[str, str]:
    if not status["health"]["ok"]:
        return "hangs", "bad"
    if not status["ready"]["ok"]:
        return "not ready", "bad"
    return ("ready, with remarks", "fair") if status["ready"]["reasons"] else ("ready", "good")


def _notices(status: Mapping[str, Any]) -> str:
    """Say what keeps it from being well, and what of its surroundings is wrong."""
    ready = status["ready"]
    said = [("bad", reason) for reason in status["health"]["reasons"]]
    said += [("fair" if ready["ok"] else "bad", reason) for reason in ready["reasons"]]
    if status["watcher"] not in {None, "root_missing"}:
        said.append(("fair", f"no hints from the kernel: {status['watcher']}"))
    for what, reloaded in status["reloaded"].items():
        if reloaded["problem"] is not None:
            said.append(("fair", f"{what}, the last good one stays: {reloaded['problem']}"))
    items = "".join(f'<li class="{look}">{_text(reason)}</li>' for look, reason in said)
    return f'<ul class="notices">{items}</ul>' if items else ""


def _charts(series: Series) -> str:
    rates = (
        ("Lines read", series.lines_read),
        ("Events delivered", series.delivered),
        ("Dead letters", series.dead_letters),
    )
    drawn = [chart(title, points, "/s", count) for title, points in rates]
    # what is spooled is settled and no lag: during an outage that one alone would seem well
    return "".join([*drawn, chart("Not in Kafka yet", series.unsent_bytes, "", size)])


def _sink(name: str, sink: Mapping[str, Any]) -> str:
    """Return a card. That of the audit log's topic has no spool, and so no mode."""
    says = [
        ("Breaker", _looked(sink["breaker"])),
        ("Problem", _text(sink["problem"]) if sink["problem"] else "none"),
        ("Batches under way", count(sink["batches_queued"])),
        ("Oldest unanswered", span(sink["unanswered_s"])),
    ]
    if "mode" in sink:
        full = f" {_pill('full: ' + sink['spool_full'], 'bad')}" if sink["spool_full"] else ""
        records = count(sink["spooled_records"])
        says.append(("Spool", f"{records} records, {size(sink['spooled_bytes'])}{full}"))
    rows = "".join(f"<dt>{what}</dt><dd>{value}</dd>" for what, value in says)
    mode = sink.get("mode", "live" if sink["problem"] is None else sink["phase"])
    title = _words(name)
    return (
        f'<article class="card"><header><h3>{title}</h3>{_looked(mode)}</header>'
        f"<dl>{rows}</dl></article>"
    )


def _clients(clients: Sequence[Mapping[str, Any]]) -> str:
    most = max([client["lag_bytes"] for client in clients], default=0) or 1
    return _table(
        ("Client", "nowrap measure:", "number:Lag", "number:Oldest", "number wide:Lines read"),
        (
            (
                _text(client["client"]),
                bar(client["lag_bytes"] / most),
                size(client["lag_bytes"]),
                "&ndash;" if client["lag_s"] is None else span(client["lag_s"]),
                count(client["lines_read"]),
            )
            for client in clients
        ),
        "No client has a file.",
    )


def _files(files: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        ("File", "wide:Client", "measure:Settled", "number:Lag", "number wide:Size"),
        (
            (
                f"<code>{_text(file['path'])}</code>",
                _text(file["client"]),
                bar(1 - file["lag_bytes"] / (file["watermark"] + file["lag_bytes"] or 1)),
                size(file["lag_bytes"]),
                "gone" if file["size"] is None else size(file["watermark"] + file["lag_bytes"]),
            )
            for file in files
        ),
        "No file is open.",
    )


def _unreadable(names: Sequence[Mapping[str, str]]) -> str:
    if not names:
        return ""
    rows = [(f"<code>{_text(one['path'])}</code>", _words(one["reason"])) for one in names]
    return f"<section><h2>Not read</h2>{_table(('Name', 'nowrap:Why'), rows, '')}</section>"


def _problems(problems: Sequence[Mapping[str, Any]], now: datetime) -> str:
    return _table(
        ("nowrap:When", "What", "number:Times"),
        (
            (
                f"{_age(problem['at'], now)} ago",
                f"<code>{_text(problem['event'])}</code>{_fields(problem['fields'])}",
                count(problem["count"]),
            )
            for problem in problems
        ),
        "Nothing since the start.",
    )


def _age(at: str, now: datetime) -> str:
    return span(max(0.0, (now - datetime.fromisoformat(at)).total_seconds()))


def _fields(fields: Mapping[str, object]) -> str:
    said = " ".join(f"{key}={value}" for key, value in fields.items() if value not in (None, ""))
    return f'<div class="quiet">{_text(said)}</div>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> str:
    """Return a table. A head is ``classes:text``, or text alone; the classes are its column's."""
    columns = [head.rpartition(":") for head in heads]
    lines = "".join(
        f"<tr>{''.join(_cell('td', c, v) for (c, _, _), v in zip(columns, row, strict=True))}</tr>"
        for row in rows
    )
    if not lines:
        return f'<p class="quiet">{empty}</p>'
    head = "".join(_cell("th", classes, text) for classes, _, text in columns)
    return f'<div class="table"><table><tr>{head}</tr>{lines}</table></div>'


def _cell(tag: str, classes: str, text: str) -> str:
    return f'<{tag} class="{classes}">{text}</{tag}>' if classes else f"<{tag}>{text}</{tag}>"


def _files_said(opened: int) -> str:
    if opened <= FILES_MAX:
        return "open ones" if opened else ""
    return f"the {FILES_MAX} most behind of {count(opened)} that are open"


def _looked(word: str) -> str:
    return _pill(word.replace("_", " "), _LOOKS.get(word, "bad"))


def _words(constant: str) -> str:
    return _text(constant).replace("_", " ")


def _pill(word: str, look: str) -> str:
    return f'<span class="pill {look}">{_text(word)}</span>'


def _text(value: object) -> str:
    """Return ``value`` fit for HTML: no markup, and no character that hides or turns text."""
    text = str(value)
    if len(text) > TEXT_CHARACTERS_MAX:
        text = text[:TEXT_CHARACTERS_MAX] + "..."
    return escape(escaped(text))
