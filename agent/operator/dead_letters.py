"""``feedback-agent dlq list``, ``show``, ``export`` and ``purge``."""

from collections import Counter
from contextlib import aclosing
from heapq import nlargest
from typing import Any, NamedTuple

from agent import asking, offline
from agent.config import Config
from agent.core.revival import Letter, Wanted
from agent.errors import AgentError, NotRunning
from agent.letters import QUEUE, Where, letters, rfc3339
from agent.operator.screen import cell, console, table
from agent.outward import text

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


def purge(config: Config) -> int:
    """Drop all that is in the store; return how many. What is on its way to Kafka stays."""
    try:
        (purged,) = asking.ask(config.agent.state_dir, "purge", queue=QUEUE)
        return int(purged["records"])
    except NotRunning:
        with offline.taken(config) as state, offline.spool(state) as spool:
            queue = spool.queues[QUEUE]
            dropped = queue.records
            if dropped:
                offline.audited(config, "dead_letters.purged", records=dropped)
                queue.drop_below(queue.end)
            return dropped


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
    out.print(f"{total:,} dead letters{more}")


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
