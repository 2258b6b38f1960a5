"""What the outside may ask of a running agent: ready or why not, and how far everything is."""

from collections.abc import Callable

from agent import __version__
from agent.admin import Health
from agent.core.quota import InFlight
from agent.harvester import Followed
from agent.rounds import Rounds
from agent.sink import Outlet


class Report:
    """Answers for ``admin``. Everything is read where it stands; nothing is stored here."""

    def __init__(
        self,
        node: str,
        outlets: tuple[Outlet, ...],
        rounds: Rounds,
        in_flight: InFlight,
        files: Callable[[], list[Followed]],
    ) -> None:
        self._node = node
        self._outlets = outlets
        self._rounds = rounds
        self._in_flight = in_flight
        self._files = files

    def health(self) -> Health:
        """The loop turns: it has just answered."""
        return Health(True)

    def ready(self) -> Health:
        problems = {outlet.name: outlet.problem for outlet in self._outlets}
        problems["root"] = self._rounds.root_problem
        reasons = tuple(f"{where}: {why}" for where, why in problems.items() if why is not None)
        return Health(not reasons, reasons)

    def status(self) -> dict[str, object]:
        rounds = self._rounds
        return {
            "version": __version__,
            "node": self._node,
            "root": {"path": str(rounds.root), "problem": rounds.root_problem},
            "watcher": rounds.watcher_problem,
            "in_flight": {"events": self._in_flight.events, "bytes": self._in_flight.bytes},
            "sinks": {outlet.name: outlet.status() for outlet in self._outlets},
            "files": [_file(followed) for followed in self._files()],
        }


def _file(followed: Followed) -> dict[str, object]:
    row = followed.checkpoint
    return {
        "path": row.path,
        "client": row.client,
        "source": row.source_id,
        "generation": row.generation,
        "watermark": row.watermark,
        "size": followed.seen.size if followed.seen else None,
    }
