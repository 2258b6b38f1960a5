"""The state directory while no agent runs over it: taken, so that none can start meanwhile.

Opened, checked and locked by the very rooms that a running agent uses. Commands ask a running agent
first (``agent.control``) and come here where there is none.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any, NamedTuple

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from agent import outward, redaction, wire
from agent.audit import Audit
from agent.clock import Clock, SystemClock
from agent.config import Config
from agent.core.explaining import Doing, Known, Named
from agent.core.identity import Checkpoint, compare, examine
from agent.errors import AgentError, StateOwned
from agent.harvester import first_generation, starting_at
from agent.named import look
from agent.opener import Descriptor
from agent.positions import offset_of
from agent.queue import Queue
from agent.resetting import COMPRESSED, Reset, outcome
from agent.spool import Spool
from agent.store import Store
from agent.telemetry import Metrics
from agent.unpacking import content_birth, is_compressed

PAGE_RECORDS = 2000
TORN_BYTES_MAX = 1024 * 1024
"""Looked at for the end of a line; a longer one is not said to be torn."""


class Taken(NamedTuple):
    config: Config
    store: Store


class Facts(NamedTuple):
    named: Named
    known: Known | None
    doing: Doing


@contextmanager
def taken(config: Config) -> Iterator[Taken]:
    """Own the state directory until the end of the block. Raises ``StoreError``, ``AgentError``."""
    directory = config.agent.state_dir
    if not (directory / "checkpoints.db").exists():
        raise AgentError(f"{directory}: no agent has run here: see agent.state_dir")
    try:
        store = Store.open(directory, config.node)
    except StateOwned as owned:
        why = "but does not answer: is it an older version, or just starting or stopping?"
        raise StateOwned(f"{owned}, {why}") from None
    with closing(store):
        yield Taken(config, store)


@contextmanager
def spool(of: Taken) -> Iterator[Spool]:
    """Open the spool too. How far its queues reach is known to the checkpoints afterwards."""
    path = of.config.agent.state_dir / "spool.db"
    with closing(Spool(path, of.store.spooled())) as opened:
        yield opened
        of.store.save((), (), opened.bounds())


def spooled(queue: Queue) -> Iterator[dict[str, Any]]:
    """Yield each record of ``queue``, oldest first, as ``outward.record`` shows it."""
    at = queue.head
    while rows := queue.oldest(at, PAGE_RECORDS):
        for seq, count, batch in rows:
            at = seq + count
            if batch is not None:
                for number, one in enumerate(wire.records(batch), seq):
                    yield outward.record(number, one)


def audited(config: Config, event: str, **fields: object) -> None:
    """Put an event into the audit log, by whoever runs this process. Call it before the deed.

    Raises ``AgentError`` where the disk does not take it: what is not written down is not done.
    """
    if not config.audit.enabled:
        return
    rules = redaction.in_force(config.redact)
    audit = Audit(
        config.audit_path,
        bytes_max=config.audit.bytes_max,
        files_max=config.audit.files_max,
        shown=redaction.shown(lambda: rules.value),
        clock=SystemClock(),
        metrics=Metrics(CollectorRegistry()),
    )

    async def write() -> None:
        audit.start()
        audit.note(event, **fields, by=f"uid {os.getuid()}")
        await audit.close()

    asyncio.run(write())
    if audit.durable is None:
        raise AgentError(f"{config.audit_path} cannot be written: nothing was changed")


def facts(of: Taken, path: str) -> Facts:
    """Return what the rules and the checkpoints say of ``path``, relative to the root."""
    rows = of.store.load()
    named, file = look(of.config, path, SystemClock().wall())
    with file or nullcontext():
        known = _known(rows, path, file)
    waits = None
    if known is None and named.size is not None:
        at_end = of.config.source.start_at == "end" and not rows
        waits = "at_end" if at_end else "unread"
    return Facts(named, known, Doing(running=False, waits=waits))


def reset(of: Taken, path: str, wanted: str | int, *, dry_run: bool) -> Reset:
    """As ``Resetting.reset``; a file of which nothing was read may be told where to begin, too."""
    clock = SystemClock()
    named, file = look(of.config, path, clock.wall())
    if file is None:
        raise AgentError(f"{path}: cannot be opened: {named.why_not} {named.detail}".rstrip())
    with file:
        if is_compressed(path, file):
            raise AgentError(f"{path}: {COMPRESSED}")
        try:
            made, rows = _reset(of.store.load(), named, file, wanted, clock)
        except OSError as error:
            raise AgentError(f"{path}: {error.strerror}") from None
    if made.changed and not dry_run:
        audited(of.config, "checkpoint.reset", path=path, client=made.client, source=made.source,
                generation=made.generation, watermark=made.before, resume_at=made.at)  # fmt: skip
        of.store.save(rows, (), of.store.spooled())
    return made


def _reset(
    known: list[Checkpoint], named: Named, file: Descriptor, wanted: str | int, clock: Clock
) -> tuple[Reset, list[Checkpoint]]:
    at, size = offset_of(wanted, file), file.size()
    before = _newest(known, file)
    if before is None:
        who = first_generation(file.birth, named.path, named.client)
        made = outcome(who, named.path, at, size, generation=0)
        return replace(made, changed=True), [starting_at(at, file, who)]
    change = compare(before, examine(before, before.birth, size, file.pread))
    if change.cause == "same" and at == before.watermark:
        return outcome(before, named.path, at, size, generation=before.generation), []
    who = replace(before, generation=before.generation + 1, path=named.path, gone_at=None)
    ended = replace(before, gone_at=clock.wall())
    made = outcome(before, named.path, at, size, generation=who.generation)
    return made, [ended, starting_at(at, file, who)]


def _newest(rows: list[Checkpoint], file: Descriptor) -> Checkpoint | None:
    own = [row for row in rows if row.birth == file.birth]
    return max(own, key=lambda row: row.generation, default=None)


def _known(rows: list[Checkpoint], path: str, file: Descriptor | None) -> Known | None:
    if file is None:
        there = [row for row in rows if row.path == path]
        row = max(there, key=lambda row: (row.gone_at is None, row.generation), default=None)
        return None if row is None else _as_known(row)
    row = _newest(rows, file)
    if row is not None:
        change = compare(row, examine(row, row.birth, file.size(), file.pread))
        cause = None if change.cause == "same" else change.cause
        torn = cause is None and _ends_torn(file, row.watermark)
        return replace(_as_known(row), change=cause, resume_at=change.resume_at, torn=torn)
    content = content_birth(file.birth)
    packed = [row for row in rows if row.birth == content]
    if packed:
        return replace(_as_known(packed[-1]), packed=True)
    copied = [row for row in rows if row.path == path and row.gone_at is None]
    return replace(_as_known(copied[0]), continues=copied[0].source_id) if copied else None


def _ends_torn(file: Descriptor, watermark: int) -> bool:
    """Return whether nothing stands above the watermark but a line without its end."""
    left = file.pread(TORN_BYTES_MAX, watermark)
    return 0 < len(left) < TORN_BYTES_MAX and b"\n" not in left


def _as_known(row: Checkpoint) -> Known:
    return Known(
        source=row.source_id,
        generation=row.generation,
        watermark=row.watermark,
        read_to=row.watermark,
        gone_at=row.gone_at,
    )
