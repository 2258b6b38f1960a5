"""Files that wait to be opened: clients take turns, each with its own in the order they came.

Lives in the worker thread. A client with ten thousand files, or with old ones, is before nobody.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from agent.core.discovery import Found
from agent.harvester import Followed


class Openings:
    """What is to be opened, by client; and what no scan finds changed, though it is to be read."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Found]] = {}  # whose turn is next comes first
        self._count = 0
        self._put_by: dict[Followed, None] = {}
        self._closed: list[Followed] = []

    def __iter__(self) -> Iterator[Found]:
        for waiting in self._waiting.values():
            yield from waiting

    def __len__(self) -> int:
        return self._count + len(self._closed)

    def add(self, *founds: Found) -> None:
        for found in founds:
            self._waiting.setdefault(found.seen.client, deque()).append(found)
        self._count += len(founds)

    def scanned(self, founds: Iterable[Found]) -> None:
        """Begin anew with ``founds``, and with what was put by and is still there."""
        self._waiting, self._count = {}, 0
        self._put_by = {f: None for f in self._put_by if f.seen is not None}
        founds = [*founds]
        found = {one.seen.key for one in founds}
        put_by = map(_again, self._put_by)
        self.add(*(one for one in put_by if one.seen.key not in found), *founds)

    def put_by(self, followed: Followed) -> None:
        """Note that a closed file is to be opened, whether or not a scan finds it changed.

        ``go_on`` lets it wait for that.
        """
        self._put_by[followed] = None
        self._closed.append(followed)

    def opened(self, followed: Followed) -> None:
        """Note that a file is open."""
        self._put_by.pop(followed, None)

    def go_on(self) -> None:
        """Let what was put by wait too, after all that wait by now."""
        self.add(*map(_again, self._closed))
        self._closed.clear()

    def take(self) -> Found:
        """Return the first of the client whose turn it is, which comes last then."""
        client = next(iter(self._waiting))
        waiting = self._waiting.pop(client)
        found = waiting.popleft()
        if waiting:
            self._waiting[client] = waiting
        self._count -= 1
        return found

    def untake(self, found: Found) -> None:
        """Put the last taken one back: its client's turn is over, and it is its first again."""
        self._waiting.setdefault(found.seen.client, deque()).appendleft(found)
        self._count += 1


def _again(followed: Followed) -> Found:
    assert followed.seen is not None
    return Found(followed.seen, "grown", followed.seen)
