"""What may be asked of a running agent over its control socket, and what it answers.

Lives on the event loop. Commands find the same with the agent down in ``agent.offline``.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from itertools import islice

import msgspec
from msgspec import structs

from agent import purging
from agent.clock import Clock
from agent.config import Config
from agent.control import Answer, Asker, Fields
from agent.core.auditing import Note
from agent.core.explaining import Named
from agent.core.identity import Checkpoint
from agent.core.quota import InFlight
from agent.core.revival import Wanted
from agent.core.seam import Mode
from agent.errors import AgentError
from agent.followed import Found, find
from agent.intake import Intake, InWorker
from agent.named import look
from agent.outward import checkpoint, record
from agent.positions import parsed
from agent.sources import Sources
from agent.spooler import InStore, Spooler
from agent.wire import Codec, records

PAGE_ROWS = 500
"""Checkpoints in one item of an answer: the loop has other things to do, too."""


class Requests:
    """The answers, by what is asked.

    Args:
        checkpoints: Return those on disk; blocks.
        write: Bring to disk what is known: checkpoints and receipts.
        codec: For what is put by anew.
        note: Of the audit log.
    """

    def __init__(
        self,
        config: Config,
        *,
        intake: Intake,
        in_worker: InWorker,
        sources: Sources,
        ways: Sequence[Spooler],
        in_flight: InFlight,
        in_store: InStore,
        checkpoints: Callable[[], list[Checkpoint]],
        write: Callable[[], Awaitable[None]],
        codec: Codec,
        note: Note,
        clock: Clock,
    ) -> None:
        self._config = config
        self._intake = intake
        self._in_worker = in_worker
        self._sources = sources
        self._ways = {way.outlet.name: way for way in ways}
        self._in_flight = in_flight
        self._in_store = in_store
        self._checkpoints = checkpoints
        self._written = write
        self._codec = codec
        self._note = note
        self._clock = clock

    @property
    def answers(self) -> Mapping[str, Answer]:
        return {
            "explain": self._explain,
            "checkpoints": self._list,
            "reset": self._reset,
            "spool": self._spool,
            "drain": self._drain,
            "export": self._export,
            "purge_letters": self._purge,
            "write": self._write,
            "replayed": self._replayed,
        }

    async def _explain(self, fields: Fields, _asker: Asker) -> AsyncIterator[object]:
        path = _text(fields, "path")
        wall_s, pauses = self._clock.wall(), tuple(self._pauses())

        def looked() -> tuple[Named, Found]:
            named, file = look(self._config, path, wall_s)
            with file or nullcontext():
                return named, find(self._sources, named, file)

        named, (known, doing) = await self._in_worker(looked)
        doing = structs.replace(doing, pauses=pauses)
        yield {
            "named": structs.asdict(named),
            "known": None if known is None else structs.asdict(known),
            "doing": structs.asdict(doing),
        }

    def _pauses(self) -> Iterator[tuple[str, str]]:
        """Yield what holds up the reading of all files."""
        events = self._ways["events"]
        problem = events.outlet.problem or "connecting"
        if events.outlet.topic is None and events.mode is not Mode.SPOOLING:
            yield "no_kafka", problem
        if events.mode is Mode.SPOOLING:
            yield "spooling", problem
        for name, way in self._ways.items():
            if way.full is not None:
                yield "spool_full", f"{name}: {way.full}"
            if not way.may_append:
                yield "catching_up", f"{way.spooled_records} records are left"
        if self._in_flight.full:
            yield "in_flight", f"{self._in_flight.events} lines, {self._in_flight.bytes} bytes"

    async def _list(self, _fields: Fields, _asker: Asker) -> AsyncIterator[object]:
        rows = iter(await self._in_store(self._checkpoints))
        while page := [checkpoint(row) for row in islice(rows, PAGE_ROWS)]:
            yield page

    async def _reset(self, fields: Fields, asker: Asker) -> AsyncIterator[object]:
        path, wanted = _text(fields, "path"), parsed(_text(fields, "to"))
        dry_run = fields.get("dry_run") is not False
        if wanted is None:
            raise AgentError("to is start, end, or a number of bytes")
        made = await self._intake.change(
            lambda sources: sources.resetting.reset(path, wanted, dry_run=dry_run)
        )
        if made.changed and not dry_run:
            self._note("checkpoint.reset", path=path, client=made.client, source=made.source,
                       generation=made.generation, watermark=made.before, resume_at=made.at,
                       by=f"uid {asker.uid}")  # fmt: skip
        yield structs.asdict(made)

    async def _spool(self, _fields: Fields, _asker: Asker) -> AsyncIterator[object]:
        for name, way in self._ways.items():
            census = await way.census()
            problem = way.outlet.problem
            yield {"queue": name, "problem": problem, **census._asdict(), **way.status()}

    async def _drain(self, _fields: Fields, asker: Asker) -> AsyncIterator[object]:
        for name, way in self._ways.items():
            if way.spooled_records:
                way.outlet.hasten()
            yield {"queue": name, "problem": way.outlet.problem, **way.status()}

    async def _export(self, fields: Fields, _asker: Asker) -> AsyncIterator[object]:
        way = self._way(fields)
        at = 0
        while rows := await way.page(at):
            for seq, count, batch in rows:
                at = seq + count
                if batch is not None:
                    found = await asyncio.to_thread(records, batch)
                    yield [record(number, one) for number, one in enumerate(found, seq)]

    async def _purge(self, fields: Fields, asker: Asker) -> AsyncIterator[object]:
        """Say after each page how far it is. Who hangs up ends it."""
        way, wanted = self._ways[purging.QUEUE], _wanted(fields)

        def note(records: int) -> None:
            self._note("dead_letters.purged", records=records, reason=wanted.reason,
                       client=wanted.client, since=purging.moment(wanted.since_ms),
                       until=purging.moment(wanted.until_ms), by=f"uid {asker.uid}")  # fmt: skip

        dry_run = fields.get("dry_run") is not False
        made = purging.purged(way, wanted, self._codec, note)
        async with aclosing(purging.counted(way, wanted) if dry_run else made) as tallies:
            async for tally in tallies:
                yield tally._asdict()

    async def _write(self, _fields: Fields, _asker: Asker) -> AsyncIterator[object]:
        await self._written()
        yield {}

    async def _replayed(self, fields: Fields, asker: Asker) -> AsyncIterator[object]:
        """A command is about to do it: only who owns the state directory writes the audit log."""
        records = fields.get("records")
        if not isinstance(records, int):
            raise AgentError("records is a number")
        self._note("dead_letters.replayed", records=records, by=f"uid {asker.uid}")
        yield {}

    def _way(self, fields: Fields) -> Spooler:
        name = _text(fields, "queue")
        if name not in self._ways:
            raise AgentError(f"queue is one of {', '.join(self._ways)}")
        return self._ways[name]


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise AgentError(f"{name} is missing")
    return value


def _wanted(fields: Fields) -> Wanted:
    """Return which dead letters: what is not understood must not mean all of them."""
    try:
        return msgspec.convert(fields.get("wanted"), Wanted)
    except msgspec.ValidationError as error:
        raise AgentError(f"wanted: {error}") from None
