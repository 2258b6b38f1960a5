"""``feedback-agent checkpoint`` and ``explain``: of a running agent, or of its state directory."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec

from agent import asking, offline
from agent.config import Config
from agent.core.explaining import Doing, Known, Named, Verdict, explain
from agent.errors import AgentError, NotRunning
from agent.named import beneath
from agent.operator.screen import STYLES, cell, console, counted, table
from agent.outward import checkpoint
from agent.positions import parsed
from agent.resetting import Reset

VERDICTS = {"current": "ok", "behind": "ok", "waiting": "warn", "not_read": "fail", "gone": "warn"}
WORDS = {
    "current": "up to date",
    "behind": "is being read",
    "waiting": "waits",
    "not_read": "is not read",
    "gone": "is gone",
}


class Explained(NamedTuple):
    running: bool
    named: Named
    known: Known | None
    verdict: Verdict


def listed(config: Config) -> Iterator[dict[str, Any]]:
    """Yield every checkpoint on disk, tombstones too, as ``outward.checkpoint`` shows it."""
    try:
        for page in asking.ask(config.agent.state_dir, "checkpoints"):
            yield from page
    except NotRunning:
        with offline.taken(config) as state:
            yield from map(checkpoint, state.store.load())


def chosen(rows: Iterable[dict[str, Any]], pattern: str, *, every: bool) -> list[dict[str, Any]]:
    """Return those of paths that match, by path; unless ``every``, the newest life of each file
    that is there."""
    newest: dict[str, int] = {}
    wanted = [row for row in rows if fnmatchcase(row["path"], pattern)]
    for row in wanted:
        newest[row["source"]] = max(row["generation"], newest.get(row["source"], 0))
    return sorted(
        (
            row
            for row in wanted
            if every or (row["gone_at"] is None and row["generation"] == newest[row["source"]])
        ),
        key=lambda row: (row["path"], row["source"], row["generation"]),
    )


def reset(config: Config, given: str, to: str, *, dry_run: bool) -> Reset:
    """Let reading of a file begin at ``to``, or say what that would do. Raises ``AgentError``."""
    wanted = parsed(to)
    assert wanted is not None, "checked by who parses the command"
    path = _below(config, given)
    try:
        answer = asking.ask(config.agent.state_dir, "reset", path=path, to=to, dry_run=dry_run)
        (made,) = answer
        return msgspec.convert(made, Reset)
    except NotRunning:
        with offline.taken(config) as state:
            return offline.reset(state, path, wanted, dry_run=dry_run)


def explained(config: Config, given: str) -> Explained:
    """Say why a file is read or not."""
    path = beneath(config.source.root, given)
    if path is None:
        named = Named(path=given, why_not="outside", detail=str(config.source.root))
        return Explained(False, named, None, explain(named, None, Doing(running=True)))
    try:
        (found,) = asking.ask(config.agent.state_dir, "explain", path=path)
        facts = msgspec.convert((found["named"], found["known"], found["doing"]), offline.Facts)
        running = True
    except NotRunning:
        running = False
        with offline.taken(config) as state:
            facts = offline.facts(state, path)
    return Explained(running, facts.named, facts.known, explain(*facts))


def _below(config: Config, given: str) -> str:
    path = beneath(config.source.root, given)
    if path is None:
        raise AgentError(f"{given}: does not lie below source.root, {config.source.root}")
    return path


# ---- for people


def say(made: Reset, begins: str, *, stderr: bool = False) -> None:
    out = console(stderr=stderr)
    if not made.changed:
        out.print(cell(f"{made.path} stands at {made.at:,} already: nothing to do"))
        return
    out.print(
        cell(f"{made.path} {begins} at {made.at:,} as generation {made.generation}"),
        cell(f"of {made.source}; it was settled up to {made.before:,} of {made.size:,} bytes"),
    )
    if made.again_bytes:
        again = f"{made.again_bytes:,} bytes go again: copies, by event_id where the app gave one"
        out.print(cell(again, "yellow"))
    if made.skipped_bytes:
        out.print(cell(f"{made.skipped_bytes:,} bytes are passed over: never sent", "bold red"))


def show_rows(rows: list[dict[str, Any]]) -> None:
    out, gone = console(), any(row["gone_at"] is not None for row in rows)
    if not rows:
        out.print("no checkpoints")
        return
    names = ("path", "source", "gen", "watermark", *(("gone",) if gone else ()))
    shown = table(*names, right=("gen", "watermark"))
    shown.columns[1].no_wrap = True
    for row in rows:
        since = "" if row["gone_at"] is None else _at(row["gone_at"])
        place = f"{row['generation']}", f"{row['watermark']:,}"
        shown.add_row(cell(row["path"]), cell(row["source"]), *place, *((since,) if gone else ()))
    out.print(shown)
    out.print(counted(len(rows), "checkpoint"))


def show(found: Explained) -> None:
    out, (_, named, known, verdict) = console(), found
    heading = cell(f"{named.path} ")
    out.print(heading.append(WORDS[verdict.state], STYLES[VERDICTS[verdict.state]]))
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(found):
        facts.add_row(name, cell(value))
    out.print(facts)
    for finding in verdict.findings:
        remedy = f": {finding.remedy}" if finding.remedy else ""
        out.print(cell(f"- {finding.what}{remedy}"))
    if known is not None and verdict.state == "current" and not verdict.findings:
        out.print("- every line of it is settled")


def _facts(found: Explained) -> list[tuple[str, object]]:
    _, named, known, verdict = found
    facts: list[tuple[str, object]] = [("client", named.client)] if named.client else []
    if named.size is not None:
        facts.append(("size", f"{named.size:,} bytes, inode {named.inode}"))
    if known is not None:
        facts.append(("source", f"{known.source}, generation {known.generation}"))
        facts.append(("settled up to", f"{known.watermark:,}"))
        if known.read_to != known.watermark:
            facts.append(("read up to", f"{known.read_to:,}, {known.in_flight_bytes:,} in flight"))
        if known.gone_at is not None:
            facts.append(("gone since", _at(known.gone_at)))
    if verdict.lag_bytes and verdict.state != "current":
        facts.append(("behind by", f"{verdict.lag_bytes:,} bytes"))
    return facts


def as_json(found: Explained) -> dict[str, Any]:
    running, named, known, verdict = found
    return {"running": running, **msgspec.to_builtins(verdict), "file": msgspec.to_builtins(named),
            "checkpoint": msgspec.to_builtins(known)}  # fmt: skip


def _at(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
