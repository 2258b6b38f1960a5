"""The audit log: what the agent did with whose files, when it ran and how, and when it lost what.

A note costs its caller a lock and a place in a queue; one task writes what has come meanwhile as
one write. A disk that does not take it stops nothing else: notes wait, and those that find no place
are counted in the log itself.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from agent.audit_file import BYTES_MAX, FILES_MAX, AuditFile, Entry
from agent.clock import Clock, wait_event
from agent.core.auditing import QUOTED, Head
from agent.core.notes import Noted, Notes
from agent.logs import escaped
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

GATHER_S = 0.05
"""A storm costs one write for all that comes within it."""
SYNC_S = 1.0
"""What a power cut may take of the log."""
RETRY_S = 10.0
COUNT_S = 60.0
"""Between two counts of dead letters."""
ENTRIES_MAX = 250
"""In one write: a few milliseconds of the loop."""


class Audit:
    """Keeps the log from ``start`` to ``close``; ``note`` may be called before that, too.

    Args:
        path: Where it is written; None: nowhere.
        shown: What is written of a path, the name of a client, or a detail that may quote them.
        dead_letters: Return how many dead letters there were so far, by reason.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        bytes_max: int = BYTES_MAX,
        files_max: int = FILES_MAX,
        shown: Callable[[str], str] = str,
        dead_letters: Callable[[], Mapping[str, int]] = dict,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._file = AuditFile(path, bytes_max, files_max) if path is not None else None
        self._shown = shown
        self._dead_letters = dead_letters
        self._clock = clock
        self._metrics = metrics
        self._notes = Notes(clock.monotonic)
        self._lock = threading.Lock()  # of the notes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._told = False
        self._ending = False
        self._writing: asyncio.Task[None] | None = None
        self._failing: bool | None = None  # nothing was tried yet
        self._again_s = self._synced_s = clock.monotonic()
        self.durable: Head | None = None
        """The last record that the disk has, once there is one of this life."""
        self._counted: Mapping[str, int] = {}
        self._counted_s, self._since = clock.monotonic(), _rfc3339(clock.wall())

    def note(self, name: str, /, **fields: object) -> None:
        """Put by an event of ``core.auditing.EVENTS``. From any thread; never waits or raises."""
        if self._file is None:
            return
        with self._lock:
            self._notes.add(Noted(self._clock.wall(), name, fields))
            told, self._told = self._told, True
        if not told and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(self._wake.set)

    def start(self) -> None:
        """Begin to write, on the running loop."""
        assert self._writing is None, "started twice"
        if self._file is not None:
            self._loop = asyncio.get_running_loop()
            self._writing = self._loop.create_task(self._write(self._file))

    async def close(self) -> None:
        """Write what is left, if the disk takes it, and wait until it has it."""
        if self._writing is not None:
            self._ending = True
            self._wake.set()
            await self._writing  # never cancelled: a record would be torn
            self._writing = None

    # ---- the one task

    async def _write(self, file: AuditFile) -> None:
        ending = False
        while not ending:
            self._wake.clear()
            ending = self._ending
            self._count_dead_letters(ending=ending)
            if ending:
                with self._lock:
                    self._notes.end(self._clock.wall())
            if ending or self._clock.monotonic() >= self._again_s:
                await self._turn(file, ending=ending)
            if not ending:
                soon = file.unsynced or not file.is_open
                await wait_event(self._wake, SYNC_S if soon else COUNT_S)
                await asyncio.sleep(0 if self._ending else GATHER_S)

    async def _turn(self, file: AuditFile, *, ending: bool) -> None:
        try:
            if not file.is_open:
                await self._open(file)
            while noted := self._first():
                self._done(await file.append([self._entry(note) for note in noted]))
                await self._sync(file, now=self._failing is not False)
                self._succeeded(file)
            await self._sync(file, now=ending)
            if ending:
                await file.close()
                event(log, logging.INFO, "audit.closed", **_head(file))
        except OSError as error:
            await self._failed(file, error)

    async def _open(self, file: AuditFile) -> None:
        found = await file.open()
        self._done(found.arrived)
        if found.torn:
            after = file.head.seq if file.head is not None else 0
            fields = {"after": after, "torn": found.torn}
            await file.append([Entry(_rfc3339(self._clock.wall()), "chain.resumed", fields)])

    async def _sync(self, file: AuditFile, *, now: bool = False) -> None:
        if now or self._clock.monotonic() - self._synced_s >= SYNC_S:
            await file.sync()
            self.durable = file.head
            self._synced_s = self._clock.monotonic()

    def _succeeded(self, file: AuditFile) -> None:
        if self._failing is not False:
            self._failing = False
            event(log, logging.INFO, "audit.opened", path=str(file.path), **_head(file))

    async def _failed(self, file: AuditFile, error: OSError) -> None:
        self._metrics.audit_failures.inc()
        self._again_s = self._clock.monotonic() + RETRY_S
        if not self._failing:
            self._failing = True
            event(log, logging.ERROR, "audit.failed", path=str(file.path), detail=error.strerror,
                  effect="the agent goes on; notes wait")  # fmt: skip
        with contextlib.suppress(OSError):
            await file.close()

    def _first(self) -> list[Noted]:
        with self._lock:
            self._told = False  # before the queue is read: a later note tells again
            return self._notes.first(ENTRIES_MAX, self._clock.wall())

    def _done(self, count: int) -> None:
        with self._lock:
            self._notes.done(count)

    def _count_dead_letters(self, *, ending: bool) -> None:
        now_s = self._clock.monotonic()
        if not ending and now_s - self._counted_s < COUNT_S:
            return
        total = self._dead_letters()
        new = {reason: n - self._counted.get(reason, 0) for reason, n in total.items()}
        if any(new.values()):
            counts = {reason: n for reason, n in new.items() if n}
            self.note("dead_letters.counted", counts=counts, since=self._since)
        self._counted, self._counted_s, self._since = total, now_s, _rfc3339(self._clock.wall())

    # ---- what is written of a value

    def _entry(self, note: Noted) -> Entry:
        fields = {
            name: self._plain(value, quoted=name in QUOTED) for name, value in note.fields.items()
        }
        return Entry(_rfc3339(note.at_s), note.event, fields)

    def _plain(self, value: object, *, quoted: bool = False) -> object:
        if value is None or isinstance(value, float) or (isinstance(value, int) and _fits(value)):
            return value
        if isinstance(value, Mapping):
            return {escaped(str(key)): self._plain(item) for key, item in value.items()}
        text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
        return escaped(self._shown(text) if quoted else text)


def _head(file: AuditFile) -> dict[str, object]:
    """Say where the chain ends: who keeps the log of the process elsewhere keeps an anchor."""
    assert file.head is not None
    return {"seq": file.head.seq, "head": file.head.hash}


def _fits(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


def _rfc3339(wall_s: float) -> str:
    at = datetime.fromtimestamp(wall_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
