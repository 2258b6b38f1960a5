"""What became of each file, once the records are read."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from agent.config import Config
from agent.core.discovery import printable
from agent.core.places import BEYOND, Coverage, Life
from agent.core.proof import Excuse, Found, lines_of, prove
from agent.core.proof import Life as Lines
from agent.opener import Descriptor
from agent.operator.verify import files
from agent.operator.verify.files import Index, Known, Listed
from agent.operator.verify.receipted import Receipted
from agent.operator.verify.verdict import File, Gone
from agent.unpacking import Unpacked

GONE = "gone"
"""The reason of ``opener.Refused`` where a file moved meanwhile."""


class Met(NamedTuple):
    """A file, and who it is; without that, why it cannot be read."""

    listed: Listed
    known: Known | None
    problem: str = ""


class Judge:
    """Holds files against ``found``. ``partial``: what is before the first record was not read."""

    def __init__(
        self,
        config: Config,
        index: Index,
        receipted: Receipted,
        found: Mapping[Life, Found],
        *,
        partial: bool,
    ) -> None:
        self._index = index
        self._receipted = receipted
        self._found = found
        self._receipts = config.receipts.enabled
        self._skips = partial or config.source.start_at == "end"

    def file(self, met: Met) -> File:
        """Say what became of the lines of a file."""
        listed, known, problem = met.listed, met.known, met.problem
        file = File(path=printable(listed.path), client=listed.client)
        if known is not None:
            try:
                with files.opened(listed) as content:
                    if known == self._index.identify(content, listed.path, listed.client):
                        self._compare(file, content, known, listed.mtime_s)
                    else:  # another file lies there by now, or another generation
                        problem = GONE
            except OSError as error:
                problem = str(error.strerror or error)
        if problem == GONE:
            file.note = "moved or changed meanwhile: not compared"
        elif problem:
            file.unreadable = True
            file.note = f"cannot be read: {problem}"
        return file

    def gone(self, gone: Gone) -> None:
        """Fill in what there is of a file that is not there."""
        life = gone.source, gone.generation
        found, noted = self._found[life], self._receipted.of(life)
        there = Coverage([*found.events, *found.dead_letters, *noted.spooled, *noted.old])
        gaps = [end - start for start, end in there.gaps(0, gone.settled)]
        gone.delivered, gone.dead_lettered = map(_bytes, (found.events, found.dead_letters))
        gone.receipts, gone.gaps, gone.gap_bytes = noted.count, len(gaps), sum(gaps)

    def untold(self, known: Known) -> Iterator[tuple[int, int]]:
        """Yield what is settled of a file, and receipts do not say where it went."""
        noted = [self._receipted.of(life) for life, _ in (*known.own, *known.copied)]
        told = Coverage(span for one in noted for ranges in one.told for span in ranges)
        return told.gaps(self._begin(known) if self._skips else 0, known.settled_to)

    def _compare(
        self, file: File, content: Descriptor | Unpacked, known: Known, mtime_s: float
    ) -> None:
        newest = next(reversed([*known.copied, *known.own]), None)
        if newest is not None:
            (file.source, file.generation), _ = newest
        file.note = known.note
        excuses = self._excuses(known, mtime_s)
        proof = prove(lines_of(files.pieces(content)), self._lines(known), excuses)
        for name in proof.__struct_fields__:
            setattr(file, name, getattr(proof, name))

    def _lines(self, known: Known) -> list[Lines]:
        """Return the lives that count: of an original only what is before the file's own begin."""
        before = self._begin(known) if known.own else BEYOND[0]
        own = [Lines(self._found[life], upto) for life, upto in known.own]
        copied = [Lines(self._found[life], min(upto, before)) for life, upto in known.copied]
        return own + copied

    def _begin(self, known: Known) -> int:
        """Return the first byte that was sent of it, as far as anybody knows; 0 if nobody does."""
        firsts = [
            next(iter(ranges))[0]
            for life, _ in known.own or known.copied
            for ranges in (*self._arrived(life), *self._receipted.of(life).told)
            if ranges.end
        ]
        return min(firsts, default=0)

    def _arrived(self, life: Life) -> tuple[Coverage, ...]:
        found = self._found.get(life)
        return () if found is None else (found.events, found.dead_letters)

    def _excuses(self, known: Known, mtime_s: float) -> dict[Excuse, Coverage]:
        noted = [self._receipted.of(life) for life, _ in (*known.own, *known.copied)]
        skipped, pending = Coverage(), Coverage([(known.settled_to, BEYOND[0])])
        begin = self._begin(known)
        if begin and self._skips:
            skipped.add(0, begin)
        for span in (span for one in noted for span in one.spooled):
            pending.add(*span)
        if not self._receipts and self._receipted.spooling:
            pending.add(0, BEYOND[0])  # some of it is in the spool, and nobody noted what
        expired, kept = Coverage(span for one in noted for span in one.old), self._receipted.kept
        if kept is not None and mtime_s < kept.before_s:
            expired.add(0, BEYOND[0])
        return {"skipped": skipped, "pending": pending, "expired": expired}


def _bytes(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)
