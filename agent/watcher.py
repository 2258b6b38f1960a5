"""Hints from the kernel: where to look before the next scan would. They may be lost; scans may not.

Two sources. What is created, moved or deleted in the root itself comes through watchdog. Data, and
names in the directories that a scan has met, come through an inotify descriptor of our own: so what
is watched is bounded as the scan is. It is damped: the first event is taken at once, then nobody
listens for ``rest_s``, and what piled up is taken together and each file named once. A file
written ten thousand times a second so costs as much as one written a hundred times. Nothing runs
while nothing happens.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from agent import inotify
from agent.lifecycle import Lifecycle

Problem = Literal[
    "root_missing",
    "permission",
    "watches_exhausted",
    "instances_exhausted",
    "queue_overflow",
    "remote_filesystem",
    "unsupported",
]
"""Why hints do not come, or not for all: a label. The scan goes on finding everything."""

OVERFLOW_QUIET_S = 10.0
"""How long the kernel's queue must have held before its hints are relied on again."""

EVERYTHING = None
"""What ``on_data`` is given when events were lost: any file may have grown."""

_MASK = inotify.IN_MODIFY | inotify.IN_ONLYDIR | inotify.IN_EXCL_UNLINK
_NAMES = inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO
_ROOT_LEFT = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF | inotify.IN_UNMOUNT

_BY_ERRNO: dict[int | None, Problem] = {
    errno.ENOENT: "root_missing",
    errno.ENOTDIR: "root_missing",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.ENOSPC: "watches_exhausted",
    errno.EMFILE: "instances_exhausted",
    errno.ENFILE: "instances_exhausted",
}


def _depth(directory: str) -> int:
    return directory.count("/") + 1 if directory else 0


class Watcher:
    """Says when something beneath ``root`` changed; every callback comes on the loop's thread.

    Args:
        on_data: takes the path of a file that was written, relative to the root and
            surrogate-escaped as ``os.fsdecode`` does; or ``EVERYTHING``.
        on_change: something was created, moved or deleted, or a new watch may have come too late
            for it: scan soon.
        rest_s: how long nobody listens after what was taken.

    Lifetime: ``start`` as often as it takes; it does nothing while running. ``close`` ends the
    three threads of watchdog, waits for them, and may be followed by ``start``.
    """

    def __init__(
        self,
        root: Path,
        *,
        on_data: Callable[[str | None], None],
        on_change: Callable[[], None],
        rest_s: Callable[[], float],
    ) -> None:
        self._root = root
        self._on_data = on_data
        self._on_change = on_change
        self._rest_s = rest_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lifecycle: Lifecycle | None = None
        self._fd = -1
        self._watched: dict[int, str] = {}  # watch descriptor -> directory
        self._listen_later: asyncio.TimerHandle | None = None
        self._problem: Problem | None = None
        self._overflow_until_s = 0.0

    @property
    def problem(self) -> Problem | None:
        """Return why polling is needed, None when hints come."""
        if self._problem is None and self._loop and self._loop.time() < self._overflow_until_s:
            return "queue_overflow"
        return self._problem

    @property
    def running(self) -> bool:
        return self._fd >= 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch; raises nothing, see ``problem``. Subdirectories: ``watch_directory``."""
        if self.running:
            return
        self._loop, self._problem = loop, None
        try:
            self._fd = inotify.opened()
            inotify.add_watch(self._fd, self._root, _MASK | _ROOT_LEFT)
            self._lifecycle = Lifecycle(self._root, loop, self._lifecycle_changed)
        except OSError as error:
            self.close()
            self._problem = _BY_ERRNO.get(error.errno, "unsupported")
            return
        if inotify.is_remote(self._root):
            self._problem = "remote_filesystem"
        self._listen()
        self.watch_directory("")

    def watch_all(self, directories: Collection[str]) -> None:
        """Watch the files of all the directories that a scan met, and of no others.

        Where watches are short those nearest to the root have them: a client's own directory
        before what another one made in its. Begins anew if some had no watch before, and now all
        have.
        """
        was_full = self._problem == "watches_exhausted"
        directories = set(directories)
        for wd in [wd for wd, name in self._watched.items() if name not in directories]:
            del self._watched[wd]
            inotify.remove_watch(self._fd, wd)
        nearest_first = sorted(directories, key=_depth)
        served = [self.watch_directory(directory) for directory in nearest_first]
        if self.running and not all(served):
            without = [
                d for d, is_served in zip(nearest_first, served, strict=True) if not is_served
            ]
            self._make_room(without)
        elif was_full and self.running:
            # The threads of watchdog do not say which directories they had no watch for.
            self.close()
            self._on_change()

    def _make_room(self, without: list[str]) -> None:
        """Take watches of directories far from the root for those nearer to it, nearest first."""
        farthest_last = sorted(self._watched, key=lambda wd: _depth(self._watched[wd]))
        for directory in without:
            wd = farthest_last.pop() if farthest_last else None
            if wd is None or _depth(self._watched[wd]) <= _depth(directory):
                return
            del self._watched[wd]
            inotify.remove_watch(self._fd, wd)
            self.watch_directory(directory)

    def watch_directory(self, relative: str) -> bool:
        """Watch the files of one directory; again is harmless. Its subdirectories are not.

        Return False if the kernel has no watch left for it.
        """
        if not self.running:
            return False
        # A moved directory keeps its watch: the kernel answers with the one it has, and the new
        # name replaces the old one.
        mask = _MASK | (inotify.IN_DONT_FOLLOW | _NAMES if relative else _ROOT_LEFT)
        try:
            added = inotify.add_watch(self._fd, self._root / relative, mask)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                return True
            self._problem = "watches_exhausted"
            return False
        if self._watched.get(added) != relative:
            self._watched[added] = relative
            self._on_change()  # what was written before the watch stood has no event
        return True

    def close(self) -> None:
        """Stop. No callback comes after it returns."""
        if self._listen_later:
            self._listen_later.cancel()
            self._listen_later = None
        if self._fd >= 0:
            assert self._loop is not None
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._watched.clear()
        if self._lifecycle:
            self._lifecycle.close()
            self._lifecycle = None

    def _lifecycle_changed(self, there: set[str], left: set[str]) -> None:
        # A name can be in both, in either order; the file system knows which came last.
        if left:
            self._forget(left)
        for relative in there:
            self.watch_directory(relative)
        self._on_change()

    def _forget(self, left: set[str]) -> None:
        """Drop the watches of directories that left, and of all below them."""
        for wd, name in list(self._watched.items()):
            parts = name.split("/")
            if any("/".join(parts[:n]) in left for n in range(1, len(parts) + 1)):
                del self._watched[wd]
                inotify.remove_watch(self._fd, wd)  # fails where the kernel was first

    def _listen(self) -> None:
        """Take what came while nobody listened; if nothing did, let the loop say when it does."""
        assert self._loop is not None
        self._listen_later = None
        if not self._take():
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        assert self._loop is not None
        self._loop.remove_reader(self._fd)
        if not self._take():
            self._listen()

    def _take(self) -> bool:
        """Take what the kernel holds, then rest. Return whether there was anything."""
        assert self._loop is not None
        events = [*inotify.pending(self._fd)]
        if events:
            self._listen_later = self._loop.call_later(self._rest_s(), self._listen)
            self._drain(events)
        return bool(events)

    def _drain(self, events: list[tuple[int, int, str]]) -> None:
        assert self._loop is not None
        heard = _Heard()
        for wd, mask, name in events:
            heard.take(self._watched.get(wd), mask, name)
            if mask & inotify.IN_IGNORED:
                self._watched.pop(wd, None)
        if heard.lost:
            self._overflow_until_s = self._loop.time() + OVERFLOW_QUIET_S
        hints = [*heard.written, EVERYTHING] if heard.lost else heard.written
        for path in hints:
            if self.running:  # a callback may close us
                self._on_data(path)
        if heard.root_left and self.running:
            self.close()
            self._problem = "root_missing"
            self._on_change()
        elif heard.renamed and self.running:
            self._lifecycle_changed(set(), heard.moved)  # what came is watched once a scan met it
        elif heard.lost and self.running:
            self._on_change()


class _Heard:
    """What the events of one drain come to."""

    def __init__(self) -> None:
        self.written: dict[str, None] = {}  # each once, in the order of the first event
        self.moved: set[str] = set()  # directories; the watch of a deleted one ends by itself
        self.renamed = self.lost = self.root_left = False

    def take(self, directory: str | None, mask: int, name: str) -> None:
        self.lost |= bool(mask & inotify.IN_Q_OVERFLOW)
        if directory is None or mask & inotify.IN_IGNORED:
            self.root_left |= directory == ""
            return
        self.root_left |= directory == "" and bool(mask & _ROOT_LEFT)
        path = f"{directory}/{name}" if directory else name
        if mask & inotify.IN_MODIFY:
            self.written[path] = None
        self.renamed |= bool(mask & _NAMES)
        if mask & inotify.IN_ISDIR and mask & inotify.IN_MOVED_FROM:
            self.moved.add(path)
