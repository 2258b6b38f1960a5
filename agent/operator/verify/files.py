"""The files to prove, and under which names their lines may have been sent.

A line goes out under the source and the generation that its file had then. A file may have several:
its own, one that a power cut ended, and those of the originals that it is a copy of.
"""

import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from agent.config import Config
from agent.core import continuation
from agent.core.continuation import Sighting
from agent.core.discovery import client_of
from agent.core.identity import (
    FINGERPRINT_BYTES,
    Checkpoint,
    File,
    compare,
    examine,
    matches,
    rewound,
    source_id,
)
from agent.core.places import BEYOND, Life
from agent.opener import Descriptor, Refused, open_beneath
from agent.scanner import Scanner
from agent.unpacking import COMPRESSED, Unpacked, is_compressed, is_content

READ_BYTES = 1 << 20


class Listed(NamedTuple):
    """A file to prove: below ``root``, by its relative path."""

    root: Path
    path: str
    client: str
    mtime_s: float


Part = tuple[Life, int]


class Known(NamedTuple):
    """Who a file is to the agent.

    Attributes:
        own: The generations of the file itself, the newest last, each with the offset up to which
            its content is that of this file.
        copied: The same of the originals that it is a copy of.
        settled_to: What is before is in Kafka, or on its way through the spool.
        born_ns: As its birth has it.
        note: What an operator should know.
    """

    own: tuple[Part, ...]
    copied: tuple[Part, ...]
    settled_to: int
    born_ns: int
    note: str = ""


class Index:
    """Checkpoints by the source, and by what copies of their files look like."""

    def __init__(self, rows: Iterable[Checkpoint]) -> None:
        self._by_source: defaultdict[str, list[Checkpoint]] = defaultdict(list)
        self._copies = continuation.Index()
        for row in sorted(rows, key=lambda row: row.generation):
            self._by_source[row.source_id].append(row)
            self._copies.put((row.source_id, row.generation), row)

    def identify(self, file: File, path: str, client: str) -> Known:
        """Say who ``file`` is, by the agent's own rules. Raises ``OSError``."""
        own, born_ns = self._by_source.get(source_id(file.birth), []), file.birth.born_ns
        seen = Sighting(file.birth, file.size(), path, client)
        alike = self._copies.alike(seen, file.pread(FINGERPRINT_BYTES, 0))
        originals = [(row, upto) for row in alike if (upto := _upto(row, file))]
        parts = [(_life(row), _upto(row, file)) for row in own]
        copied = [(_life(row), BEYOND[0] if row.path == path else upto) for row, upto in originals]
        if not own:
            settled_to = max((min(row.watermark, upto) for row, upto in originals), default=0)
            mine = any(row.path == path for row, _ in originals)
            note = "" if mine else "a copy" if originals else "not read yet"
            return Known((), tuple(copied), settled_to, born_ns, note)
        newest = own[-1]
        change = compare(newest, examine(newest, file.birth, file.size(), file.pread))
        if change.cause != "same":
            note = f"not read since it was {change.cause}"
            return Known(tuple(parts), tuple(copied), change.resume_at, born_ns, note)
        parts[-1] = _life(newest), BEYOND[0]
        return Known(tuple(parts), tuple(copied), newest.watermark, born_ns)

    def without(self, met: Container[Life]) -> list[Checkpoint]:
        """Return the rows of which no file was met, but for those that say a file is unpacked."""
        return [
            row
            for rows in self._by_source.values()
            for row in rows
            if _life(row) not in met
            and row.watermark
            and not (row.path.endswith(COMPRESSED) and not is_content(row.birth))
        ]


def _life(row: Checkpoint) -> Life:
    return row.source_id, row.generation


def _upto(row: Checkpoint, file: File) -> int:
    """Return how far the content of ``file`` is surely what ``row`` is about."""
    probe = examine(row, row.birth, file.size(), file.pread)
    return row.watermark if matches(row, probe) else rewound(row, probe)


def listed(config: Config, paths: Iterable[Path]) -> Iterator[Listed]:
    """Yield all files that the agent would read; with ``paths`` those, and what is in those."""
    source = config.source
    for path in [*paths] or [source.root]:
        whole = Path(os.path.realpath(path))
        if whole.is_dir():
            yield from _below(config, whole)
        else:
            yield _placed(config, whole, whole.stat().st_mtime)


def _below(config: Config, root: Path) -> Iterator[Listed]:
    source = config.source
    scan = Scanner(
        root,
        source.include,
        source.exclude,
        depth_max=source.depth_max,
        files_max=source.files_max,
        client_files_max=source.files_max,
    ).scan()
    if scan.root_problem is not None:
        raise OSError(0, scan.root_problem, str(root))
    for seen in sorted(scan.files, key=lambda seen: seen.path):
        yield _placed(config, root / seen.path, seen.mtime_ns / 1e9)


def _placed(config: Config, path: Path, mtime_s: float) -> Listed:
    """Say where a file lies as the agent does: below ``source.root``, if it is there."""
    source, root = config.source, Path(os.path.realpath(config.source.root))
    base = root if path.is_relative_to(root) else path.parent
    relative = str(path.relative_to(base))
    client = source.client or client_of(relative, source.client_depth)
    return Listed(base, relative, client, mtime_s)


@contextmanager
def opened(listed: Listed) -> Iterator[Descriptor | Unpacked]:
    """Open a file, or what is packed in it, as safely as the agent. Raises ``OSError``."""
    root = os.open(listed.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = open_beneath(root, listed.path, links_max=None)
    finally:
        os.close(root)
    if isinstance(file, Refused):
        raise OSError(0, file.reason, listed.path)
    with closing(Unpacked(file) if is_compressed(listed.path, file) else file) as content:
        yield content


def pieces(file: Descriptor | Unpacked) -> Iterator[bytes]:
    """Yield all of a file. Raises ``OSError``."""
    at = 0
    while piece := file.pread(READ_BYTES, at):
        yield piece
        at += len(piece)
