"""Dead letters, wherever they lie: in the topic, and in this node's store."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, NamedTuple

from agent import asking, offline
from agent.clock import SystemClock
from agent.config import Config
from agent.core.revival import Letter, Wanted
from agent.credentials import Credentials
from agent.errors import AgentError, NotRunning
from agent.topic_reader import Range, Read, read

STORE = "store"
QUEUE = "dead_letters"
PAGE_LETTERS = 500


class Where(NamedTuple):
    """What is read, and by whom.

    Attributes:
        reader: The configuration whose section ``kafka`` may read the topic.
    """

    config: Config
    reader: Config
    topic: bool = True
    store: bool = True


async def letters(
    where: Where, wanted: Wanted, only: str | None = None
) -> AsyncGenerator[Letter, None]:
    """Yield dead letters: those of the store, then those of the topic. ``only``: that ``id``."""
    if where.store and (only is None or only.startswith(STORE)):
        for stored in await asyncio.to_thread(lambda: [*_stored(where.config)]):
            if wanted.matches(stored) and only in {None, stored.id}:
                yield stored
    if where.topic and (only is None or not only.startswith(STORE)):
        kafka = where.reader.kafka
        security = Credentials(kafka.tls, kafka.sasl, SystemClock())
        asked = Range(wanted.since_ms, None if only is None else _offset(only))
        topic = read(where.reader, where.config.dlq.topic, security, asked)
        async with aclosing(topic) as records:
            async for found in records:
                letter = _of_topic(found)
                if wanted.matches(letter) and only in {None, letter.id}:
                    yield letter


def _of_topic(found: Read) -> Letter:
    return Letter(
        id=f"{found.partition}:{found.kafka_offset}",
        timestamp_ms=found.timestamp_ms,
        value=found.value,
        headers=found.headers,
    )


def _offset(name: str) -> tuple[int, int]:
    partition, colon, at = name.partition(":")
    if not (colon and partition.isdecimal() and at.isdecimal()):
        raise AgentError(f"{name!r} is no id: `feedback-agent dlq list` shows them, as 0:17")
    return int(partition), int(at)


def _stored(config: Config) -> Iterator[Letter]:
    """Yield what the topic has not got yet; nothing where no agent has run."""
    if not (config.agent.state_dir / "spool.db").exists():
        return
    try:
        pages: Iterator[Any] = asking.ask(config.agent.state_dir, "export", queue=QUEUE)
        for page in pages:
            yield from map(_letter, page)
    except NotRunning:
        with offline.taken(config) as state, offline.spool(state) as spool:
            yield from map(_letter, offline.spooled(spool.queues[QUEUE]))


def _letter(shown: dict[str, Any]) -> Letter:
    return Letter(
        id=f"{STORE}:{shown['seq']}",
        timestamp_ms=shown["timestamp_ms"],
        value=_bytes(shown["value"]),
        headers={name: _bytes(value) for name, value in shown["headers"].items()},
    )


def _bytes(shown: str | dict[str, str]) -> bytes:
    return shown.encode() if isinstance(shown, str) else b64decode(shown["base64"])


async def pages(
    where: Where, wanted: Wanted, only: Sequence[str]
) -> AsyncGenerator[list[Letter], None]:
    """Yield them some hundreds at a time; ``only``: those ids, or else all."""
    page: list[Letter] = []
    for name in only or (None,):
        async with aclosing(letters(where, wanted, name)) as found:
            async for letter in found:
                page.append(letter)
                if len(page) == PAGE_LETTERS:
                    yield page
                    page = []
    if page:
        yield page


def rfc3339(wall_s: float) -> str:
    at = datetime.fromtimestamp(wall_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
