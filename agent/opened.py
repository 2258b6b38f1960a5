"""The files that are open, and which of them is closed for another. Lives in the worker thread."""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from agent.core.identity import Checkpoint, Held
from agent.harvester import Followed, Harvester
from agent.registry import Registry
from agent.turns import Turns


class Opened:
    """Open files, least recently read first.

    Args:
        descriptors_max: Files open at once. Beyond it the one longest at rest is closed; while
            none rests, further files wait.
    """

    def __init__(
        self, registry: Registry, turns: Turns, *, line_bytes_max: int, descriptors_max: int
    ) -> None:
        self._registry = registry
        self._turns = turns
        self._line_bytes_max = line_bytes_max
        self._descriptors_max = descriptors_max
        self._files: OrderedDict[Followed, None] = OrderedDict()
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
        if self._ends is not None:
            self._ends[followed] = file.size()
        self._files[followed] = None
        self._turns.add(followed)
        return reader

    def take(self) -> Followed | None:
        """Return the file whose turn it is, if there is one."""
        followed = self._turns.take()
        while followed is not None and followed.harvester is None:  # given up meanwhile
            followed = self._turns.take()
        if followed is not None:
            self._files.move_to_end(followed)
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
        reader = followed.harvester
        assert reader is not None
        return not (followed in self._turns or reader.more or reader.ledger.in_flight_bytes)

    def room(self, finish: Callable[[Followed], bool]) -> bool:
        """Return whether another file may be opened, closing the one longest at rest if need be.

        Better one whose last line is whole: of another that is then deleted, the line is lost.
        ``finish`` says whether a file may be closed now.
        """
        if not self.full:
            return True
        resting = [f for f in self._files if self.drained(f)]
        resting.sort(key=lambda f: f.harvester is not None and f.harvester.torn)
        for followed in resting:
            if finish(followed):
                self.close(followed)
                return True
        return False

    def close(self, followed: Followed) -> None:
        assert followed.harvester is not None
        self._registry.rows.append(followed.latest())
        followed.harvester.file.close()
        followed.harvester = None
        del self._files[followed]
