"""The app's side: write feedback events to files that feedback-agent ships to Kafka.

One file, the standard library alone, Python 3.9 or later: install the package, or copy this file.

    writer = FeedbackWriter("/var/lib/feedback/checkout")
    writer.user_feedback("session-17", rating=4, comment="Quick and right.")
    writer.write({"type": "system_health", "service_name": "router", "status": "healthy"})

``write`` returns True once the line is with the kernel: from then on it survives the death of this
process, and with ``fsync="line"`` a power cut. It returns False where the event was refused, and
``stats()`` counts why; it raises nothing unless ``strict`` asks for it. Make one writer and use it
from every thread, and from every process that was forked after: each process has files of its own.

    <directory>/<name>-<time>-<pid>-<random>.jsonl      is written to
    <directory>/<name>-<time>-<pid>-<random>.jsonl.1    is finished: its process rotated or ended

No line is ever changed or cut off once it was begun. After a short write, a full disk for one, the
next line starts with a newline, so that the torn one stays alone. What a process left behind when
it was killed is finished by the next writer of the same name in that directory.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Callable, NamedTuple

LINE_BYTES_MAX = 786432
"""``source.line_bytes_max`` of the agent, newline not counted: a longer line is a dead letter."""
LOOK_S = 1.0
"""Between two looks at whether the open file is still there, and two tries to open another one."""
_LEFT = {errno.EBADF, errno.ESTALE, errno.EFBIG}  # this file takes no more, another one may
_FSYNC = ("never", "rotate", "line")
_WHEN_FULL = ("drop_oldest", "refuse")


class Refused(Exception):
    """An event was not written. ``reason``, also in ``stats()`` as ``refused_<reason>``:

    ``not_json`` (no object, NaN or Infinity in it, a value that is none of JSON), ``oversize``,
    ``disk`` (full or failing), ``full`` (``bytes_max``, with ``when_full="refuse"``), ``queue``
    (``queue_bytes_max``), ``busy`` (another thread holds the disk for ``wait_s``), ``closed``;
    ``error`` is any other exception, a bug.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Settings(NamedTuple):
    """What the arguments of ``FeedbackWriter`` mean.

    Attributes:
        directory: Where this app's files go; made where it is missing.
        name: Begins the name of each file. One name for each app that shares a directory.
        rotate_bytes: A file is finished before it grows longer.
        rotate_age_s: And by the first line that comes so long after its first one.
        bytes_max: Of all files of this name in the directory, what is still to be written to the
            open ones included. Let it be several times ``rotate_bytes`` for each process.
        when_full: Beyond ``bytes_max``: ``drop_oldest`` deletes finished files, the oldest first,
            shipped or not; ``refuse`` takes no new events until there is room.
        fsync: What survives a power cut: what the kernel wrote back by itself (``never``), each
            finished file (``rotate``), each line (``line``, a wait for the disk each time).
        mode: Of the files, whatever the umask. The agent must be able to read them.
        strict: Raise ``Refused`` in place of returning False.
        wait_s: How long ``write`` waits at most while another thread is at the disk.
        queue_bytes_max: Of ``AsyncFeedbackWriter``: lines on their way to its thread.
    """

    directory: str
    name: str = "feedback"
    rotate_bytes: int = 16 << 20
    rotate_age_s: float = 3600.0
    bytes_max: int = 2 << 30
    when_full: str = "drop_oldest"
    fsync: str = "never"
    mode: int = 0o644
    strict: bool = False
    wait_s: float = 1.0
    queue_bytes_max: int = 8 << 20

    def check(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"name: letters, digits, _ and - only: {self.name!r}")
        if self.fsync not in _FSYNC or self.when_full not in _WHEN_FULL:
            raise ValueError(f"fsync is one of {_FSYNC}, when_full one of {_WHEN_FULL}")
        if not 0 < 2 * self.rotate_bytes <= self.bytes_max:
            raise ValueError("bytes_max: at least twice rotate_bytes")


class FeedbackWriter:
    """Writes events; safe to use from many threads and across fork. See ``Settings``."""

    def __init__(self, directory: str | os.PathLike[str], **settings: Any) -> None:
        self._settings = Settings(os.path.abspath(directory), **settings)  # it may chdir
        self._settings.check()
        self._files: dict[int, _Files] = {}  # by process id: a forked child begins its own
        self._closed = False
        _open_writers.add(self)

    def write(self, event: Mapping[str, Any]) -> bool:
        """Append one event. ``event_id`` (UUIDv7) and ``timestamp`` are added where it has none."""
        return self._put(line_of, event)

    def write_line(self, line: bytes) -> bool:
        """Append a line that the app has encoded itself, its newline included. Adds nothing."""
        return self._put(checked, line)

    def _put(self, encode: Callable[[Any], bytes], what: Any) -> bool:
        files = self._of_this_process()
        try:
            files.append(encode(what), closed=self._closed)
        except Exception as error:  # whatever it is, it is not worth a request of the app
            files.count("refused_" + getattr(error, "reason", "error"))
            if self._settings.strict:
                raise
            return False
        return True

    def user_feedback(
        self, session_id: str, *, rating: float | None = None, thumbs: str | None = None,
        comment: str | None = None, tags: list[str] | None = None, user_id: str | None = None,
        request_id: str | None = None, metadata: dict[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """What a user thought of an answer: ``rating`` 0 to 5, ``thumbs`` "up" or "down"."""
        return self.write(_event("user_feedback", locals()))

    def performance_metrics(
        self, model_id: str, latency_ms: float, *, request_id: str | None = None,
        provider: str | None = None, tokens_input: int | None = None,
        tokens_output: int | None = None, tokens_total: int | None = None,
        cost_usd: float | None = None, success: bool | None = None, error_type: str | None = None,
        cache_hit: bool | None = None, custom_metrics: dict[str, float] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """What one call of a model took and cost."""
        return self.write(_event("performance_metrics", locals()))

    def model_response(
        self, model_id: str, *, request_id: str | None = None, quality_score: float | None = None,
        quality_dimensions: dict[str, float] | None = None, prompt_hash: str | None = None,
        response_length: int | None = None, finish_reason: str | None = None,
        model_params: dict[str, float] | None = None, metadata: dict[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """How good an answer was: ``quality_score`` 0 to 100, each dimension 0 to 1."""
        return self.write(_event("model_response", locals()))

    def system_health(
        self, service_name: str, status: str, *, error_rate: float | None = None,
        availability: float | None = None, resources: dict[str, float] | None = None,
        active_requests: int | None = None, metadata: dict[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """How a service is: ``status`` is "healthy", "degraded" or "unhealthy"."""
        return self.write(_event("system_health", locals()))

    def experiment_result(
        self, experiment_id: str, variant_id: str, *, experiment_type: str | None = None,
        request_id: str | None = None, reward: float | None = None,
        metrics: dict[str, float] | None = None, metadata: dict[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """What a variant earned: ``experiment_id`` is a UUID."""
        return self.write(_event("experiment_result", locals()))

    def rotate(self) -> None:
        """Finish the open file now; the next event begins another one."""
        self._of_this_process().rotate()

    def stats(self) -> dict[str, int]:
        """Return what this process has counted, for the app's own metrics. A count that is 0 is
        absent: written, written_bytes, rotated, dropped_files, dropped_bytes, refused_<reason>."""
        return dict(self._of_this_process().counts)

    def close(self) -> None:
        """Finish the open file. Called at the exit of the process too."""
        self._closed = True
        _open_writers.discard(self)
        self._of_this_process().close()

    def __enter__(self) -> Any:  # typing.Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _of_this_process(self) -> _Files:
        pid = os.getpid()  # asked each time: not every fork runs the hooks of Python
        return self._files.get(pid) or self._files.setdefault(pid, self._begin())

    def _begin(self) -> _Files:
        return _Files(self._settings)

    def _forked(self) -> None:
        for files in self._files.values():
            files.leave_to_parent()
        self._files.clear()


class AsyncFeedbackWriter(FeedbackWriter):
    """Never waits for the disk: ``write`` hands the line to a thread and returns. For event loops,
    and for threads that must go on whatever the disk does.

    True means queued: what is in the queue dies with the process, 8 MiB at most. ``close`` and the
    exit of the process wait up to 5 s for it; ``async with`` does so without holding the loop up.
    """

    def _begin(self) -> _Files:
        return _Queue(self._settings)

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what was queued is written. Return whether it is."""
        queue = self._of_this_process()
        return await asyncio.get_running_loop().run_in_executor(None, queue.drain, timeout_s)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)


class FeedbackHandler(logging.Handler):
    """Writes what log calls carry: ``log.info("rated", extra={"feedback": {"type": ...}})``.

    Records without ``feedback`` are none of its business. It does not close the writer.
    """

    def __init__(self, writer: FeedbackWriter, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "feedback", None)
        if event is not None:
            try:
                self._writer.write(event)
            except Refused:  # a strict writer; logging decides whether that is said
                self.handleError(record)


class _Files:
    """The files of one process, one of them open. Nobody else writes to them."""

    def __init__(self, settings: Settings) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._settings = settings
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._fd, self._path, self._identity = -1, "", (0, 0)
        self._bytes = 0
        self._torn = False  # the file may end in a part of a line
        self._old_s = self._look_s = self._retry_s = 0.0
        self._why = "disk"  # the last file could not be opened
        self._file_name = re.compile(
            re.escape(settings.name) + r"-\d{8}T\d{6}Z-\d+-[0-9a-f]{8}\.jsonl(\..+)?"
        )

    def count(self, what: str, of: int = 1) -> None:
        with self._counting:
            self.counts[what] += of

    def append(self, line: bytes, *, closed: bool = False) -> None:
        """Write one line; raises ``Refused``."""
        if closed:
            raise Refused("closed")
        if not self._lock.acquire(timeout=self._settings.wait_s):
            raise Refused("busy")
        try:
            self._ready(len(line))
            try:
                self._write(line)
            except OSError as error:
                if error.errno not in _LEFT:
                    raise
                if error.errno == errno.EBADF:
                    self._fd = -1  # the number may be another's by now
                self._leave()
                self._ready(len(line))
                self._write(line)
        except OSError as error:
            raise Refused("disk") from error
        finally:
            self._lock.release()

    def rotate(self) -> None:
        if self._lock.acquire(timeout=self._settings.wait_s):
            try:
                self._leave()
            finally:
                self._lock.release()

    def close(self) -> None:
        self.rotate()

    def drain(self, timeout_s: float) -> bool:
        return True

    def leave_to_parent(self) -> None:
        """In a forked child: the file, and the lock on it, are the parent's alone."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _ready(self, size: int) -> None:
        """Have a file open that has room for ``size`` bytes."""
        now_s = time.monotonic()
        if self._fd >= 0:
            if now_s >= self._look_s:
                self._look_s = now_s + LOOK_S
                self._look()
            if self._bytes and (
                now_s >= self._old_s or self._bytes + size > self._settings.rotate_bytes
            ):
                self._leave()
        if self._fd >= 0:
            return
        if now_s < self._retry_s:
            raise Refused(self._why)
        self._retry_s, self._why = now_s + LOOK_S, "disk"
        try:
            self._open()
        except Refused as refused:
            self._why = refused.reason
            raise
        self._retry_s = 0.0
        self._old_s, self._look_s = now_s + self._settings.rotate_age_s, now_s + LOOK_S

    def _write(self, line: bytes) -> None:
        """One write(2) a line: the agent never sees a part of it unless the disk is full."""
        text = b"\n" + line if self._torn else line
        torn, self._torn = self._torn, True  # until the opposite is known
        wrote = os.write(self._fd, text)
        self._bytes += wrote
        if wrote < len(text):
            raise OSError(errno.ENOSPC, "short write")
        self._torn = False
        if self._settings.fsync == "line":
            os.fdatasync(self._fd)
        self.counts["written"] += 1  # the lock is held; ``count`` touches other keys
        self.counts["written_bytes"] += wrote - torn

    def _open(self) -> None:
        """Begin a file. It is locked before it has its name: one without a lock is dead."""
        settings = self._settings
        os.makedirs(settings.directory, exist_ok=True)
        self._make_room()
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        stem = f"{settings.name}-{at}-{os.getpid()}-{os.urandom(4).hex()}"
        base = os.path.join(settings.directory, stem)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(base + ".new", flags, settings.mode)
        try:
            os.fchmod(fd, settings.mode)
            with contextlib.suppress(OSError):  # no locks here: then nobody else finds one either
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path = base + ".jsonl"
            os.rename(base + ".new", self._path)
            if settings.fsync != "never":
                self._sync_name()
            there = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._bytes, self._torn = fd, 0, False
        self._identity = there.st_dev, there.st_ino

    def _sync_name(self) -> None:
        fd = os.open(self._settings.directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _look(self) -> None:
        """Leave a file whose name is gone, and a descriptor that somebody closed and used anew."""
        try:
            there = os.fstat(self._fd)
            mine = (there.st_dev, there.st_ino) == self._identity
        except OSError:
            mine = False
        if not mine:
            self._fd = -1
        elif not os.path.exists(self._path):
            self._leave()

    def _leave(self) -> None:
        """Finish the open file: end a torn line, then let its name say that it is done."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            if self._torn:
                os.write(fd, b"\n")
            if self._settings.fsync != "never":
                os.fsync(fd)
            _finish(self._path)
            self.count("rotated")
        except OSError:  # whoever opens the next file finds it unlocked and does the rest
            self.count("unfinished")
        finally:
            os.close(fd)

    def _make_room(self) -> None:
        """Finish what dead processes left behind, and keep to ``bytes_max``."""
        finished, live = [], 1  # with the one to come
        for entry in os.scandir(self._settings.directory):
            match = self._file_name.fullmatch(entry.name)
            if match is None:
                continue
            path = entry.path if match[1] else _adopt(entry.path)
            if path is None:
                live += 1
                continue
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(path)
                finished.append((there.st_mtime_ns, there.st_size, path))
        over = sum(size for _, size, _ in finished) - self._settings.bytes_max
        over += live * self._settings.rotate_bytes
        if over > 0 and self._settings.when_full == "refuse":
            raise Refused("full")
        for _, size, path in sorted(finished):
            if over <= 0:
                break
            with contextlib.suppress(OSError):  # another process was first, or it is another's
                os.unlink(path)
                self.count("dropped_files")
                self.count("dropped_bytes", size)
                over -= size


class _Queue(_Files):
    """A thread that writes, and what is on its way to it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lines: collections.deque[bytes] = collections.deque()
        self._queued = 0  # bytes, those of the line that is being written included
        self._ended = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def append(self, line: bytes, *, closed: bool = False) -> None:
        if closed:
            raise Refused("closed")
        with self._changed:
            if self._queued + len(line) > self._settings.queue_bytes_max:
                raise Refused("queue")
            if self._thread is None:
                thread = threading.Thread(target=self._run, daemon=True)
                thread.start()
                self._thread = thread
            self._lines.append(line)
            self._queued += len(line)
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._queued, timeout_s)

    def close(self) -> None:
        self.drain(5.0)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        super().close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                if not self._lines:
                    return
                line = self._lines.popleft()
            try:
                super().append(line)
            except Refused as refused:
                self.count("refused_" + refused.reason)
            with self._changed:
                self._queued -= len(line)
                if not self._queued:
                    self._changed.notify_all()


def line_of(event: Mapping[str, Any]) -> bytes:
    """Return the line of an event, its newline included; raises ``Refused``."""
    now_ns = time.time_ns()
    try:
        fields = {**event}
        if fields.get("event_id") is None:
            fields["event_id"] = uuid7(now_ns)
        if fields.get("timestamp") is None:
            at = datetime.fromtimestamp(now_ns / 1e9, timezone.utc)
            fields["timestamp"] = at.isoformat(timespec="microseconds")
        text = _encode(fields)
    except Exception as error:  # an app's own object may raise anything
        raise Refused("not_json") from error
    try:
        line = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: the agent would reject it
        line = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
    return checked(line + b"\n")


def checked(line: bytes) -> bytes:
    """Return ``line`` if the agent reads it as one; raises ``Refused``."""
    if not line or line.find(b"\n") != len(line) - 1:
        raise Refused("not_json")
    if len(line) > LINE_BYTES_MAX + 1:
        raise Refused("oversize")
    return line


def uuid7(now_ns: int) -> str:
    """Return a UUIDv7 (RFC 9562, 5.7), with the part of a millisecond in rand_a (6.2, method 3).

    From the kernel: a ``random.seed`` of the app would give two processes the same ids.
    """
    ms, rest_ns = divmod(now_ns, 1_000_000)
    chance = int.from_bytes(os.urandom(8), "big")
    head, tail = f"{ms:012x}", f"{chance & 0xFFFF_FFFF_FFFF:012x}"
    fraction, variant = rest_ns * 4096 // 1_000_000, 0x8000 | chance >> 50
    return f"{head[:8]}-{head[8:]}-7{fraction:03x}-{variant:04x}-{tail}"


def _event(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in fields.items() if value is not None and name != "self"}
    return {"type": kind, **said}


def _utc(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _plain(value: Any) -> Any:
    """Turn what JSON has no word for into what it has."""
    for kinds, turn in _PLAIN:
        if isinstance(value, kinds):
            return turn(value)
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, without importing it
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON")


_PLAIN: tuple[tuple[Any, Any], ...] = (
    (datetime, _utc),
    ((uuid.UUID, date), str),
    (Decimal, lambda value: int(value) if value == value.to_integral_value() else float(value)),
    (Enum, lambda value: value.value),
    ((set, frozenset), list),
    (Mapping, dict),
)


def _finish(path: str) -> str:
    """Give a file the name of a finished one, unless that name is taken."""
    done = path + ".1"
    if os.path.exists(done):
        raise FileExistsError(done)
    os.rename(path, done)
    return done


def _adopt(path: str) -> str | None:
    """Finish the file of a process that is dead, which its lock tells. None: it lives."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")
            return _finish(path)
        finally:
            os.close(fd)
    except OSError:
        return None


def _after_fork() -> None:
    for writer in _open_writers:
        writer._forked()  # noqa: SLF001


def _at_exit() -> None:
    for writer in list(_open_writers):
        writer.close()


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
).encode
_open_writers: set[FeedbackWriter] = set()
os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
