"""The files that are open, and which of them is closed for another. Lives in the worker thread.

A file is best closed when all of it is read and settled. But a client may have more to be read in
each of its files than there is time for, or be slowed for hours: then it gives one of them to a
client that has fewer open, and goes on with it later.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

from agent.core.identity import Checkpoint, Held
from agent.harvester import Followed, Harvester
from agent.registry import Registry
from agent.turns import Turns
from agent.unpacking import is_content


class Opened:
    """Open files, least recently read first.

    Args:
        descriptors_max: Files open at once. Beyond it the one longest at rest is closed; while
            none rests, one of a client that has more open than the one that asks.
        put_by: Take a file that was closed half read, to be opened again.
    """

    def __init__(
        self,
        registry: Registry,
        turns: Turns,
        *,
        line_bytes_max: int,
        descriptors_max: int,
        put_by: Callable[[Followed], None],
    ) -> None:
        self._registry = registry
        self._turns = turns
        self._line_bytes_max = line_bytes_max
        self._descriptors_max = descriptors_max
        self._put_by = put_by
        self._files: OrderedDict[Followed, str] = OrderedDict()  # and whose they are
        self._held: Counter[str] = Counter()
        self._unread: set[Followed] = set()  # had no turn since they were opened
        self._ends: dict[Followed, int] | None = None  # how far to read before a stop; None: on

    def __iter__(self) -> Iterator[Followed]:
        """Go through those that are open now; any may be closed meanwhile."""
        return iter([*self._files])

    def __len__(self) -> int:
        return len(self._files)

    @property
    def full(self) -> bool:
        return len(self._files) >= self._descriptors_max

    def follow(self, followed: Followed, base: Checkpoint, file: Held) -> Harvester:
        """Begin to read ``file`` as ``base`` says."""
        assert followed.harvester is None or followed.harvester.file is file, "one reader a file"
        followed.checkpoint = base
        reader = followed.harvester = Harvester(file, base, self._line_bytes_max)
        self._registry.rows.append(base)
        if self._ends is not None and (followed in self._files or followed not in self._ends):
            self._ends[followed] = file.size()
        if followed not in self._files:
            self._held[base.client] += 1
            self._files[followed] = base.client
            self._unread.add(followed)
        self._turns.begin(followed, file.size())
        return reader

    def take(self) -> Followed | None:
        """Return the file whose turn it is, if there is one."""
        followed = self._turns.take()
        while followed is not None and followed.harvester is None:  # given up meanwhile
            followed = self._turns.take()
        if followed is not None:
            self._files.move_to_end(followed)
            self._unread.discard(followed)
        return followed

    def again(self, followed: Followed) -> None:
        """Give ``followed`` another turn, after the others."""
        assert followed.harvester is not None
        if self._ends is None or followed.harvester.cursor.start < self._ends.get(followed, 0):
            self._turns.add(followed)

    def limit(self) -> None:
        """Read no file further than it reaches now: a stop must not chase apps that write on."""
        self._ends = {f: f.harvester.file.size() for f in self._files if f.harvester is not None}

    def drained(self, followed: Followed) -> bool:
        """Return whether nothing is known to be left to read of it, or to be settled."""
        return followed not in self._turns and _settled(followed)

    def held(self, client: str) -> int:
        """Return how many files of ``client`` are open."""
        return self._held[client]

    def room(self, client: str, finish: Callable[[Followed], bool]) -> bool:
        """Return whether a file of ``client`` may be opened, closing another one if need be.

        The one longest at rest: better one whose last line is whole, for of another that is then
        deleted, the line is lost. Else one that ``client`` may have: see ``_yielding``.
        ``finish`` says whether a file may be closed now.
        """
        if not self.full:
            return True
        for followed in self._resting():
            if finish(followed):
                self.close(followed)
                return True
        yielding = self._yielding(client)
        if yielding is None:
            return False
        self.close(yielding)
        self._put_by(yielding)
        return True

    def _resting(self) -> Iterator[Followed]:
        """Yield files that are drained, those with a torn line last; the first is found at once."""
        torn: list[Followed] = []
        for followed in filter(_settled, self._turns.idle()):
            if followed.harvester is not None and followed.harvester.torn:
                torn.append(followed)
            else:
                yield followed
        yield from torn

    def _yielding(self, client: str) -> Followed | None:
        """Return a half-read file of a client with more open ones than ``client`` has.

        Of one that is slowed, for it is not read anyway; or that has most. It had a turn, or all
        would be closed again before they are read. Within a line or a hole that is longer than one
        read it would begin that again: then rather another one of its client, with less to lose,
        and never the last, so that each comes to its end once.
        """
        own = self._held[client]
        more = {c for c, held in self._held.items() if held > own}
        deleted: set[Followed] = set()  # which no scan has met yet
        while more:
            chosen = self._choice(more, deleted)
            if chosen is None or _links(chosen):
                return chosen
            deleted.add(chosen)
        return None

    def _choice(self, clients: set[str], but: set[Followed]) -> Followed | None:
        slowed = {c for c in clients if self._turns.slowed(c) is not None}
        had_turns = [
            f
            for f, c in self._files.items()
            if c in clients and (f not in self._unread or c in slowed) and f not in but
        ]
        first = max(filter(_can_be_had_again, had_turns), key=self._rank, default=None)
        if first is None or not _midway_bytes(first):
            return first
        holder = self._files[first]
        if self._held[holder] == 1:
            return None
        of_holder = (f for f, c in self._files.items() if c == holder and f not in but)
        return min(filter(_can_be_had_again, of_holder), key=_midway_bytes)

    def _rank(self, followed: Followed) -> tuple[bool, int, int]:
        holder = self._files[followed]
        slowed = self._turns.slowed(holder) is not None
        return slowed, self._held[holder], -_midway_bytes(followed)

    def close(self, followed: Followed) -> None:
        assert followed.harvester is not None
        self._registry.rows.append(followed.latest())
        followed.harvester.file.close()
        followed.harvester = None
        self._turns.end(followed)
        self._unread.discard(followed)
        client = self._files.pop(followed)
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]


def _settled(followed: Followed) -> bool:
    """Return whether what was read of it is settled, and was all that was known to be there."""
    reader = followed.harvester
    assert reader is not None
    return not (reader.more or reader.ledger.in_flight_bytes)


def _can_be_had_again(followed: Followed) -> bool:
    """Return whether nothing of it is in flight, and it need not be unpacked again."""
    reader = followed.harvester
    assert reader is not None
    in_flight = reader.ledger.in_flight_bytes > 0
    return followed.seen is not None and not in_flight and not is_content(followed.birth)


def _links(followed: Followed) -> int:
    assert followed.harvester is not None
    return followed.harvester.file.links()


def _midway_bytes(followed: Followed) -> int:
    assert followed.harvester is not None
    return followed.harvester.cursor.midway_bytes
