"""What the outside may ask of a running agent: ready or why not, and how far everything is."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from agent import __version__
from agent.admin import Health, Page
from agent.clock import Clock
from agent.core.quota import InFlight
from agent.core.seam import Mode
from agent.harvester import Followed
from agent.heartbeat import Heartbeat
from agent.lately import Lately
from agent.reloaded import Reloaded
from agent.rounds import Rounds
from agent.sink import Outlet
from agent.sources import Sources
from agent.spooler import Spooler
from agent.status_page import POLICY, History, page
from agent.telemetry import OTHER
from agent.unpacking import is_content

FILES_MAX = 500
"""Open files that are named, those most behind first."""

CLIENT_METRICS = (
    "feedback_agent_client_lag_bytes",
    "feedback_agent_client_lines_read_total",
    "feedback_agent_client_lag_seconds",
)
"""Where what /status says of clients comes from, in this order."""
REJECTED = "feedback_agent_lines_rejected_total"


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
        heartbeat: Heartbeat,
        history: History,
        lately: Lately,
        registry: CollectorRegistry,
        clock: Clock,
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
        self._heartbeat = heartbeat
        self._history = history
        self._lately = lately
        self._registry = registry
        self._clock = clock
        self._began_s = clock.monotonic()
        self._audit = audit

    def health(self) -> Health:
        """The loop turns: it has just answered. So does every thread, or only a restart helps."""
        hung = self._heartbeat.hung()
        return Health(not hung, tuple(f"{thread}: hung" for thread in hung))

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
        rounds, sources = self._rounds, self._sources
        at = datetime.fromtimestamp(self._clock.wall(), UTC)
        audit = {} if self._audit is None else {self._audit.name: self._audit.status()}
        return {
            "version": __version__,
            "node": self._node,
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "up_s": round(self._clock.monotonic() - self._began_s, 3),
            "health": self.health()._asdict(),
            "ready": self.ready()._asdict(),
            "root": {"path": str(rounds.root), "problem": rounds.root_problem},
            "watcher": rounds.watcher_problem,
            "reloaded": {one.what: one.status() for one in self._reloaded},
            "in_flight": {"events": self._in_flight.events, "bytes": self._in_flight.bytes},
            "sinks": {w.outlet.name: {**w.outlet.status(), **w.status()} for w in self._ways}
            | audit,
            "dead_letters": self._dead_letters(),
            "clients": self._clients(),
            "files_open": len(sources.opened),
            "files": self._files(),
            "unreadable": [
                {**one, "path": self._shown(one["path"])} for one in sources.refusals.named()
            ],
            "problems": self._lately.problems(),
        }

    def page(self) -> Page:
        """The same for a person, with the last minutes."""
        return Page(page(self.status(), self._history.series()), POLICY)

    def _dead_letters(self) -> dict[str, int]:
        """Return how many lines became dead letters since the start, by reason."""
        (family,) = self._registry.restricted_registry([REJECTED]).collect()
        found = {sample.labels["reason"]: int(sample.value) for sample in family.samples}
        return {reason: lines for reason, lines in found.items() if lines}

    def _clients(self) -> list[dict[str, object]]:
        """Return what the metrics have of clients: so many of them, named as they may be."""
        read = self._registry.restricted_registry(CLIENT_METRICS).collect()
        found: dict[str, dict[str, float]] = {}
        for sample in (sample for family in read for sample in family.samples):
            found.setdefault(sample.labels["client"], {})[sample.name] = sample.value
        clients: list[dict[str, object]] = []
        for labelled, values in found.items():
            client = self._shown(labelled)  # by other rules than when it was labelled, perhaps
            lag_bytes, lines_read, lag_s = map(values.get, CLIENT_METRICS)
            if client != OTHER or lag_bytes or lines_read:
                clients.append({"client": client, "lag_bytes": int(lag_bytes or 0), "lag_s": lag_s,
                                "lines_read": int(lines_read or 0)})  # fmt: skip
        clients.sort(key=lambda one: (-_lag_bytes(one), one["client"] == OTHER, one["client"]))
        return clients

    def _files(self) -> list[dict[str, object]]:
        files = sorted(map(_file, self._sources.opened), key=_lag_bytes, reverse=True)[:FILES_MAX]
        named = ("path", "client")
        return [file | {key: self._shown(str(file[key])) for key in named} for file in files]


def _file(followed: Followed) -> dict[str, object]:
    row, reader = followed.checkpoint, followed.harvester
    watermark = row.watermark if reader is None else reader.ledger.watermark
    size = followed.seen.size if followed.seen else None
    end = max(size or 0, reader.seen_to if reader else 0)
    if size is not None and not is_content(followed.birth):
        size = end  # it has grown since the scan
    return {
        "path": row.path,
        "client": row.client,
        "source": row.source_id,
        "generation": row.generation,
        "watermark": watermark,
        "size": size,
        "lag_bytes": max(0, end - watermark),
    }


def _lag_bytes(one: dict[str, Any]) -> int:
    return int(one["lag_bytes"])
