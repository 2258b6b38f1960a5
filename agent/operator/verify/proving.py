"""One proof: who the files are, where their records should be, and what is there."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import ConsumerRecord

from agent.config import Config
from agent.config.sections import Kafka
from agent.consumer import Reader, connected
from agent.core.discovery import printable
from agent.core.places import Life, parse_place
from agent.core.proof import Found
from agent.core.receipts import Partition, Window, united
from agent.errors import AgentError, SinkUnavailable
from agent.operator.verify import files
from agent.operator.verify.books import Books
from agent.operator.verify.judging import GONE, Judge, Met
from agent.operator.verify.receipted import APART_MIN, Receipted
from agent.operator.verify.verdict import GONE_SHOWN_MAX, Gone, Verdict

RANGES_MAX = 8_000_000
"""Held at a time, 16 bytes each: more, and the files are to be proved a few at a time."""
CLOCKS_APART_S = 3600.0
"""By which the clocks of this node and of a broker may differ."""
TAIL_S = 60.0
"""Before the newest receipt: what was acknowledged since has none yet. Where clocks differ by more,
all is read."""
LOOK_RECORDS = 200_000
"""Between two looks at what is held."""


class Options(NamedTuple):
    """``since_s``: read what was appended from then on, seconds since the epoch; None: no limit.
    ``topics`` are read besides those of the configuration."""

    scan: bool = False
    since_s: float | None = None
    topics: tuple[str, ...] = ()


class Proving:
    """See ``agent.operator.verify.verify``. Lifetime: ``run`` once."""

    def __init__(
        self,
        config: Config,
        kafka: Kafka,
        known: Books,
        options: Options,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._config = config
        self._kafka = kafka
        self._rows = known.rows
        self._options = options
        self._progress = progress
        self._topics = {config.kafka.topic, config.dlq.topic, *options.topics}
        self._index = files.Index(known.rows)
        self._receipted = Receipted(config, known.spooled, self._topics)
        self._met: list[Met] = []
        self._gone: dict[Life, Gone] = {}
        self._notes: list[str] = []

    async def run(self, paths: Sequence[Path]) -> Verdict:
        """Return what was proved. Raises ``AgentError``."""
        self._meet(paths)
        try:
            async with connected(self._kafka) as reader:
                return await self._run(reader, everything=not paths)
        except SinkUnavailable as error:
            raise AgentError(_said(error, self._kafka)) from None

    async def _run(self, reader: Reader, *, everything: bool) -> Verdict:
        await reader.look(self._topics)
        if self._config.kafka.topic in reader.missing:
            raise AgentError(f"there is no topic {self._config.kafka.topic}")
        self._notes += [f"there is no topic {topic}" for topic in reader.missing]
        if (note := await self._receipted.look_at_retention(reader)) is not None:
            self._notes.append(note)
        where = self._receipted.read(None if everything else self._wanted(), reader.bounds)
        since_s = self._options.since_s
        if everything and since_s is None:
            self._look_for_gone()
        if not self._options.scan and since_s is None:
            self._leave_out_untold()
            verdict = await self._by_receipts(reader, where)
            if verdict is not None and not verdict.missing:
                return verdict
            since_s = self._born_s()
        where = reader.everything() if since_s is None else await reader.since(since_s)
        verdict = await self._read(reader, "reading the topics", where)
        verdict.read, verdict.since = "topics", "" if since_s is None else _rfc3339(since_s)
        return verdict

    # ---- what there should be

    def _meet(self, paths: Sequence[Path]) -> None:
        try:
            listed = [*files.listed(self._config, paths)]
        except OSError as error:
            raise AgentError(f"{error.filename}: {error.strerror}") from None
        since_s = self._options.since_s
        for one in listed:
            if since_s is not None and one.mtime_s < since_s:
                continue
            try:
                with files.opened(one) as content:
                    known = self._index.identify(content, one.path, one.client)
                self._met.append(Met(one, known))
            except OSError as error:
                if error.strerror != GONE:
                    self._met.append(Met(one, None, str(error.strerror or error)))

    def _wanted(self) -> set[Life]:
        known = (met.known for met in self._met if met.known is not None)
        return {life for one in known for life, _ in (*one.own, *one.copied)}

    def _look_for_gone(self) -> None:
        met = self._wanted()
        sources = {source for source, _ in met}
        for row in self._index.without(met):
            gone = Gone(printable(row.path), row.source_id, row.generation, row.watermark)
            self._gone[row.source_id, row.generation] = gone
        for life, noted in self._receipted.noted.items():
            if life not in met and life not in self._gone and life[0] not in sources:
                self._gone[life] = Gone("", *life, noted.acked.end)

    def _leave_out_untold(self) -> None:
        """Leave out files that are gone, and whose records receipts do not name.

        Rows of them are kept for a week, receipts for three days: each proof would read it all.
        """
        told = {
            life: gone
            for life, gone in self._gone.items()
            if not any(self._receipted.of(life).acked.gaps(0, gone.settled))
        }
        if left_out := len(self._gone) - len(told):
            self._gone = told
            self._notes.append(
                f"files that are gone, and whose records receipts do not name: {left_out:,}; --scan"
                " looks for them"
            )

    def _born_s(self) -> float | None:
        """Return when the oldest of the files was born: no line of them is older in the topics.

        None where that is not known, or records have the times of their events.
        """
        if self._config.kafka.timestamp == "event":
            return None
        looked_for = {*self._wanted(), *self._gone}
        rows = [row for row in self._rows if (row.source_id, row.generation) in looked_for]
        births = [row.birth.born_ns for row in rows]
        births += [met.known.born_ns for met in self._met if met.known is not None]
        return min(births) / 1e9 - CLOCKS_APART_S if births and all(births) else None

    # ---- what there is

    async def _by_receipts(
        self, reader: Reader, where: Mapping[Partition, Sequence[Window]]
    ) -> Verdict | None:
        """Read what receipts name, and what they may not name yet; None where there are none."""
        newest_s = self._receipted.newest_s
        if newest_s is None:
            return None
        judge = self._judge({})
        untold = any(any(judge.untold(met.known)) for met in self._met if met.known is not None)
        if untold and self._config.kafka.timestamp == "produce":
            where = united(where, await reader.since(newest_s - TAIL_S), APART_MIN)
        return await self._read(reader, "reading what receipts name", where)

    async def _read(
        self, reader: Reader, what: str, where: Mapping[Partition, Sequence[Window]]
    ) -> Verdict:
        """Read, and say what that proves."""
        found = {life: Found() for life in {*self._wanted(), *self._gone}}
        done, looked, total = 0, 0, reader.count(where)
        self._progress(what, 0, total)
        async for records in reader.read(where):
            for record in records:
                _take(record, found)
            done += len(records)
            self._progress(what, done, total)
            if done - looked > LOOK_RECORDS:
                looked = done
                if sum(one.held for one in found.values()) > RANGES_MAX:
                    raise AgentError(
                        "too much is scattered to be held: give PATHs, a few at a time"
                    )
        return self._prove(found, done)

    def _prove(self, found: Mapping[Life, Found], records: int) -> Verdict:
        verdict, judge = Verdict(records=records, notes=[*self._notes]), self._judge(found)
        for number, met in enumerate(self._met):
            self._progress("comparing files", number, len(self._met))
            verdict.add(judge.file(met))
        self._progress("comparing files", len(self._met), len(self._met))
        for gone in self._gone.values():
            judge.gone(gone)
        verdict.gone_files = len(self._gone)
        gaps = [gone for gone in self._gone.values() if gone.gaps]
        verdict.gone = gaps[:GONE_SHOWN_MAX]
        if self._gone:
            verdict.notes.append(
                f"files that are gone, and so not comparable by line: {len(self._gone):,}, with"
                f" gaps in their bytes: {len(gaps):,}"
            )
        if verdict.skipped:
            why = "source.start_at is end" if self._options.since_s is None else "--since"
            verdict.notes.append(f"skipped: lines before the first one that was found ({why})")
        return verdict

    def _judge(self, found: Mapping[Life, Found]) -> Judge:
        partial = self._options.since_s is not None
        return Judge(self._config, self._index, self._receipted, found, partial=partial)


def _take(record: ConsumerRecord[Any, Any], found: Mapping[Life, Found]) -> None:
    headers = dict(record.headers)
    place = parse_place(headers.get("source", b""))
    mine = None if place is None else found.get(place.life)
    if mine is None or place is None:
        return  # another node's, or nobody's
    (mine.dead_letters if "reason" in headers else mine.events).add(place.start, place.end)


def _rfc3339(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _said(error: SinkUnavailable, kafka: Kafka) -> str:
    who = kafka.sasl.username or kafka.sasl.client_id or "this principal"
    if error.reason in {"topic_denied", "cluster_denied"}:
        return (
            f"{who} may not read: {error}. A node's own may only write; give --consumer-config with"
            " one that has Read and Describe on both topics"
        )
    return str(error)
