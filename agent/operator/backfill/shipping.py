"""Carries a backfill out: looks, asks who may be harmed, runs the pipeline, sums up."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from agent import logs, pipeline, redaction, signals
from agent.assembly import InForce
from agent.clock import Clock, SystemClock
from agent.config import Config
from agent.core.discovery import printable
from agent.core.identity import Checkpoint
from agent.core.window import Window
from agent.errors import AgentError, StateOwned
from agent.operator.backfill import job as jobs
from agent.operator.backfill.errand import Errand
from agent.operator.backfill.job import Asked
from agent.operator.backfill.origins import Known, Origins, checkpoints, running
from agent.operator.backfill.rooms import BackfillParts, DryParts, configured
from agent.operator.backfill.selection import Selection, select
from agent.operator.backfill.telling import Summary, Teller, left_of, rfc3339
from agent.operator.screen import STYLES, cell
from agent.state_owner import owner
from agent.store import Store

NAMED_MAX = 5
LEFT_MAX = 1000
"""Files that a summary names."""

Lookup = Callable[[Path], list[Checkpoint] | None]
"""Returns what an agent has in its state directory, None where that cannot be known."""


class Backfill:
    """One command.

    Args:
        again: Send also what was sent, or what the agent sends.
        state: Where the job keeps its state; None: in the agent's state directory.
        rate: Lines in a second at most.
        of: Where a person looks.
    """

    def __init__(
        self,
        config: Config,
        rules: InForce,
        asked: Asked,
        *,
        again: bool,
        state: Path | None,
        rate: float | None,
        of: Console,
        lookup: Lookup = checkpoints,
    ) -> None:
        self._config = config
        self._rules = rules
        self._asked = asked
        self._again = again
        self._rate = rate
        self._of = of
        self._lookup = lookup
        self._clock: Clock = SystemClock()
        self._place = jobs.place(config, asked, state)
        self._shown_of_rules = redaction.shown(lambda: rules.redaction.value)

    def ship(self) -> Summary:
        """Send all of it. Raises ``AgentError``."""
        selection = self._select()
        if wrong := self._sent_by_agent(selection):
            raise AgentError(wrong)
        if (pid := owner(self._place)) is not None:
            raise StateOwned(f"this backfill runs already, as pid {pid} ({self._place})")
        before = jobs.read(self._place)
        job = jobs.begin(
            self._place, self._asked, again=self._again, node=self._config.node, clock=self._clock
        )
        if job.lives > 1:
            done = before is not None and before.done_s is not None
            said = "all was sent before: only what is new goes" if done else "going on"
            self._of.print(cell(f"{said} ({self._place})"))
        summary = self._run(self._place, selection, again=job.again, dry=False)
        if summary.complete:
            jobs.end(self._place, job, self._clock)
        return summary

    def rehearse(self) -> Summary:
        """Do all of it but connect, and leave nothing behind. Raises ``AgentError``."""
        selection = self._select()
        if wrong := self._sent_by_agent(selection):
            self._of.print(
                cell(f"warning: without --dry-run it ends here: {wrong}", STYLES["warn"])
            )
        before = jobs.read(self._place)
        fresh = before is None or jobs.anew(before, again=self._again)
        rows = [] if fresh else self._lookup(self._place) or []
        with tempfile.TemporaryDirectory(prefix="feedback-agent-") as scratch:
            directory = Path(scratch)
            store = Store.open(directory, self._config.node)
            try:
                store.save(rows)
            finally:
                store.close()
            again = self._again if before is None else self._again or before.again
            return self._run(directory, selection, again=again, dry=True)

    def _select(self) -> Selection:
        config, wanted = self._config, self._asked.wanted
        selection = select(wanted, config.source, config.agent.state_dir, self._clock)
        if not selection.files:
            names = ", ".join(wanted.include or config.source.include)
            raise AgentError(f"no file to send: a directory gives those named {names} (--include)")
        return selection

    def _sent_by_agent(self, selection: Selection) -> str | None:
        """Say what a running agent sends as well; warn of what one sends that is started later."""
        followed = selection.followed
        if not followed or self._again:
            return None
        names = ", ".join(map(self._shown, followed[:NAMED_MAX]))
        more = f" and {len(followed) - NAMED_MAX:,} more" if len(followed) > NAMED_MAX else ""
        if running(self._config.agent.state_dir):
            return (
                f"the agent follows {names}{more}, so they would be sent twice: "
                "name others, leave them out with --include or --exclude, or say --force"
            )
        said = f"warning: an agent that is started here sends {names}{more} as well"
        self._of.print(cell(f"{said}: copies, with the same event_id", STYLES["warn"]))
        return None

    def _shown(self, name: str) -> str:
        """Return a name as it may be shown: redacted, and without what drives a terminal."""
        return printable(self._shown_of_rules(name))

    def _known(self, *, again: bool) -> Known:
        config, asked = self._config, self._asked
        of_agent = self._lookup(config.agent.state_dir)
        others = [row for path in jobs.others(config, asked) for row in self._lookup(path) or []]
        rows, sent = [*(of_agent or []), *others], [*others]
        # With start_at: end a checkpoint may stand behind what was never sent.
        if asked.topic == config.kafka.topic and config.source.start_at == "beginning":
            sent += of_agent or []
        return Known(rows, [] if again else sent, of_agent is not None)

    def _run(self, directory: Path, selection: Selection, *, again: bool, dry: bool) -> Summary:
        asked, client = self._asked, self._asked.wanted.client
        config = configured(self._config, directory, selection, client, asked.topic)
        fixed = config.source.client
        origins = Origins(self._known(again=again), client=fixed, clock=self._clock)
        timed = dry or not asked.whole or config.kafka.timestamp == "event"
        window = Window(asked.since_s, asked.until_s) if timed else None
        make = partial(
            DryParts if dry else BackfillParts,
            selection=selection,
            origins=origins,
            window=window,
            rate=None if dry else self._rate,
        )
        began_s = self._clock.monotonic()
        with self._logging(directory), Teller(self._of, selection, self._clock) as teller:
            deaf = signals.deaf_to_hangups()
            errand = Errand(selection, make, window=window, progress=teller, deaf=deaf)
            pipeline.run(config, self._rules, errand)
            errand.look()
            teller(errand)
        seconds = self._clock.monotonic() - began_s
        return self._summary(config, errand, origins, seconds=seconds, dry=dry)

    def _summary(
        self, config: Config, errand: Errand, origins: Origins, *, seconds: float, dry: bool
    ) -> Summary:
        left, window = left_of(errand, self._shown), errand.window
        files = errand.selection.files
        stuck = left or errand.put_by or errand.unsettled
        return Summary(
            complete=errand.finished and not stuck,
            interrupted=not errand.finished,
            dry_run=dry,
            topic=config.kafka.topic,
            state=self._shown(str(self._place)),
            root=self._shown(str(config.source.root)),
            files=len(files),
            bytes=sum(seen.size for seen in files),
            seconds=round(seconds, 3),
            counts=errand.counts(),
            ids=dict(origins.counts),
            passed_over_bytes=origins.passed_over_bytes,
            copies=len(errand.standing.copies),
            left=left[:LEFT_MAX],
            left_files=len(left),
            put_by=errand.put_by,
            unsettled=errand.unsettled,
            timeless=0 if window is None else window.timeless,
            oldest=None if window is None else rfc3339(window.oldest_s),
            newest=None if window is None else rfc3339(window.newest_s),
            expired=0 if window is None else window.expired,
            retention_s=errand.retention_s,
        )

    @contextmanager
    def _logging(self, directory: Path) -> Iterator[None]:
        """Write what the rooms log beside the checkpoints: the screen is for the bar."""
        with (directory / "backfill.log").open("a") as file:
            shown = self._shown_of_rules
            handler = logs.setup(self._config.log.level, "json", file, shown=shown)
            try:
                yield
            finally:
                logging.getLogger().removeHandler(handler)
