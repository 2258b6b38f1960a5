"""Which files a backfill takes, below which root, and whose they are. Looks once, opens nothing.

A client has its name from the first directories below the root, as with the agent. A file that the
agent follows would be sent twice: it is told apart here by the agent's own rules.
"""

import os
import stat
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from agent.clock import Clock
from agent.config.sections import Source
from agent.core.discovery import NONE_SEEN, FileKey, Scan, Seen, Sightings, client_of, file_key
from agent.errors import ConfigError
from agent.scanner import Scanner

FILES_MAX = 1_000_000


class Wanted(Struct, frozen=True, kw_only=True):
    """What was asked for.

    Attributes:
        root: Below which clients have their directories; None: ``source.root``.
        client: Of every file, instead.
        include, exclude: Patterns of names in directories; a file that is named is always taken.
    """

    paths: tuple[str, ...]
    root: str | None = None
    client: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Left(Struct, frozen=True):
    """A file that is not sent, or not to its end."""

    path: str
    why: str


class Selection(Struct, frozen=True):
    """The files, with paths below ``root``; what was left out, and why; which the agent follows."""

    root: Path
    files: tuple[Seen, ...]
    skipped: tuple[Left, ...]
    followed: tuple[str, ...]

    def scan(self, known: Sightings = NONE_SEEN, remembered: Container[int] = ()) -> Scan:
        """Look at these files again, as a scan of the agent would."""
        met = []
        for seen in self.files:
            now = _seen(self.root, seen.path, seen.client)
            if now is not None and now.key == seen.key:
                met.append(now)
        return Scan(files=tuple(met))


def select(wanted: Wanted, source: Source, outside: Path, clock: Clock) -> Selection:
    """Find the files. ``outside``: a directory of which nothing is taken, the state directory.

    Raises ``ConfigError`` where a path gives no client, or lies on another file system than root.
    """
    paths = [Path(os.path.realpath(path)) for path in wanted.paths]
    client = wanted.client or source.client
    root = _root(paths, wanted, source, client)
    files: dict[FileKey, Seen] = {}
    skipped: list[Left] = []
    closed = Path(os.path.realpath(outside))
    for path in paths:
        if path.stat().st_dev != root.stat().st_dev:
            detail = f"{path} lies on another file system than {root}"
            raise ConfigError("PATH", f"{detail}: backfill it alone, with --root or --client")
        for below, why in _below(path, wanted, source, clock):
            relative = str(below.relative_to(root))
            named = client or client_of(relative, source.client_depth)
            seen = None if why else _seen(root, relative, named)
            if below.is_relative_to(closed):
                continue
            if seen is None:
                skipped.append(Left(relative, why or "not_regular"))
            else:
                files.setdefault(seen.key, seen)
    follows = Follows(source, clock)
    followed = [seen.path for seen in files.values() if follows(root / seen.path, seen)]
    ordered = sorted(files.values(), key=lambda seen: (seen.mtime_ns, seen.path))
    return Selection(root, tuple(ordered), tuple(skipped), tuple(sorted(followed)))


class Follows:
    """Says whether an agent with this configuration reads a file."""

    def __init__(self, source: Source, clock: Clock) -> None:
        self._root = Path(os.path.realpath(source.root))
        self._depth_max = source.depth_max
        self._wants = Scanner(self._root, source.include, source.exclude).wants
        old_s = source.ignore_older_s
        self._oldest_ns = None if old_s is None else int((clock.wall() - old_s) * 1e9)

    def __call__(self, path: Path, seen: Seen) -> bool:
        if not path.is_relative_to(self._root) or not self._wants(path.name):
            return False
        if len(path.relative_to(self._root).parts) - 1 > self._depth_max:
            return False
        return self._oldest_ns is None or seen.mtime_ns >= self._oldest_ns


def _root(paths: Sequence[Path], wanted: Wanted, source: Source, client: str | None) -> Path:
    root = Path(os.path.realpath(wanted.root or source.root))
    outside = [path for path in paths if not path.is_relative_to(root)]
    if not outside:
        return root
    if client is None:
        detail = f"{outside[0]} is not below {root}, so nobody knows whose it is"
        raise ConfigError("PATH", f"{detail}: say --client NAME, or --root DIR for another root")
    return Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))


def _below(
    path: Path, wanted: Wanted, source: Source, clock: Clock
) -> Iterable[tuple[Path, None] | tuple[Path, str]]:
    """Yield the files at and below ``path``, and what of it cannot be looked at."""
    if not path.is_dir():
        yield path, None
        return
    scanner = Scanner(
        path,
        wanted.include or source.include,
        wanted.exclude,
        client="any",
        files_max=FILES_MAX,
        client_files_max=FILES_MAX,
        clock=clock,
    )
    scanner.client_entries_max = 100 * FILES_MAX
    scan = scanner.scan()
    if scan.root_problem is not None:
        yield path, scan.root_problem
    for seen in scan.files:
        yield path / seen.path, None
    for skipped in (*scan.skipped, *scan.unreadable):
        yield path / skipped.path, skipped.reason


def _seen(root: Path, path: str, client: str) -> Seen | None:
    try:
        status = os.lstat(root / path)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    key = file_key(status.st_dev, status.st_ino)
    return Seen(path, client, key, status.st_size, status.st_mtime_ns)
