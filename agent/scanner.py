"""The scan: the truth about which files there are. Hints only say when to look again.

Walks the tree through directory descriptors, so that no swapped name leads it out of the root, and
asks for the status of a file once. It opens no file; ``opener`` decides again, on the descriptor.
"""

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Container, Iterable
from fnmatch import translate
from itertools import chain
from pathlib import Path

from agent.clock import Clock, SystemClock
from agent.core.discovery import (
    NONE_SEEN,
    Admission,
    FileKey,
    Limits,
    Scan,
    Seen,
    Sightings,
    Skipped,
    SkipReason,
    client_of,
    file_key,
)

CLIENT_NOTED_MAX = 20
"""Entries of a client and reason in ``Scan.skipped``, and of a client in ``Scan.unreadable``: links
and directories cost a client nothing to make."""
DIRECTORY_ENTRIES = 10
"""As how many names a directory counts: it is opened, listed and watched."""

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_BY_ERRNO: dict[int | None, SkipReason] = {
    errno.ENOENT: "gone",
    errno.ENOTDIR: "symlink",  # a directory a moment ago
    errno.ELOOP: "symlink",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}


class Scanner:
    """Walks beneath ``root``. Synchronous, for a worker thread; holds no descriptor in between.

    Args:
        include, exclude: shell patterns of base names, case-sensitive.
        client_depth: how many directories below the root name the client.
        client: the client of every file, instead.
        files_max: files reported at most; those that are known are, whatever the number.
        client_files_max: of one client, likewise.
        client_entries_max: names of one client that a scan looks at, matching or not, known or
            not; a directory counts as ``DIRECTORY_ENTRIES``. The rest of this client is not seen.
        depth_max: directories below each other; each holds a descriptor while it is walked.
        ignore_older_s: an unknown file that was not written to for so long, by the wall clock, is
            passed over until it is; None: none is.

    """

    def __init__(
        self,
        root: Path,
        include: Iterable[str],
        exclude: Iterable[str] = (),
        *,
        client_depth: int = 1,
        client: str | None = None,
        files_max: int = 50_000,
        client_files_max: int = 10_000,
        client_entries_max: int = 100_000,
        depth_max: int = 16,
        ignore_older_s: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._root = root
        self._include = _compiled(include)
        self._exclude = _compiled(exclude)
        self._client_depth = client_depth
        self._client = client
        self._limits = Limits(files_max, client_files_max)
        self._ignore_older_s = ignore_older_s
        self._clock = SystemClock() if clock is None else clock
        self._lately: dict[FileKey, Seen] = {}
        self.client_entries_max = client_entries_max
        self.depth_max = depth_max

    def scan(self, known: Sightings = NONE_SEEN, remembered: Container[int] = ()) -> Scan:
        """Return every matching regular file. Raises nothing about the tree: see ``Scan``.

        ``known`` are followed by now, ``remembered`` the inodes of what was: see ``Admission``.
        """
        try:
            root_fd = os.open(self._root, _FLAGS & ~os.O_NOFOLLOW)
        except OSError as error:
            return Scan(root_problem=_ROOT_PROBLEMS.get(error.errno, "unreadable"))
        oldest_ns = None
        if self._ignore_older_s is not None:
            oldest_ns = int((self._clock.wall() - self._ignore_older_s) * 1e9)
        try:
            admission = Admission(self._limits, known, remembered, oldest_ns, self._lately)
            walk = _Walk(self, admission, os.fstat(root_fd).st_dev)
            if problem := walk.directory(root_fd, "", 0):
                return Scan(root_problem="permission" if problem == "permission" else "unreadable")
            scan = walk.result()
            self._lately = admission.unknown
            return scan
        finally:
            os.close(root_fd)

    def wants(self, name: str) -> bool:
        """Return whether the base name ``name`` is of a file to read."""
        return bool(self._include.match(name)) and not self._exclude.match(name)

    def client(self, directory: str) -> str:
        """Return who writes the files that lie in ``directory`` itself."""
        return self._client or client_of(f"{directory}/" if directory else "", self._client_depth)

    def clients_top(self, directory: str) -> str:
        """Return the directory that the client of ``directory`` has for itself."""
        depth = 0 if self._client else self._client_depth
        return "/".join(directory.split("/")[:depth])

    def is_above_clients(self, depth: int) -> bool:
        """Return whether directories in one at ``depth`` are other clients'."""
        return self._client is None and depth < self._client_depth


_ROOT_PROBLEMS: dict[int | None, str] = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "not_a_directory",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}


class _Walk:
    """One scan in progress."""

    def __init__(self, scanner: Scanner, admission: Admission, device: int) -> None:
        self._scanner = scanner
        self._admission = admission
        self._device = device
        self._directories: list[str] = []
        self._entries: defaultdict[str, int] = defaultdict(int)  # by client
        self._skipped: defaultdict[tuple[str, SkipReason], list[Skipped]] = defaultdict(list)
        self._counts: defaultdict[SkipReason, int] = defaultdict(int)
        self._unreadable: defaultdict[str, list[Skipped]] = defaultdict(list)  # by client
        self._given_up: set[str] = set()  # clients of which not everything was seen

    def result(self) -> Scan:
        files, over_limit = self._admission.result()
        return Scan(
            files=files,
            directories=tuple(self._directories),
            skipped=tuple(chain(*self._skipped.values())),
            unreadable=tuple(chain(*self._unreadable.values())),
            over_limit=over_limit,
            skipped_counts=dict(self._counts),
        )

    def directory(self, fd: int, path: str, depth: int) -> SkipReason | None:
        """Walk what ``fd`` holds; None, or why it could not be read to its end."""
        client = self._scanner.client(path)
        above = self._scanner.is_above_clients(depth)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    below = f"{path}/{entry.name}" if path else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if above or self._affords(client, path, DIRECTORY_ENTRIES):
                            self._descend(fd, entry.name, below, depth + 1)
                    elif self._affords(client, path, 1):
                        self._entry(entry, below, client)
                    if not above and self._entries[client] > self._scanner.client_entries_max:
                        break
        except OSError as error:
            return _BY_ERRNO.get(error.errno, "error")
        self._directories.append(path)
        return None

    def _affords(self, client: str, path: str, entries: int) -> bool:
        """Charge ``client`` for what was met in ``path``; return whether it may be looked at."""
        self._entries[client] += entries
        within = self._entries[client] <= self._scanner.client_entries_max
        if not within:
            self._give_up(client, path)
        return within

    def _descend(self, above: int, name: str, path: str, depth: int) -> None:
        if reason := self._entered(above, name, path, depth):
            client = self._scanner.client(path)
            if len(self._unreadable[client]) == CLIENT_NOTED_MAX:
                self._give_up(client, path)
            elif client not in self._given_up:
                self._unreadable[client].append(Skipped(path, reason))

    def _give_up(self, client: str, path: str) -> None:
        """Say of all that ``client`` has, ``path`` among it, that it may not have been seen."""
        if client not in self._given_up:
            self._given_up.add(client)
            self._unreadable[client] = [Skipped(self._scanner.clients_top(path), "too_many")]

    def _entered(self, above: int, name: str, path: str, depth: int) -> SkipReason | None:
        if depth > self._scanner.depth_max:
            return "too_deep"
        try:
            fd = os.open(name, _FLAGS, dir_fd=above)
        except OSError as error:
            return _BY_ERRNO.get(error.errno, "error")
        try:
            if os.fstat(fd).st_dev != self._device:
                return "other_device"
            return self.directory(fd, path, depth)
        finally:
            os.close(fd)

    def _entry(self, entry: os.DirEntry[str], path: str, client: str) -> None:
        if entry.is_symlink():  # whatever its name: it may have stood for a directory
            self._skip(path, client, "symlink")
        elif self._scanner.wants(entry.name) and (reason := self._file(entry, path, client)):
            self._skip(path, client, reason)

    def _file(self, entry: os.DirEntry[str], path: str, client: str) -> SkipReason | None:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            return _BY_ERRNO.get(error.errno, "error")
        if not stat.S_ISREG(status.st_mode):
            return "not_regular"
        if status.st_dev != self._device:
            return "other_device"
        key = file_key(self._device, status.st_ino)
        seen = Seen(path, client, key, status.st_size, status.st_mtime_ns)
        return None if self._admission.offer(seen) else "old"

    def _skip(self, path: str, client: str, reason: SkipReason) -> None:
        self._counts[reason] += 1
        noted = self._skipped[client, reason]
        if len(noted) < CLIENT_NOTED_MAX:
            noted.append(Skipped(path, reason))


def _compiled(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")
