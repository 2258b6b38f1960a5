"""``feedback-agent dlq list``, ``show``, ``export`` and ``purge``."""

from collections import Counter
from contextlib import aclosing
from heapq import nlargest
from typing import Any, NamedTuple

from agent import asking, offline, purging, wire
from agent.config import Config
from agent.core.revival import Letter, Wanted
from agent.errors import AgentError, NotRunning
from agent.letters import QUEUE, Where, letters, rfc3339
from agent.operator.screen import cell, console, counted, table
from agent.outward import text
from agent.queue import Queue

KEPT = 1000
"""Letters are thinned out when so many more are kept than wanted."""


class Found(NamedTuple):
    """``letters`` are the newest, oldest first; ``counts`` are of all, by reason and client."""

    letters: list[Letter]
    counts: Counter[tuple[str, str]]


async def newest(where: Where, wanted: Wanted, limit: int) -> Found:
    """Return the newest ``limit`` and the count of all."""
    kept: list[tuple[int, int, Letter]] = []  # of those of one moment the later one is newer
    counts = Counter[tuple[str, str]]()
    async with aclosing(letters(where, wanted)) as found:
        async for letter in found:
            counts[letter.reason, letter.client] += 1
            kept.append((letter.timestamp_ms, counts.total(), letter))
            if len(kept) >= limit + KEPT:
                kept = nlargest(limit, kept, key=_age)
    return Found([letter for *_, letter in reversed(nlargest(limit, kept, key=_age))], counts)


async def one(where: Where, wanted: Wanted, name: str) -> Letter:
    """Return the letter with that id. Raises ``AgentError``."""
    found = [letter async for letter in letters(where, wanted, name)]
    if found:
        return found[0]
    raise AgentError(f"there is no dead letter {name}: `feedback-agent dlq list` shows the ids")


def _age(kept: tuple[int, int, Letter]) -> tuple[int, int]:
    return kept[:2]


def as_json(letter: Letter, *, payload: bool) -> dict[str, Any]:
    """Return a dead letter as scripts get it; ``payload``: with its value and all headers."""
    shown: dict[str, Any] = {
        "id": letter.id,
        "at": rfc3339(letter.timestamp_ms / 1000),
        "reason": letter.reason,
        "client": letter.client or None,
        "node": letter.node or None,
        "detail": letter.header("detail"),
        "source": letter.header("source"),
        "bytes": len(letter.value),
        "cut": "cut" in letter.headers,
    }
    if payload:
        shown["headers"] = {name: text(value) for name, value in letter.headers.items()}
        shown["value"] = text(letter.value)
    return shown


class Purged(NamedTuple):
    """``stay``: as many more match, and stay because they are on their way to Kafka."""

    records: int
    stay: int
    dry_run: bool


def purge(config: Config, wanted: Wanted, *, dry_run: bool) -> Purged:
    """Drop what matches of the store, or count it; ``Wanted()``: all of it."""
    directory = config.agent.state_dir
    asked = {"wanted": list(wanted), "dry_run": dry_run}
    try:
        found = purging.Tally()
        for tally in asking.ask(directory, "purge_letters", **asked):
            found = purging.Tally(**tally)
        return Purged(*found, dry_run)
    except NotRunning:
        with offline.taken(config) as state, offline.spool(state) as spool:
            queue = spool.queues[QUEUE]
            return Purged(_purge_down(config, queue, wanted, dry_run=dry_run), 0, dry_run)


def _purge_down(config: Config, queue: Queue, wanted: Wanted, *, dry_run: bool) -> int:
    records = purging.count(queue, wanted)
    if records and not dry_run:
        offline.audited(config, "dead_letters.purged", records=records, reason=wanted.reason,
                        client=wanted.client, since=purging.moment(wanted.since_ms),
                        until=purging.moment(wanted.until_ms))  # fmt: skip
        codec = wire.codec(config.kafka.compression, config.kafka.compression_level)
        purging.purge(queue, wanted, codec)
    return records


# ---- for people


def show_list(found: Found) -> None:
    out = console()
    if not found.counts:
        out.print("no dead letters")
        return
    shown = table("id", "read at", "reason", "client", "bytes", "detail", right=("bytes",))
    for column in shown.columns[:3]:
        column.no_wrap = True
    for letter in found.letters:
        shown.add_row(
            letter.id,
            rfc3339(letter.timestamp_ms / 1000)[:19].replace("T", " "),
            cell(letter.reason, "yellow"),
            cell(letter.client or "?"),
            f"{len(letter.value):,}",
            cell(letter.header("detail")),
        )
    out.print(shown)
    sums = table("dead letters", "reason", "client", right=("dead letters",))
    for (reason, client), count in found.counts.most_common():
        sums.add_row(f"{count:,}", cell(reason), cell(client or "?"))
    out.print(sums)
    total = found.counts.total()
    more = f", the newest {len(found.letters)} are shown" if total > len(found.letters) else ""
    out.print(f"{counted(total, 'dead letter')}{more}")


def show_purged(made: Purged) -> None:
    verb = "would be dropped" if made.dry_run else "dropped"
    stay = f"; {made.stay:,} more are on their way to Kafka, and stay" if made.stay else ""
    console().print(f"{counted(made.records, 'dead letter')} {verb}{stay}")


def show(letter: Letter) -> None:
    out = console()
    facts = table("", "")
    facts.show_header = False
    facts.add_row("id", letter.id)
    facts.add_row("read at", rfc3339(letter.timestamp_ms / 1000))
    for name, value in letter.headers.items():
        shown = text(value)
        facts.add_row(cell(name), cell(shown if isinstance(shown, str) else shown["base64"]))
    out.print(facts)
    payload = text(letter.value)
    out.print(cell(payload if isinstance(payload, str) else payload["base64"]), soft_wrap=True)
