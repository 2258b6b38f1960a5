"""What ``feedback-agent verify`` found, and how it is shown."""

from collections.abc import Iterator

from msgspec import Struct, field
from rich.console import Console, Group, RenderableType
from rich.text import Text

from agent.core.proof import Missing
from agent.operator.screen import STYLES, cell, counted, table

GONE_SHOWN_MAX = 100


class File(Struct, kw_only=True):
    """What became of the lines of one file; see ``core.proof.Proof``.

    Attributes:
        source: The id of its newest generation in Kafka, "" for one that was not read yet.
        pending: Lines that are not acknowledged yet: not read, in flight, or in the spool.
        expired: Lines that the topic keeps no longer, by its retention.
        skipped: Lines before the first that was read, where ``source.start_at`` is ``end``.
        missing_ranges: The first ones; ``ranges`` says how many there are.
        note: What should be known of it, as that it could not be read.
    """

    path: str
    client: str
    source: str = ""
    generation: int = 0
    lines: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    pending: int = 0
    expired: int = 0
    skipped: int = 0
    missing: int = 0
    copies: int = 0
    ranges: int = 0
    missing_ranges: list[Missing] = field(default_factory=list)
    unreadable: bool = False
    note: str = ""


class Gone(Struct):
    """A generation whose file is not there: its lines cannot be counted, only its bytes.

    Attributes:
        settled: Bytes that were settled, as the checkpoint or the receipts say.
        delivered, dead_lettered: Bytes of them that records cover.
        receipts: How many there are of it.
        gaps: Ranges that no record covers: blank lines, or missing ones.
        gap_bytes: How long they are together.
    """

    path: str
    source: str
    generation: int
    settled: int
    delivered: int = 0
    dead_lettered: int = 0
    receipts: int = 0
    gaps: int = 0
    gap_bytes: int = 0


class Verdict(Struct, kw_only=True):
    """What was proved.

    Attributes:
        whole: Nothing is missing and no file was unreadable.
        read: ``receipts`` where it was enough to read what they name, else ``topics``.
        since: From when on the topics were read, RFC 3339; "" from their beginning.
        records: How many were read.
        gone: Those with gaps, ``GONE_SHOWN_MAX`` at most; ``gone_files`` counts all.
        notes: What the numbers do not say.
    """

    whole: bool = True
    read: str = "receipts"
    since: str = ""
    records: int = 0
    files: list[File] = field(default_factory=list)
    lines: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    pending: int = 0
    expired: int = 0
    skipped: int = 0
    missing: int = 0
    copies: int = 0
    unreadable: int = 0
    gone_files: int = 0
    gone: list[Gone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: File) -> None:
        self.files.append(file)
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(file, name))
        self.unreadable += file.unreadable
        self.whole = not (self.missing or self.unreadable)


COUNTS = (
    "lines",
    "delivered",
    "dead_lettered",
    "pending",
    "expired",
    "skipped",
    "missing",
    "copies",
)
HEADINGS = {"dead_lettered": "dead"}
ALWAYS = {"lines", "delivered", "missing"}


def shown(verdict: Verdict) -> RenderableType:
    """Return the verdict for people: a row for each file, then what is missing, then the sum."""
    parts: list[RenderableType] = []
    counts = [name for name in COUNTS if name in ALWAYS or getattr(verdict, name)]
    headings = [HEADINGS.get(name, name) for name in counts]
    rows = table("file", *headings, right=tuple(headings))
    for file in verdict.files:
        numbers = [_number(name, getattr(file, name)) for name in counts]
        rows.add_row(cell(file.path), *numbers)
    parts.append(rows)
    parts += [cell(f"{f.path}: {f.note}", STYLES["warn"]) for f in verdict.files if f.note]
    parts += _missing(verdict)
    parts += [cell(f"note: {note}", STYLES["warn"]) for note in verdict.notes]
    parts += _gone(verdict)
    parts += [_sum(verdict), cell(_read(verdict))]
    return Group(*parts)


def show(verdict: Verdict, on: Console) -> None:
    on.print(shown(verdict))


def _number(name: str, count: int) -> Text:
    return cell(f"{count:,}", STYLES["fail"] if name == "missing" and count else "")


def _missing(verdict: Verdict) -> Iterator[RenderableType]:
    if not verdict.missing:
        return
    ranges = table(
        "missing in", "from byte", "to byte", "lines", right=("from byte", "to byte", "lines")
    )
    for file in verdict.files:
        for one in file.missing_ranges:
            ranges.add_row(cell(file.path), f"{one.start:,}", f"{one.end:,}", f"{one.lines:,}")
        if more := file.ranges - len(file.missing_ranges):
            ranges.add_row(cell(file.path), "", "", cell(f"and {more:,} ranges more"))
    yield ranges


def _gone(verdict: Verdict) -> Iterator[RenderableType]:
    if not verdict.gone:
        return
    rows = table("file is gone", "settled", "delivered", "dead", "gaps", "bytes", "receipts",
                 right=("settled", "delivered", "dead", "gaps", "bytes", "receipts"))  # fmt: skip
    for one in verdict.gone:
        numbers = one.settled, one.delivered, one.dead_lettered, one.gaps, one.gap_bytes
        name = f"{one.path or one.source} #{one.generation}"
        rows.add_row(cell(name), *(f"{n:,}" for n in (*numbers, one.receipts)))
    yield rows
    yield cell("In bytes. A gap is blank lines or missing ones: without the file nobody can say.")


def _sum(verdict: Verdict) -> RenderableType:
    if verdict.unreadable:
        what = f"{_files(verdict.unreadable)} could not be read"
        if verdict.missing:
            what += f"; missing of others: {counted(verdict.missing, 'line')}"
        return cell(f"FAIL  {what}.", STYLES["fail"])
    if verdict.missing:
        where = _files(sum(1 for file in verdict.files if file.missing))
        verb = "is" if verdict.missing == 1 else "are"
        what = (
            f"{verdict.missing:,} of {counted(verdict.lines, 'line')} {verb} missing, in {where}."
        )
        return cell(f"FAIL  {what}", STYLES["fail"])
    there = verdict.delivered + verdict.dead_lettered
    verb = "is" if there == 1 else "are"
    what = f"{there:,} of {counted(verdict.lines, 'line')} {verb} in Kafka, none is missing."
    return cell(f"OK  {what}", STYLES["ok"])


def _read(verdict: Verdict) -> str:
    """Return on what the verdict rests."""
    if verdict.read == "receipts":
        return f"Read: {counted(verdict.records, 'record')}, where receipts say they are."
    since = f" since {verdict.since}" if verdict.since else ""
    return f"Read: all {counted(verdict.records, 'record')} of the topics{since}."


def _files(count: int) -> str:
    return counted(count, "file")
