"""``feedback-agent dlq replay``: dead letters that are events by now go to the events' topic."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from agent import __version__, asking, offline, redaction, schemas
from agent.assembly import in_force
from agent.clock import SystemClock
from agent.config import Config
from agent.core.decode import Decoder
from agent.core.record import RecordPolicy
from agent.core.revival import Dead, Letter, Revived, Reviver, Wanted
from agent.errors import NotRunning
from agent.letters import Where, pages, rfc3339
from agent.operator.screen import STYLES, cell, console, table
from agent.replayed import Note, Replayed
from agent.replaying import Replaying
from agent.steps import event_ms
from agent.telemetry import Metrics
from agent.wire import PlainRecord

GOOD = frozenset({"sent", "would_send", "already"})
SHOWN_MAX = 20
"""Of those that were not sent: the count tells of the rest."""


class Outcome(NamedTuple):
    """What became of one dead letter: ``sent``, ``would_send``, ``already``, or why not."""

    letter: Letter
    what: str
    detail: str = ""
    event_id: str | None = None


class Wish(NamedTuple):
    """How to replay.

    Attributes:
        schema_dir: Stands in for ``schema.dir``.
        record_path: Of what was replayed from here.
        force: Send again what was replayed before.
    """

    record_path: Path
    schema_dir: Path | None = None
    force: bool = False
    dry_run: bool = False


async def replay(
    where: Where, wanted: Wanted, only: Sequence[str], wish: Wish, told: Callable[[Outcome], None]
) -> Counter[str]:
    """Send dead letters that are events by now to the events' topic; tell of each.

    Raises ``SinkUnavailable`` where Kafka does not take them: what was told is what was done.
    """
    config, counts = where.config, Counter[str]()
    if wish.schema_dir is not None:
        config = replace(config, schema=replace(config.schema, dir=wish.schema_dir))
    unknown = wish.dry_run and not wish.record_path.exists()
    with nullcontext() if unknown else Replayed(wish.record_path) as kept:
        async with nullcontext() if wish.dry_run else _replaying(config) as kafka:
            replaying = _Replay(config, _reviver(config), kept, kafka, wish.force, set())
            async with aclosing(pages(where, wanted, only)) as found:
                async for page in found:
                    for outcome in await replaying.page(page):
                        counts[outcome.what] += 1
                        told(outcome)
    return counts


class _Replay(NamedTuple):
    """One replay. Without ``kafka`` it is a dry run, without ``kept`` nothing was replayed yet."""

    config: Config
    reviver: Reviver
    kept: Replayed | None
    kafka: Replaying | None
    force: bool
    seen: set[str]

    async def page(self, page: list[Letter]) -> list[Outcome]:
        outcomes, alive = [], list[tuple[Letter, Revived]]()
        for letter in page:
            when = None if self.kept is None or self.force else self.kept.when(letter.place)
            found = self.reviver.revive(letter, SystemClock().wall())
            if when is not None or letter.place in self.seen:
                outcomes.append(Outcome(letter, "already", when or "a copy of another one"))
            elif isinstance(found, Dead):
                outcomes.append(Outcome(letter, found.why, found.detail))
            else:
                self.seen.add(letter.place)
                alive.append((letter, found))
        return outcomes + await self._send(alive)

    async def _send(self, alive: list[tuple[Letter, Revived]]) -> list[Outcome]:
        if self.kafka is None:
            return [Outcome(letter, "would_send", "", r.event_id) for letter, r in alive]
        await asyncio.to_thread(_note, self.config, len(alive))
        became = await self.kafka.send([_timed(revived, self.config) for _, revived in alive])
        at = rfc3339(SystemClock().wall())
        sent = [one for one, why in zip(alive, became, strict=True) if why is None]
        if self.kept is not None:
            self.kept.add(Note(letter.place, r.event_id, letter.id, at) for letter, r in sent)
        return [
            Outcome(letter, why or "sent", "", r.event_id)
            for (letter, r), why in zip(alive, became, strict=True)
        ]


def _note(config: Config, records: int) -> None:
    """Let the audit log of this node say it, by whoever runs this; elsewhere there is none."""
    directory = config.agent.state_dir
    if not records or not (directory / "checkpoints.db").exists():
        return
    try:
        list(asking.ask(directory, "replayed", records=records))
    except NotRunning:
        with offline.taken(config):
            offline.audited(config, "dead_letters.replayed", records=records)


def _timed(revived: Revived, config: Config) -> PlainRecord:
    now_ms = int(SystemClock().wall() * 1000)
    at_ms = event_ms(revived.event, now_ms) if config.kafka.timestamp == "event" else now_ms
    return at_ms, *revived.record


def _reviver(config: Config) -> Reviver:
    policy = RecordPolicy(version=__version__, hostname=config.node, key=config.kafka.key)
    decoder = Decoder(config.schema, schemas.load(config.schema))
    return Reviver(decoder, redaction.load(config.redact), policy, topic=config.dlq.topic,
                   rfc3339=rfc3339)  # fmt: skip


def _replaying(config: Config) -> Replaying:
    return Replaying(config, in_force(config), SystemClock(), Metrics(CollectorRegistry()))


# ---- for people


class Told:
    """Says what became of each: as a JSON line at once, or as a table in the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._not_sent: list[Outcome] = []

    def one(self, outcome: Outcome) -> None:
        if self._as_json:
            said = {"id": outcome.letter.id, "what": outcome.what, "detail": outcome.detail,
                    "event_id": outcome.event_id}  # fmt: skip
            console().print(json.dumps(said), soft_wrap=True)
        elif outcome.what not in GOOD and len(self._not_sent) < SHOWN_MAX:
            self._not_sent.append(outcome)

    def all(self, counts: Counter[str]) -> None:
        if self._as_json:
            return
        out = console()
        if self._not_sent:
            shown = table("id", "client", "why not", "detail")
            for letter, what, detail, _ in self._not_sent:
                shown.add_row(letter.id, cell(letter.client), cell(what), cell(detail))
            out.print(shown)
        for what, count in sorted(counts.items()):
            style = STYLES["ok" if what in GOOD else "fail"]
            out.print(cell(f"{count:>8}  {what}", style))
        if not counts:
            out.print("no dead letters are selected")
