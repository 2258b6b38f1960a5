"""The scan: the truth about which files there are. Hints only say when to look again.

Walks the tree through directory descriptors, so that no swapped name leads it out of the root, and
asks for the status of a file once. It opens no file; ``opener`` decides again, on the descriptor.
"""

import errno
import os
import re
import stat
from collections.abc import Container, Iterable
from fnmatch import translate
from pathlib import Path

from agent.core.discovery import FileKey, Scan, Seen, Skipped, SkipReason, client_of

DEPTH_MAX = 32
"""Directories below each other; each holds a descriptor while it is walked."""
NOTED_MAX = 1000
"""Entries of ``Scan.skipped`` and of ``Scan.unreadable``: links cost a client nothing to make."""
COMPRESSED = (".gz", ".zst")

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
        files_max: files reported at most; those that ``known`` holds are, whatever the number.

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
    ) -> None:
        self._root = root
        self._include = _compiled(include)
        self._exclude = _compiled(exclude)
        self._client_depth = client_depth
        self._client = client
        self._files_max = files_max

    def scan(self, known: Container[FileKey] = ()) -> Scan:
        """Return every matching regular file. Raises nothing about the tree: see ``Scan``."""
        try:
            root_fd = os.open(self._root, _FLAGS & ~os.O_NOFOLLOW)
        except OSError as error:
            return Scan(root_problem=_ROOT_PROBLEMS.get(error.errno, "unreadable"))
        try:
            walk = _Walk(self, known, os.fstat(root_fd).st_dev)
            if problem := walk.directory(root_fd, "", 0):
                return Scan(root_problem="permission" if problem == "permission" else "unreadable")
            return walk.result()
        finally:
            os.close(root_fd)

    def wants(self, name: str) -> bool:
        """Return whether the base name ``name`` is of a file to read."""
        return bool(self._include.match(name)) and not self._exclude.match(name)

    def client(self, path: str) -> str:
        return self._client or client_of(path, self._client_depth)

    @property
    def files_max(self) -> int:
        return self._files_max


_ROOT_PROBLEMS: dict[int | None, str] = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "not_a_directory",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}


class _Walk:
    """One scan in progress."""

    def __init__(self, scanner: Scanner, known: Container[FileKey], device: int) -> None:
        self._scanner = scanner
        self._known = known
        self._device = device
        self._files: list[Seen] = []
        self._directories: list[str] = []
        self._skipped: list[Skipped] = []
        self._unreadable: list[Skipped] = []
        self._over_limit = 0
        self._skipped_cut = 0
        self._unreadable_cut = 0

    def result(self) -> Scan:
        return Scan(
            files=tuple(self._files),
            directories=tuple(self._directories),
            skipped=tuple(self._skipped),
            unreadable=tuple(self._unreadable),
            over_limit=self._over_limit,
            skipped_cut=self._skipped_cut,
            unreadable_cut=self._unreadable_cut,
        )

    def directory(self, fd: int, path: str, depth: int) -> SkipReason | None:
        """Walk what ``fd`` holds; None, or why it could not be read to its end."""
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    self._entry(fd, entry, f"{path}/{entry.name}" if path else entry.name, depth)
        except OSError as error:
            return _BY_ERRNO.get(error.errno, "error")
        self._directories.append(path)
        return None

    def _entry(self, above: int, entry: os.DirEntry[str], path: str, depth: int) -> None:
        if entry.is_dir(follow_symlinks=False):
            if reason := self._descend(above, entry.name, path, depth + 1):
                if len(self._unreadable) < NOTED_MAX:
                    self._unreadable.append(Skipped(path, reason))
                else:
                    self._unreadable_cut += 1
        elif entry.is_symlink():  # whatever its name: it may have stood for a directory
            self._skip(path, "symlink")
        elif self._scanner.wants(entry.name) and (reason := self._file(entry, path)):
            self._skip(path, reason)

    def _descend(self, above: int, name: str, path: str, depth: int) -> SkipReason | None:
        if depth > DEPTH_MAX:
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

    def _file(self, entry: os.DirEntry[str], path: str) -> SkipReason | None:
        if entry.name.endswith(COMPRESSED):  # *.jsonl.* matches them; they are not lines of text
            return "compressed"
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            return _BY_ERRNO.get(error.errno, "error")
        if not stat.S_ISREG(status.st_mode):
            return "not_regular"
        if status.st_dev != self._device:
            return "other_device"
        self._take(status, path)
        return None

    def _take(self, status: os.stat_result, path: str) -> None:
        seen = Seen(
            path,
            self._scanner.client(path),
            status.st_ino,
            status.st_dev,
            status.st_size,
            status.st_mtime_ns,
        )
        if len(self._files) >= self._scanner.files_max and seen.key not in self._known:
            self._over_limit += 1
        else:
            self._files.append(seen)

    def _skip(self, path: str, reason: SkipReason) -> None:
        if len(self._skipped) < NOTED_MAX:
            self._skipped.append(Skipped(path, reason))
        else:
            self._skipped_cut += 1


def _compiled(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")
