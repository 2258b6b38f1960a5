"""One proof: who the files are, where their records should be, what is there, and what is not."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import ConsumerRecord

from agent import receipts
from agent.clock import SystemClock
from agent.config import Config
from agent.config.sections import Kafka
from agent.consumer import Reader, connected
from agent.core.places import BEYOND, Coverage, Life, parse_place
from agent.core.proof import Excuse, Found, lines_of, prove
from agent.core.proof import Life as Lines
from agent.core.receipts import Partition, Receipt, Window, windows
from agent.errors import AgentError, SinkUnavailable
from agent.operator.verify import files
from agent.operator.verify.books import Books
from agent.operator.verify.files import Known, Listed
from agent.operator.verify.verdict import GONE_SHOWN_MAX, File, Gone, Verdict

APART_MIN = 2000
"""Records between two windows that are read through: a seek costs about as much."""
RANGES_MAX = 8_000_000
"""Held at a time, 16 bytes each: more, and the files are to be proved a few at a time."""
CLOCKS_APART_S = 3600.0
"""By which the clocks of this node and of a broker may differ."""
LOOK_RECORDS = 200_000
"""Between two looks at that."""


class Options(NamedTuple):
    """``since_s``: read what was appended from then on, seconds since the epoch; None: no limit.
    ``topics`` are read besides those of the configuration."""

    scan: bool = False
    since_s: float | None = None
    topics: tuple[str, ...] = ()


class Met(NamedTuple):
    """A file, and who it is; without that, why it cannot be read."""

    listed: Listed
    known: Known | None
    problem: str = ""


class Noted:
    """What the receipts of one generation say. ``spooled`` and ``old`` may not be in the topic yet,
    or any more."""

    def __init__(self) -> None:
        self.count = 0
        self.acked, self.spooled, self.old = Coverage(), Coverage(), Coverage()


class Kept(NamedTuple):
    """What a topic may have deleted by itself: what is older than ``before_s``, and where
    ``by_size`` anything before the first record of a partition. None: nothing was deleted."""

    before_s: float
    by_size: bool


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
        self._books = known
        self._options = options
        self._progress = progress
        self._topics = {config.kafka.topic, config.dlq.topic, *options.topics}
        self._index = files.Index(known.rows)
        self._met: list[Met] = []
        self._gone: dict[Life, Gone] = {}
        self._found: dict[Life, Found] = {}
        self._noted: dict[Life, Noted] = {}
        self._kept: Kept | None = None
        self._notes: list[str] = []
        self._records = 0

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
        await self._look_at_retention(reader)
        wanted = self._wanted()
        where = windows(self._receipts(reader, wanted, everything=everything), APART_MIN)
        if everything:
            self._look_for_gone()
        since_s = self._options.since_s
        if not self._options.scan and since_s is None:
            self._leave_out_untold()
            if self._told():
                await self._read(reader, "reading what receipts name", where)
                verdict = self._prove("receipts")
                if not verdict.missing:
                    return verdict
            since_s = self._born_s()
        where = reader.everything() if since_s is None else await reader.since(since_s)
        await self._read(reader, "reading the topics", where)
        return self._prove("topics", since_s)

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
                self._met.append(Met(one, None, str(error.strerror or error)))

    def _wanted(self) -> set[Life]:
        known = (met.known for met in self._met if met.known is not None)
        return {life for one in known for life, _ in (*one.own, *one.copied)}

    async def _look_at_retention(self, reader: Reader) -> None:
        topic = self._config.kafka.topic
        begins = {at.begin for (name, _), at in reader.bounds.items() if name == topic}
        if begins == {0}:
            return  # nothing was ever deleted
        told = await reader.retention(topic)
        if told is None:
            self._notes.append(
                f"the retention of {topic} is not known (DescribeConfigs): what is expired counts"
                " as missing"
            )
            return
        by_size = told.bytes is not None or self._config.kafka.timestamp == "event"
        before_s = 0.0 if told.seconds is None else SystemClock().wall() - told.seconds
        self._kept = Kept(before_s, by_size)

    def _receipts(
        self, reader: Reader, wanted: set[Life], *, everything: bool
    ) -> Iterator[Receipt]:
        """Yield what was receipted of ``wanted``, or of ``everything``, in our topics; note it."""
        state_dir, keep_s = self._config.agent.state_dir, self._config.receipts.keep_s
        try:
            for receipt in receipts.read(state_dir, SystemClock().wall() - keep_s):
                if not everything and receipt.life not in wanted:
                    continue
                noted = self._noted.setdefault(receipt.life, Noted())
                noted.count += 1
                span = receipt.start, receipt.end
                if any(self._is_spooled(*queue) for queue in receipt.spooled.items()):
                    noted.spooled.add(*span)
                receipt.acked = {t: w for t, w in receipt.acked.items() if t in self._topics}
                if receipt.acked:
                    noted.acked.add(*span)
                    if self._is_old(receipt, reader):
                        noted.old.add(*span)
                    yield receipt
        except OSError as error:
            raise AgentError(f"{error.filename or state_dir}: {error.strerror}") from None

    def _is_spooled(self, queue: str, window: Window) -> bool:
        head, end = self._books.spooled.get(queue, (0, 0))
        return head < end and window[1] >= head

    def _is_old(self, receipt: Receipt, reader: Reader) -> bool:
        if self._kept is None:
            return False
        firsts = (
            (window[0], reader.bounds.get((topic, int(number))))
            for topic, found in receipt.acked.items()
            for number, window in found.items()
        )
        deleted = any(at is not None and 0 <= first < at.begin for first, at in firsts)
        return receipt.at < self._kept.before_s or (self._kept.by_size and deleted)

    def _look_for_gone(self) -> None:
        met = self._wanted()
        own = {life[0] for life in met}
        for row in self._index.without(met):
            life = row.source_id, row.generation
            self._gone[life] = _gone(row.path, *life, row.watermark)
        for life, noted in self._noted.items():
            if life not in met and life not in self._gone and life[0] not in own:
                self._gone[life] = _gone("", *life, noted.acked.end)

    def _told(self) -> bool:
        """Return whether receipts name records for all that is settled."""
        return not any(any(self._untold(met.known)) for met in self._met if met.known is not None)

    def _leave_out_untold(self) -> None:
        """Leave out files that are gone, and whose records receipts do not name.

        Rows of them are kept for a week, receipts for three days: each proof would read it all.
        """
        told = {
            life: gone
            for life, gone in self._gone.items()
            if not any(self._of(life).acked.gaps(0, gone.settled))
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
        rows = [row for row in self._books.rows if (row.source_id, row.generation) in looked_for]
        births = [row.birth.born_ns for row in rows]
        births += [met.known.born_ns for met in self._met if met.known is not None]
        return min(births) / 1e9 - CLOCKS_APART_S if births and all(births) else None

    def _untold(self, known: Known) -> Iterator[tuple[int, int]]:
        parts = (*known.own, *known.copied)
        told = Coverage(
            span
            for (life, _) in parts
            for ranges in (self._of(life).acked, self._of(life).spooled)
            for span in ranges
        )
        begin = self._begin(known) if self._config.source.start_at == "end" else 0
        return told.gaps(begin, known.settled_to)

    def _of(self, life: Life) -> Noted:
        return self._noted.get(life) or Noted()

    # ---- what there is

    async def _read(
        self, reader: Reader, what: str, where: Mapping[Partition, Sequence[Window]]
    ) -> None:
        self._found = {life: Found() for life in {*self._wanted(), *self._gone}}
        self._records, looked = 0, 0
        total = reader.count(where)
        self._progress(what, 0, total)
        async for records in reader.read(where):
            self._records += len(records)
            for record in records:
                self._take(record)
            self._progress(what, self._records, total)
            if self._records - looked > LOOK_RECORDS:
                looked = self._records
                if sum(found.held for found in self._found.values()) > RANGES_MAX:
                    raise AgentError(
                        "too much is scattered to be held: give PATHs, a few at a time"
                    )

    def _take(self, record: ConsumerRecord[Any, Any]) -> None:
        headers = dict(record.headers)
        place = parse_place(headers.get("source", b""))
        found = None if place is None else self._found.get(place.life)
        if found is None or place is None:
            return  # another node's, or nobody's
        (found.dead_letters if "reason" in headers else found.events).add(place.start, place.end)

    # ---- what that proves

    def _prove(self, read: str, since_s: float | None = None) -> Verdict:
        since = "" if since_s is None else _rfc3339(since_s)
        verdict = Verdict(read=read, since=since, records=self._records, notes=[*self._notes])
        for met in self._met:
            verdict.add(self._file(met, verdict))
        self._judge_gone(verdict)
        if verdict.skipped:
            why = "source.start_at is end" if self._options.since_s is None else "--since"
            verdict.notes.append(f"skipped: lines before the first one that was found ({why})")
        verdict.whole = not (verdict.missing or verdict.unreadable)
        return verdict

    def _file(self, met: Met, verdict: Verdict) -> File:
        known, file = met.known, File(path=met.listed.path, client=met.listed.client)
        problem = met.problem
        if known is not None:
            newest = [*known.copied, *known.own][-1:]
            for (file.source, file.generation), _ in newest:
                pass
            file.note = known.note
            try:
                with files.opened(met.listed) as content:
                    proof = prove(
                        lines_of(files.pieces(content)),
                        self._lines(known),
                        self._excuses(known, met.listed.mtime_s),
                    )
            except OSError as error:
                problem = str(error.strerror or error)
            else:
                for name in proof.__struct_fields__:
                    setattr(file, name, getattr(proof, name))
        if problem:
            verdict.unreadable += 1
            file.note = f"cannot be read: {problem}"
        return file

    def _lines(self, known: Known) -> list[Lines]:
        """Return the lives that count: of an original only what is before the file's own begin."""
        before = self._begin(known) if known.own else BEYOND[0]
        own = [Lines(self._found[life], upto) for life, upto in known.own]
        copied = [Lines(self._found[life], min(upto, before)) for life, upto in known.copied]
        return own + copied

    def _begin(self, known: Known) -> int:
        """Return the first byte that was sent of it, as far as anybody knows; 0 if nobody does."""
        firsts = [
            start
            for life, _ in known.own or known.copied
            for ranges in self._ranges(life)
            for start, _ in [*ranges][:1]
        ]
        return min(firsts, default=0)

    def _ranges(self, life: Life) -> tuple[Coverage, ...]:
        found, noted = self._found.get(life) or Found(), self._of(life)
        return found.events, found.dead_letters, noted.acked, noted.spooled

    def _excuses(self, known: Known, mtime_s: float) -> dict[Excuse, Coverage]:
        parts = [life for life, _ in (*known.own, *known.copied)]
        skipped, pending = Coverage(), Coverage([(known.settled_to, BEYOND[0])])
        begin = self._begin(known)
        if begin and (self._options.since_s is not None or self._config.source.start_at == "end"):
            skipped.add(0, begin)
        for span in (span for life in parts for span in self._of(life).spooled):
            pending.add(*span)
        if not self._config.receipts.enabled and any(
            head < end for head, end in self._books.spooled.values()
        ):
            pending.add(0, BEYOND[0])  # some of it is in the spool, and nobody noted what
        expired = Coverage(span for life in parts for span in self._of(life).old)
        if self._kept is not None and mtime_s < self._kept.before_s:
            expired.add(0, BEYOND[0])
        return {"skipped": skipped, "pending": pending, "expired": expired}

    def _judge_gone(self, verdict: Verdict) -> None:
        verdict.gone_files = len(self._gone)
        for life, gone in self._gone.items():
            found, noted = self._found[life], self._of(life)
            there = Coverage([*found.events, *found.dead_letters, *noted.spooled, *noted.old])
            gaps = [(end - start) for start, end in there.gaps(0, gone.settled)]
            gone.delivered, gone.dead_lettered = map(_bytes, (found.events, found.dead_letters))
            gone.receipts, gone.gaps, gone.gap_bytes = noted.count, len(gaps), sum(gaps)
            if gaps and len(verdict.gone) < GONE_SHOWN_MAX:
                verdict.gone.append(gone)
        if self._gone:
            gaps_in = sum(1 for gone in self._gone.values() if gone.gaps)
            verdict.notes.append(
                f"files that are gone, and so not comparable by line: {len(self._gone):,}, with"
                f" gaps in their bytes: {gaps_in:,}"
            )


def _gone(path: str, source: str, generation: int, settled: int) -> Gone:
    return Gone(path=path, source=source, generation=generation, settled=settled, delivered=0,
                dead_lettered=0, receipts=0, gaps=0, gap_bytes=0)  # fmt: skip


def _rfc3339(at_s: float) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _bytes(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


def _said(error: SinkUnavailable, kafka: Kafka) -> str:
    who = kafka.sasl.username or kafka.sasl.client_id or "this principal"
    if error.reason in {"topic_denied", "cluster_denied"}:
        return (
            f"{who} may not read: {error}. A node's own may only write; give --consumer-config with"
            " one that has Read and Describe on both topics"
        )
    return str(error)
