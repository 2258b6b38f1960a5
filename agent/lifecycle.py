"""watchdog's threads, and the way from them to the loop: a storm arrives there as one call."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver

_KINDS: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
]


class Lifecycle(FileSystemEventHandler):
    """What was created, moved or deleted in ``root`` itself: clients that come and go.

    Not below it: watchdog walks a whole tree before it returns, and its memory grows with the
    directories that a client makes. ``changed`` is called on the loop's thread with the directories
    that came and those that left, relative to the root, after changes of files too. ``close`` ends
    the threads and waits for them. Raises ``OSError`` where the kernel refuses a watch.
    """

    def __init__(
        self,
        root: Path,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[set[str], set[str]], None],
    ) -> None:
        self._root = os.path.realpath(root)  # watchdog watches a link itself, not what it names
        self._loop = loop
        self._changed = changed
        self._directories: deque[tuple[bool, str]] = deque()  # (is it there, path), both threads
        self._told = False
        self._closed = False
        self._observer: BaseObserver = InotifyObserver()
        try:
            self._observer.schedule(self, self._root, recursive=False, event_filter=_KINDS)
            self._observer.start()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._closed = True
        self._observer.stop()
        with contextlib.suppress(RuntimeError):  # it never started
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Take one event, in watchdog's thread."""
        if isinstance(event, DirDeletedEvent | DirMovedEvent):
            self._directories.append((False, self._relative(event.src_path)))
        if isinstance(event, DirCreatedEvent):
            self._directories.append((True, self._relative(event.src_path)))
        if isinstance(event, DirMovedEvent):
            self._directories.append((True, self._relative(event.dest_path)))
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody to tell
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._told = False  # before the queue is emptied: a later event tells again
        there: set[str] = set()
        left: set[str] = set()
        while self._directories:
            is_there, path = self._directories.popleft()
            (there if is_there else left).add(path)
        if not self._closed:
            self._changed(there - {"."}, left - {"."})

    def _relative(self, path: bytes | str) -> str:
        return os.path.relpath(os.fsdecode(path), self._root)
