"""Dead letters, wherever they lie: in the topic, and in this node's store."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aiokafka import ConsumerRecord

from agent import asking, offline
from agent.config import Config
from agent.config.sections import Kafka
from agent.consumer import Reader, connected
from agent.core.receipts import Partition, Window
from agent.core.revival import STORE, Letter, Wanted
from agent.errors import AgentError, NotRunning, SinkUnavailable

QUEUE = "dead_letters"
PAGE_LETTERS = 500
MAY_NOT_READ = (
    "a node's own may only write; give --consumer-config with an account that may Read and Describe"
)
STORE_ALONE = "what waits on this node is had by --from store"


class Where(NamedTuple):
    """What is read, and by whom.

    Attributes:
        reader: By what the topic may be read.
    """

    config: Config
    reader: Kafka
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
        async with aclosing(_of_topic(where, wanted.since_ms, only)) as found:
            async for letter in found:
                if wanted.matches(letter) and only in {None, letter.id}:
                    yield letter


async def _of_topic(
    where: Where, since_ms: int | None, only: str | None
) -> AsyncGenerator[Letter, None]:
    topic = where.config.dlq.topic
    place = None if only is None else _offset(only)
    try:
        async with connected(where.reader) as reader:
            wanted = await _windows(reader, topic, since_ms, place)
            async for page in reader.read(wanted):
                for record in page:
                    yield _letter_of(record)
    except SinkUnavailable as error:
        if error.reason in {"topic_denied", "cluster_denied"}:
            raise AgentError(f"{error}: {MAY_NOT_READ}") from None
        if where.store and only is None and _has_store(where.config):
            raise AgentError(f"{error}: {STORE_ALONE}") from None
        raise


async def _windows(
    reader: Reader, topic: str, since_ms: int | None, place: tuple[int, int] | None
) -> Mapping[Partition, Sequence[Window]]:
    """Return what is to be read. Raises ``SinkUnavailable`` where there is no topic."""
    await reader.look([topic])
    if reader.missing:
        raise SinkUnavailable("topic_missing", topic)
    if place is not None:
        return {(topic, place[0]): [(place[1], place[1])]}
    return reader.everything() if since_ms is None else await reader.since(since_ms / 1000)


def _letter_of(record: ConsumerRecord) -> Letter:
    return Letter(
        id=f"{record.partition}:{record.offset}",
        timestamp_ms=record.timestamp,
        value=record.value or b"",
        headers={name: value or b"" for name, value in record.headers},
    )


def _offset(name: str) -> tuple[int, int]:
    partition, colon, at = name.partition(":")
    if not (colon and partition.isdecimal() and at.isdecimal()):
        raise AgentError(f"{name!r} is no id: `feedback-agent dlq list` shows them, as 0:17")
    return int(partition), int(at)


def _stored(config: Config) -> Iterator[Letter]:
    """Yield what the topic has not got yet; nothing where no agent has run."""
    if not _has_store(config):
        return
    try:
        pages: Iterator[Any] = asking.ask(config.agent.state_dir, "export", queue=QUEUE)
        for page in pages:
            yield from map(_letter, page)
    except NotRunning:
        with offline.taken(config) as state, offline.spool(state) as spool:
            yield from map(_letter, offline.spooled(spool.queues[QUEUE]))


def _has_store(config: Config) -> bool:
    return (config.agent.state_dir / "spool.db").exists()


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
