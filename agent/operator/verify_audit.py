"""What ``feedback-agent audit`` finds in the files of an audit log. Reads only.

The agent may be running: it may rotate while we open, and its last record may be half written.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent.audit_file import TAIL_BYTES, lines, opened
from agent.core.auditing import Chain, Problem, parsed
from agent.errors import AgentError


class Verdict(Struct, frozen=True, kw_only=True):
    """What of a log is there, and what is wrong with it.

    Attributes:
        files: Oldest first.
        first, last: ``seq`` of the oldest and of the newest record; 0 if there is none.
        head: The hash of the newest record.
        broken: How many lines are wrong; ``problems`` names the first ones.
        unfinished_bytes: Of a record at the very end: under way, or torn by a crash.
        resumptions: How often a start went on after a torn record.
    """

    whole: bool
    files: tuple[str, ...]
    records: int
    first: int
    last: int
    head: str
    broken: int
    problems: list[Problem]
    unfinished_bytes: int
    resumptions: int

    def with_problems(self, more: Iterable[Problem]) -> "Verdict":
        problems = [*self.problems, *more]
        broken = self.broken + len(problems) - len(self.problems)
        return replace(self, whole=not broken, broken=broken, problems=problems)


def verify(path: Path, expected: str | None = None) -> Verdict:
    """Check the chain through ``path`` and the files rotated from it.

    ``expected``: a hash that was seen before and must be in it, or its end was cut off or its
    records made anew. Raises ``AgentError`` where nothing can be read.
    """
    found, unfinished, name = Chain(expected), 0, str(path)
    with ExitStack() as keep:
        files = _opened(path, keep)
        for file in files:
            for number, line in enumerate(lines(file), 1):
                name = str(file.name)
                if line.endswith(b"\n"):
                    found.take(line[:-1], name, number)
                elif file is files[-1] and len(line) < TAIL_BYTES:
                    unfinished = len(line)
                else:
                    found.take(line, name, number)
    if not found.met:
        what = f"the head {expected} is not in the chain: cut off, made anew, or no longer kept"
        found.wrong(Problem(name, found.records, what))
    return Verdict(
        whole=not found.broken,
        files=tuple(str(file.name) for file in files),
        records=found.records,
        first=found.first.seq if found.first else 0,
        last=found.head.seq if found.head else 0,
        head=found.head.hash if found.head else "",
        broken=found.broken,
        problems=found.problems,
        unfinished_bytes=unfinished,
        resumptions=found.resumptions,
    )


def table(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the verdict as headings and what stands beside them, for people."""
    yield "files", f"{len(verdict.files)}, the oldest is {verdict.files[0]}"
    yield "records", f"{verdict.records}, seq {verdict.first} to {verdict.last}"
    yield "head", verdict.head or "none"
    if verdict.first > 1:
        yield "kept from", f"seq {verdict.first}: what was before was rotated out, or taken away"
    if verdict.resumptions:
        yield "resumed", f"{verdict.resumptions} times after a record that a crash tore"
    if verdict.unfinished_bytes:
        yield "unfinished", f"{verdict.unfinished_bytes} bytes at the end, no record yet"
    for problem in verdict.problems:
        yield "broken", f"{problem.file}:{problem.line}: {problem.what}"
    if more := verdict.broken - len(verdict.problems):
        yield "broken", f"and {more} lines more"
    if verdict.whole:
        yield "whole", "every record follows the one before it"


def records(
    path: Path, since: str | None = None, event: str | None = None
) -> Iterator[Mapping[str, object]]:
    """Yield the records, oldest first, unchecked. Raises as ``verify``.

    ``since``: an RFC 3339 time in UTC, or its beginning, such as the date; ``event``: its name, or
    the part before the dot.
    """
    with ExitStack() as keep:
        for file in _opened(path, keep):
            for line in lines(file):
                if parsed(line.rstrip(b"\n")) is None:
                    continue
                record: dict[str, object] = msgspec.json.decode(line)
                name = str(record["event"])
                wanted = event is None or event in {name, name.partition(".")[0]}
                if wanted and (since is None or str(record.get("at")) >= since):
                    yield record


def _opened(path: Path, keep: ExitStack) -> list[BinaryIO]:
    try:
        files = opened(path, keep)
    except OSError as error:
        raise AgentError(f"{error.filename}: {error.strerror}") from None
    if not files:
        raise AgentError(f"{path}: there is no audit log")
    return files
