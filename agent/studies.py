"""Looks at unknown files that take longer than one turn: done in slices, so that others are read.

Lives in the worker thread. A study is a generator: it yields the number of bytes it has just read,
and leaves what it found with whoever asked for it. An ``OSError`` ends it.
"""

from collections.abc import Callable, Container, Generator
from typing import NamedTuple

from agent.core.discovery import FileKey, Seen
from agent.core.identity import Readable

SLICE_BYTES = 1 << 20
"""Read for studies in one turn; then files that are known have theirs."""
READ_BYTES = 256 << 10
STEP_BYTES = 16 << 10
"""What a step costs besides the bytes that are read: opening files, asking the disk."""
RUNNING_MAX = 4
"""Studies begun and not ended, each with its descriptors; the others wait their turn."""

Study = Generator[int]


class _Asked(NamedTuple):
    seen: Seen
    begin: Callable[[], Study]


class Studies:
    """Studies of unknown files, at most one for each.

    Of one client one goes on at a time, and clients take turns: each can make files that take
    hours, by packing a terabyte of nothing, and then waits for its own alone.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, dict[FileKey, _Asked]] = {}  # by client
        self._running: dict[str, tuple[Seen, Study]] = {}

    def ask(self, seen: Seen, begin: Callable[[], Study]) -> None:
        """Let ``begin`` be gone through, unless there is a study of that file already."""
        running = self._running.get(seen.client)
        if running is None or running[0].key != seen.key:
            self._waiting.setdefault(seen.client, {}).setdefault(seen.key, _Asked(seen, begin))

    def keep(self, keys: Container[FileKey]) -> None:
        """End what is about files that are not there any more."""
        for client, waiting in [*self._waiting.items()]:
            for key in [key for key in waiting if key not in keys]:
                del waiting[key]
            if not waiting:
                del self._waiting[client]
        for client, (seen, study) in [*self._running.items()]:
            if seen.key not in keys:
                del self._running[client]
                study.close()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def go_on(self) -> list[Seen]:
        """Do one slice. Return the files whose study has ended: they may be judged again."""
        ended: list[Seen] = []
        budget = SLICE_BYTES
        while budget > 0 and self.busy:
            self._begin()
            client = next(iter(self._running))
            seen, study = self._running.pop(client)
            try:
                used = next(study, None)
            except OSError:
                used = None
            if used is None:
                ended.append(seen)
            else:
                self._running[client] = seen, study
            budget -= (used or 0) + STEP_BYTES
        return ended

    def _begin(self) -> None:
        """Begin a study of each client that has none, as many as there may be."""
        while len(self._running) < RUNNING_MAX:
            client = next((c for c in self._waiting if c not in self._running), None)
            if client is None:
                return
            waiting = self._waiting.pop(client)
            asked = waiting.pop(next(iter(waiting)))
            if waiting:
                self._waiting[client] = waiting
            self._running[client] = asked.seen, asked.begin()


def begins_as(copy: Readable, original: Readable) -> Generator[int, None, bool | None]:
    """Return whether all of ``copy`` is the beginning of ``original``; None: that became shorter.

    Raises ``OSError`` when one of them cannot be read.
    """
    at = 0
    while piece := copy.pread(READ_BYTES, at):
        other = original.pread(len(piece), at)
        if piece != other:
            return None if len(other) < len(piece) else False
        at += len(piece)
        yield len(piece)
    return True
