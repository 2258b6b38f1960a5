"""What ``feedback-agent audit verify`` finds in the copy of audit logs that a topic has.

The copy comes as text, a record a line, as console consumers print it; before the record may stand
its key, the node, and a TAB. Records may come twice, and those of several nodes in turns.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from msgspec import Struct

from agent.audit_file import lines, opened
from agent.core.auditing import START, Chain, Problem, parsed
from agent.errors import AgentError


class Found(Struct, frozen=True, kw_only=True):
    """One chain of the copy.

    Attributes:
        node: The key of its records; "" where the text has no keys.
        first, last: ``seq`` of the oldest and of the newest record.
        head: The hash of the newest record.
        twice: How many records came again; that is no mistake.
    """

    node: str
    records: int
    first: int
    last: int
    head: str
    twice: int


class Verdict(Struct, frozen=True, kw_only=True):
    """``broken`` counts what is wrong; ``problems`` has the first ones."""

    whole: bool
    chains: list[Found]
    broken: int
    problems: list[Problem]


class Place(NamedTuple):
    seq: int
    line: int


class Copied:
    """One chain, and what it is made of."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.chain = Chain()
        self.places: dict[str, Place] = {}  # by hash
        self.twice = 0

    def found(self) -> Found:
        first, head = self.chain.first or START, self.chain.head or START
        return Found(
            node=self.node,
            records=self.chain.records,
            first=first.seq,
            last=head.seq,
            head=head.hash,
            twice=self.twice,
        )


class Copy:
    """The copy that ``file`` has. A chain that begins anew is another one of the same node."""

    def __init__(self, file: BinaryIO) -> None:
        self._name = str(getattr(file, "name", "<stdin>"))
        self._wrong = Chain()  # of lines that belong to no chain
        self.chains: list[Copied] = []
        self._last: dict[str, Copied] = {}
        for number, line in enumerate(lines(file), 1):
            self._take(line.rstrip(b"\r\n"), number)

    def _take(self, line: bytes, number: int) -> None:
        key, tab, value = line.partition(b"\t")
        node, text = (key.decode(errors="replace"), value) if tab else ("", line)
        record = parsed(text)
        if record is None:
            self._wrong.take(text, self._name, number)
            return
        copied = self._last.get(node)
        if copied is not None and record.sound and record.hash in copied.places:
            copied.twice += 1
            return
        if copied is None or (record.seq == START.seq + 1 and record.prev == START.hash):
            copied = self._last[node] = Copied(node)
            self.chains.append(copied)
        copied.chain.take(text, self._name, number)
        if record.sound:
            copied.places[record.hash] = Place(record.seq, number)

    def verdict(self) -> Verdict:
        """Say whether each chain is whole."""
        chains = [self._wrong, *(copied.chain for copied in self.chains)]
        broken = sum(chain.broken for chain in chains)
        return Verdict(
            whole=not broken,
            chains=[copied.found() for copied in self.chains],
            broken=broken,
            problems=[problem for chain in chains for problem in chain.problems],
        )

    def missing_in(self, path: Path) -> Iterator[Problem]:
        """Yield what the copy has and the log at ``path`` should have, too. Raises ``AgentError``.

        What is older than the oldest record that both have was rotated out.
        """
        own = _hashes(path)
        ours = [copied for copied in self.chains if own & copied.places.keys()]
        nodes = {copied.node for copied in ours if copied.node}
        if not ours:
            what = "nothing of the copy is in the log: it was made anew, or is another node's"
            yield Problem(self._name, 1, what)
        for copied in self.chains:
            lost = sorted(p for hash_, p in copied.places.items() if hash_ not in own)
            if copied in ours:
                oldest = min(p for hash_, p in copied.places.items() if hash_ in own)
                lost = [place for place in lost if place > oldest]
            elif copied.node not in nodes:
                continue
            if lost:
                seqs = f"{lost[0].seq} to {lost[-1].seq}"
                what = f"records {seqs} are not in the log: cut off, taken away or made anew"
                yield Problem(self._name, lost[0].line, what)


def _hashes(path: Path) -> set[str]:
    found: set[str] = set()
    try:
        with ExitStack() as keep:
            for file in opened(path, keep):
                for line in lines(file):
                    record = parsed(line.rstrip(b"\n"))
                    if record is not None and record.sound:
                        found.add(record.hash)
    except OSError as error:
        raise AgentError(f"{error.filename}: {error.strerror}") from None
    return found


def table(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the verdict as headings and what stands beside them, for people."""
    for found in verdict.chains:
        twice = f", {found.twice} of them again" if found.twice else ""
        seqs = f"seq {found.first} to {found.last}"
        yield "chain", f"{found.node or '-'}: {found.records} records{twice}, {seqs}"
        yield "head", found.head
    for problem in verdict.problems:
        yield "broken", f"{problem.file}:{problem.line}: {problem.what}"
    if more := verdict.broken - len(verdict.problems):
        yield "broken", f"and {more} lines more"
    if verdict.whole:
        yield "whole", "every record of each chain follows the one before it"
