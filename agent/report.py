"""What the outside may ask of a running agent: ready or why not, and how far everything is."""

from collections.abc import Callable, Sequence
from typing import Any

from agent import __version__
from agent.admin import Health
from agent.core.quota import InFlight
from agent.core.seam import Mode
from agent.harvester import Followed
from agent.reloaded import Reloaded
from agent.rounds import Rounds
from agent.sink import Outlet
from agent.sources import Sources
from agent.spooler import Spooler


class Report:
    """Answers for ``admin``. Everything is read where it stands; nothing is stored here."""

    def __init__(
        self,
        node: str,
        ways: tuple[Spooler, ...],
        rounds: Rounds,
        in_flight: InFlight,
        sources: Sources,
        *,
        reloaded: Sequence[Reloaded[Any]],
        audit: Outlet | None = None,
        shown: Callable[[str], str] = str,
    ) -> None:
        self._shown = shown
        self._node = node
        self._ways = ways
        self._rounds = rounds
        self._in_flight = in_flight
        self._sources = sources
        self._reloaded = reloaded
        self._audit = audit

    def health(self) -> Health:
        """The loop turns: it has just answered."""
        return Health(True)

    def ready(self) -> Health:
        """Ready is who takes in what is written: to Kafka, or into the spool on purpose."""
        problems = (
            [] if self._rounds.root_problem is None else [f"root: {self._rounds.root_problem}"]
        )
        remarks = []
        for way in self._ways:
            problem = way.outlet.problem
            if way.mode is Mode.LIVE and problem is not None:
                problems.append(f"{way.outlet.name}: {problem}")
            elif way.full is not None:
                problems.append(f"{way.outlet.name}: spool full ({way.full})")
            elif way.mode is not Mode.LIVE:
                why = f" ({problem})" if problem is not None else ""
                remarks.append(f"{way.outlet.name}: {way.mode.value}{why}")
        return Health(not problems, (*problems, *remarks))

    def status(self) -> dict[str, object]:
        rounds = self._rounds
        audit = {} if self._audit is None else {self._audit.name: self._audit.status()}
        return {
            "version": __version__,
            "node": self._node,
            "root": {"path": str(rounds.root), "problem": rounds.root_problem},
            "watcher": rounds.watcher_problem,
            "reloaded": {one.what: one.status() for one in self._reloaded},
            "in_flight": {"events": self._in_flight.events, "bytes": self._in_flight.bytes},
            "sinks": {w.outlet.name: {**w.outlet.status(), **w.status()} for w in self._ways}
            | audit,
            "files": [self._file(followed) for followed in self._sources.opened],
            "unreadable": [
                {**one, "path": self._shown(one["path"])} for one in self._sources.refusals.named()
            ],
        }

    def _file(self, followed: Followed) -> dict[str, object]:
        row, reader = followed.checkpoint, followed.harvester
        return {
            "path": self._shown(row.path),
            "client": self._shown(row.client),
            "source": row.source_id,
            "generation": row.generation,
            "watermark": row.watermark if reader is None else reader.ledger.watermark,
            "size": followed.seen.size if followed.seen else None,
        }
