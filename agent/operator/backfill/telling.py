"""What a backfill says: a bar while it goes on, and what came of it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from msgspec import Struct
from rich.console import Console
from rich.progress import Progress

from agent.clock import Clock
from agent.operator.backfill.errand import Counts, Errand
from agent.operator.backfill.origins import Kind
from agent.operator.backfill.selection import Left, Selection
from agent.operator.screen import STYLES, cell, counted, progress, table

PLAIN_S = 10.0
"""Between two lines about how far it is, where there is no terminal."""
RATE_S = 5.0
"""Over which the rate is taken."""
NAMED_MAX = 20
QUIET = frozenset({"symlink", "not_regular", "gone", "old"})
"""Skipped as the agent would: nobody's problem."""

IDS: dict[Kind, str] = {
    "same_file": "the agent or a backfill had it: a line has the id that it got then",
    "copy": "a copy of what the agent or a backfill had: a line has the id that it got then",
    "changed": "known with other content: a line without event_id gets one of a new generation",
    "unknown_to_agent": "unknown to the agent: a line without event_id gets one made of this file",
    "nobody_knows": "the agent's checkpoints cannot be read: it may have given other ids",
}
NOT_READ = "not read to its end"


class Summary(Struct, frozen=True, kw_only=True):
    """What one command came to.

    Attributes:
        complete: Every line that was wanted is in Kafka.
        counts: Of this command; what an earlier one had sent is not among them.
        ids: How many files are known in which way.
        passed_over_bytes: Not read, for the agent or another backfill has sent them.
        copies: Files with nothing of their own: their original is shipped.
        put_by: Dead letters that wait in ``state`` for their topic.
        expired: Events older than ``retention_s``, for which the topic keeps a record.
    """

    complete: bool
    interrupted: bool
    dry_run: bool
    topic: str
    state: str
    root: str
    files: int
    bytes: int
    seconds: float
    counts: Counts
    ids: dict[Kind, int]
    passed_over_bytes: int
    copies: int
    left: list[Left]
    left_files: int
    put_by: int
    unsettled: int
    timeless: int = 0
    oldest: str | None = None
    newest: str | None = None
    expired: int = 0
    retention_s: float | None = None


class Teller:
    """Shows how far an errand is: a bar on a terminal, else a line now and then."""

    def __init__(self, of: Console, selection: Selection, clock: Clock) -> None:
        self._of = of
        self._clock = clock
        self._sizes = {seen.key: seen.size for seen in selection.files}
        self._total = sum(self._sizes.values())
        self._bar: Progress = progress(of, in_bytes=True)
        self._task = self._bar.add_task("backfill", total=self._total, rate="")
        self._samples: list[tuple[float, int, float]] = []  # when, lines, bytes done
        self._said_s = clock.monotonic()
        self._warned = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, errand: Errand) -> None:
        shares, copies = errand.standing.shares, errand.standing.copies
        done = sum(
            size if key in copies else size * shares.get(key, 0.0)
            for key, size in self._sizes.items()
        )
        lines, now_s = errand.counts().lines, self._clock.monotonic()
        rate = self._rate(now_s, lines, done)
        what = "looking whether files grow" if errand.standing.unsure else "backfill"
        if errand.problem is not None:
            what = f"waiting for Kafka ({errand.problem})"
        self._bar.update(self._task, completed=done, description=what, rate=f"{rate:,.0f} lines/s")
        if errand.window is not None and errand.window.expired and not self._warned:
            self._warned = True
            self._of.print(cell(f"warning: {expired(errand.retention_s)}", STYLES["warn"]))
        if not self._of.is_terminal and now_s - self._said_s >= PLAIN_S:
            self._said_s = now_s
            self._of.print(
                cell(f"{what}: {self._far(done, now_s)}, {lines:,} lines, {rate:,.0f}/s")
            )

    def _far(self, done: float, now_s: float) -> str:
        (then_s, _, before), share = self._samples[0], done / self._total if self._total else 1.0
        speed = (done - before) / (now_s - then_s) if now_s > then_s else 0.0
        left = f", {(self._total - done) / speed:,.0f} s left" if speed > 0 else ""
        return f"{share:.0%} of {self._total:,} bytes{left}"

    def _rate(self, now_s: float, lines: int, done: float) -> float:
        self._samples.append((now_s, lines, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - RATE_S:  # noqa: PLR2004 - the first and the last
            del self._samples[0]
        then_s, before, _ = self._samples[0]
        return (lines - before) / (now_s - then_s) if now_s > then_s else 0.0


def left_of(errand: Errand, shown: Callable[[str], str]) -> list[Left]:
    """Return what was not sent to its end, and why."""
    selection, standing = errand.selection, errand.standing
    refused = {one["path"]: one["reason"] for one in errand.refused()}
    left = [Left(shown(s.path), s.why) for s in selection.skipped if s.why not in QUIET]
    for seen in selection.files:
        share = standing.shares.get(seen.key, 1.0 if not seen.size else 0.0)
        if seen.path in refused:
            left.append(Left(shown(seen.path), refused[seen.path]))
        elif share < 1.0 and seen.key not in standing.copies:
            why = "its last line has no end" if errand.finished and share else NOT_READ
            left.append(Left(shown(seen.path), why))
    return left


def told(summary: Summary, of: Console) -> None:
    """Print it for a person."""
    counts = summary.counts
    rows = table("backfill", "count", right=("count",))
    lines = [
        ("files", f"{summary.files:,}"),
        ("lines read", f"{counts.lines:,}"),
        ("would be sent" if summary.dry_run else "sent", f"{counts.sent:,}"),
        ("dead letters", f"{counts.dead_letters:,}"),
        *((f"  {reason}", f"{lines:,}") for reason, lines in sorted(counts.rejected.items())),
        ("blank", f"{counts.blank:,}"),
        ("outside of --since and --until", f"{counts.passed_over:,}"),
        ("bytes read", f"{counts.read_bytes:,}"),
        ("bytes sent before, not again", f"{summary.passed_over_bytes:,}"),
        ("bytes in Kafka, of one replica", f"{counts.kafka_bytes:,}"),
        ("seconds", f"{summary.seconds:,.1f}"),
        ("lines/s", f"{counts.lines / max(summary.seconds, 1e-3):,.0f}"),
        ("oldest event", summary.oldest or ""),
        ("newest event", summary.newest or ""),
    ]
    for name, value in lines:
        if value not in {"", "0"} or name in {"lines read", "sent", "would be sent"}:
            rows.add_row(name, value)
    of.print(rows)
    for kind, files in summary.ids.items():
        of.print(cell(f"{_files(files)}: {IDS[kind]}"))
    if summary.copies:
        of.print(cell(f"{_files(summary.copies)}: copies, whose lines their originals have"))
    if summary.expired:
        late = f"{counted(summary.expired, 'event')}: {expired(summary.retention_s)}"
        of.print(cell(late, STYLES["warn"]))
    wrong = [one for one in summary.left if one.why != NOT_READ or not summary.interrupted]
    for left in wrong[:NAMED_MAX]:
        of.print(cell(f"left: {left.path}: {left.why}", STYLES["fail"]))
    if len(wrong) > NAMED_MAX:
        of.print(cell(f"left: {_files(len(wrong) - NAMED_MAX)} more", STYLES["fail"]))
    of.print(cell(*verdict(summary)))


def verdict(summary: Summary) -> tuple[str, str]:
    """Say in one line what came of it and what to do, and in which style."""
    again = "the same command goes on from here"
    if summary.dry_run:
        why = f"; {_files(summary.left_files)} would be left" if summary.left_files else ""
        found = f"a dry run: nothing was sent{why}", STYLES["warn" if why else "ok"]
    elif summary.complete:
        found = "all of it is in Kafka", STYLES["ok"]
    elif summary.interrupted:
        why = f"stopped before the end, {_files(summary.left_files)} left"
        found = f"{why}; {again}", STYLES["warn"]
    elif summary.put_by:
        waiting = counted(summary.put_by, "dead letter")
        why = f"waiting in {summary.state} for their topic: {waiting}"
        found = f"{why}; {again}", STYLES["warn"]
    else:
        found = f"not all of it is in Kafka; once that is mended, {again}", STYLES["fail"]
    return found


def _files(count: int) -> str:
    return counted(count, "file")


def expired(retention_s: float | None) -> str:
    days = (retention_s or 0.0) / 86_400
    return (
        f"older than {days:,.1f} days, for which the topic keeps a record by its event's time: "
        "Kafka may delete them at once (retention.ms, or kafka.timestamp: produce)"
    )


def rfc3339(at_s: float | None) -> str | None:
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
