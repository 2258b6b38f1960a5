"""One life of a backfill: from the first scan to the moment when all is acknowledged.

The rooms of the agent do the work; this one looks at them now and then, says how far they are, and
when nothing is left.
"""

from collections import Counter
from collections.abc import Callable

from msgspec import Struct

from agent import signals
from agent.assembly import InForce, Parts
from agent.clock import Clock, wait_event
from agent.config import Config
from agent.core.discovery import FileKey
from agent.core.identity import Checkpoint
from agent.core.seam import Mode
from agent.core.window import Window
from agent.errors import SinkUnavailable
from agent.kafka import Topic
from agent.operator.backfill.selection import Selection
from agent.sources import Sources
from agent.telemetry import Metrics
from agent.wire import HEADER_BYTES
from agent.wiring import Wiring

LOOK_S, FILE_LOOK_S = 0.25, 2e-5
"""Between two looks at how far everything is, and for each file: twenty times what it costs."""
SCAN_S, FILE_SCAN_S = 1.0, 2e-4
"""Between two scans, likewise: a file may wait for evidence, or have failed."""

LINES = "feedback_agent_lines_read_total"
BLANK = "feedback_agent_lines_blank_total"
EVENTS = "feedback_agent_events_delivered_total"
DEAD_LETTERS = "feedback_agent_dead_letters_delivered_total"
READ_BYTES = "feedback_agent_read_bytes_total"
SENT_BYTES = "feedback_agent_sent_bytes_total"
BATCHES = "feedback_agent_batches_delivered_total"
COUNTED = LINES, BLANK, EVENTS, DEAD_LETTERS, READ_BYTES, SENT_BYTES, BATCHES


class Standing(Struct, frozen=True):
    """How far the rooms are. ``shares``: how much of each file is settled, from 0 to 1.

    ``unsure``: all that is left are files that may still be written to, or are compared.
    """

    shares: dict[FileKey, float]
    copies: dict[FileKey, Checkpoint]
    at_rest: bool
    unsure: bool = False


class Counts(Struct, frozen=True, kw_only=True):
    """What one life came to so far. Bytes of lines are those of the files, unpacked."""

    lines: int = 0
    blank: int = 0
    passed_over: int = 0
    sent: int = 0
    dead_letters: int = 0
    rejected: dict[str, int] = {}
    read_bytes: int = 0
    kafka_bytes: int = 0
    """As Kafka stores them, of one replica."""


class Errand:
    """What ``pipeline`` is to do in place of following files.

    Args:
        make: Makes the parts.
        window: Whose times are compared with what the topic keeps.
        progress: Called on the loop now and then.
        deaf: It goes on when its terminal is closed.

    Attributes:
        standing: As of the last look.
        retention_s: How long the topic keeps a record of that time; None: it is not the event's
            own, or nobody knows.
        finished: Whether nothing is left to do; else it was stopped.
    """

    def __init__(
        self,
        selection: Selection,
        make: Callable[[Config, InForce, Clock, Metrics], Parts],
        *,
        window: Window | None,
        progress: Callable[["Errand"], None],
        deaf: bool = False,
    ) -> None:
        self.selection = selection
        self.standing = Standing({}, {}, at_rest=False)
        self.finished = False
        self.window = window
        self.retention_s: float | None = None
        self._make = make
        self._progress = progress
        self._deaf = deaf
        self._wiring: Wiring | None = None

    def parts(self, config: Config, rules: InForce, clock: Clock, metrics: Metrics) -> Parts:
        return self._make(config, rules, clock, metrics)

    async def run(self, wiring: Wiring) -> None:
        """Return when all is read and acknowledged, or cannot be.

        Raises ``SinkUnavailable`` where Kafka does not answer within ``kafka.start_s``.
        """
        self._wiring = wiring
        if not self._deaf:
            signals.end_with_terminal()
        await self._begin(wiring)
        files, clock, scan_due_s = len(self.selection.files), wiring.clock, 0.0
        while not (self.standing.at_rest and self._settled(wiring)):
            if clock.monotonic() >= scan_due_s:
                await wiring.rounds.scan()
                scan_due_s = clock.monotonic() + SCAN_S + files * FILE_SCAN_S
            await clock.sleep(LOOK_S + files * FILE_LOOK_S)
            self.standing = await wiring.intake.look(_standing)
            self._progress(self)
        self.finished = True

    def counts(self) -> Counts:
        """Return what this life came to, the last acknowledgement included once it is over."""
        wiring, window = self._wiring, self.window
        if wiring is None:
            return Counts()
        counted = wiring.registry.restricted_registry(COUNTED).collect()
        totals: Counter[str] = Counter()
        for sample in (sample for family in counted for sample in family.samples):
            totals[sample.name] += int(sample.value)
        rejected = wiring.metrics.dead_letters()
        return Counts(
            lines=totals[LINES],
            blank=totals[BLANK],
            passed_over=0 if window is None else window.passed_over,
            sent=totals[EVENTS],
            dead_letters=totals[DEAD_LETTERS],
            rejected={reason: lines for reason, lines in rejected.items() if lines},
            read_bytes=totals[READ_BYTES],
            kafka_bytes=totals[SENT_BYTES] + totals[BATCHES] * HEADER_BYTES,
        )

    def look(self) -> None:
        """Look once more, when nothing runs any more."""
        if self._wiring is not None:
            self.standing = _standing(self._wiring.worker.sources)

    @property
    def unsettled(self) -> int:
        """Return how many lines were read, and are not acknowledged."""
        return 0 if self._wiring is None else self._wiring.in_flight.events

    def refused(self) -> list[dict[str, str]]:
        """Return which files gave no lines, and why."""
        return [] if self._wiring is None else self._wiring.worker.sources.refusals.named()

    @property
    def problem(self) -> str | None:
        """Return why nothing can be delivered just now, or None."""
        return None if self._wiring is None else self._wiring.events.outlet.problem

    @property
    def put_by(self) -> int:
        """Return how many dead letters wait in the state directory for their topic."""
        return 0 if self._wiring is None else self._wiring.dead_letters.spooled_records

    async def _begin(self, wiring: Wiring) -> None:
        """Wait for Kafka: a person waits for an answer too."""
        outlet, kafka = wiring.events.outlet, wiring.config.kafka
        ends_s = wiring.clock.monotonic() + kafka.start_s
        while not await wait_event(outlet.described, LOOK_S):
            self._progress(self)
            if wiring.clock.monotonic() >= ends_s:
                why = outlet.problem or "unreachable"
                detail = f"the topic {kafka.topic} could not be reached within {kafka.start_s:g} s"
                raise SinkUnavailable(why, detail)
        if wiring.config.kafka.timestamp == "event" and isinstance(outlet.topic, Topic):
            self.retention_s = outlet.topic.retention_s
        if self.window is not None and self.retention_s is not None:
            self.window.expires_s = wiring.clock.wall() - self.retention_s

    def _settled(self, wiring: Wiring) -> bool:
        """Return whether nothing is on its way; dead letters may wait for a topic that is away."""
        in_flight = [wiring.in_flight, *(way.in_flight for way in wiring.ways)]
        away = wiring.dead_letters.mode is Mode.SPOOLING
        waiting = wiring.events.spooled_records or (self.put_by and not away)
        return not waiting and not any(count.bytes for count in in_flight)


def _standing(sources: Sources) -> Standing:
    copies = sources.registry.strangers.copies()
    at_rest = sources.at_rest
    return Standing(sources.shares(), copies, at_rest, unsure=sources.idle and not at_rest)
