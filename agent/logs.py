"""How a log line looks, and what a flood of them costs.

A value that came from a file or the network (a path!) is escaped, so it can neither forge a line
nor drive a terminal. A flood costs one line, not a disk: a library may repeat a message once in
``LIBRARY_QUIET_S``, an event of ours once in ``QUIET_S`` after a burst of ``BURST``.
"""

import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TextIO

import msgspec

from agent.clock import Clock, SystemClock

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console"]

LIBRARY_QUIET_S = 30.0
QUIET_S = 10.0
BURST = 20
KEPT_NAMES_MAX = 1024
TEXT_CHARACTERS_MAX = 2048
_ROUNDING = 1e-6  # sums of fractions of a token
TAMED = ("aiokafka", "asyncio", "grpc", "opentelemetry", "watchdog")

Copy = Callable[[logging.LogRecord, Mapping[str, object]], None]
"""Takes a record that is written, and what is written of it."""


def escaped(text: str) -> str:
    """Return ``text`` without any character that could end a line, hide or drive a terminal.

    Bytes of a file name that are not UTF-8 (surrogates) become ``\\udcff`` and the like. At most
    ``TEXT_CHARACTERS_MAX`` characters of the text are kept.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        text = text[:TEXT_CHARACTERS_MAX] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _ours(record: logging.LogRecord) -> bool:
    return record.name == "agent" or record.name.startswith("agent.")


def _fits(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


class _Formatter(logging.Formatter):
    """``shown`` says what is written of any text but names that are constant: a path or the name
    of a client, and what a library, an error or a traceback may quote."""

    def __init__(self, shown: Callable[[str], str] = str) -> None:
        super().__init__()
        self._shown = shown

    def entry(self, record: logging.LogRecord) -> dict[str, object]:
        """Return what is written of ``record``: plain values, redacted and escaped."""
        message = record.getMessage()
        entry: dict[str, object] = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": escaped(record.name),
            "event": escaped(message if _ours(record) else self._shown(message)),
        }
        fields: Mapping[str, object] = getattr(record, "fields", {})
        entry |= {escaped(key): self._safe(value) for key, value in fields.items()}
        if suppressed := getattr(record, "suppressed", 0):
            entry["suppressed"] = suppressed
        if record.exc_info:
            lines = self._shown(self.formatException(record.exc_info)).split("\n")
            entry["exception"] = "\n".join(escaped(line) for line in lines)
        return entry

    def _safe(self, value: object) -> object:
        if value is None or isinstance(value, float) or (isinstance(value, int) and _fits(value)):
            return value
        if isinstance(value, Mapping):
            return {self._text(str(key)): self._safe(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._safe(item) for item in value]
        return self._text(os.fsdecode(value) if isinstance(value, bytes) else str(value))

    def _text(self, text: str) -> str:
        return escaped(self._shown(text))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return the record's time as RFC 3339 in UTC, with milliseconds."""
        at = datetime.fromtimestamp(record.created, UTC)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(_Formatter):
    """One JSON object a line: at, level, logger, event, the fields, and maybe an exception."""

    def format(self, record: logging.LogRecord) -> str:
        return msgspec.json.encode(self.entry(record)).decode()


class ConsoleFormatter(_Formatter):
    """For people: time, level, event, fields; a traceback on indented lines of its own."""

    COLOURS = MappingProxyType({"debug": "2", "warning": "33", "error": "31", "critical": "31;1"})

    def __init__(self, shown: Callable[[str], str] = str, *, coloured: bool) -> None:
        super().__init__(shown)
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        entry = self.entry(record)
        at, level = str(entry.pop("at"))[11:-1], str(entry.pop("level"))
        exception = str(entry.pop("exception", ""))
        logger, name = entry.pop("logger"), str(entry.pop("event"))
        head = f"{level:<8}"
        if self._coloured and level in self.COLOURS:
            head = f"\x1b[{self.COLOURS[level]}m{head}\x1b[0m"
        fields = "".join(f" {key}={_word(value)}" for key, value in entry.items())
        trace = "".join(f"\n    {line}" for line in exception.split("\n")) if exception else ""
        return f"{at} {head} {name}{fields} [{logger}]{trace}"


def _word(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set(" =\"'"):
        return value
    return msgspec.json.encode(value).decode()


class Floodgate(logging.Filter):
    """Lets the first records of a name through, then one now and then, and counts the rest.

    The next record that passes carries the count as ``suppressed``. Errors are counted apart from
    what is less severe, so that no flood of warnings keeps one back. Of at most ``KEPT_NAMES_MAX``
    names a history is kept. Critical records always pass; aiokafka's below WARNING never do, since
    it logs keys and values there.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str, bool], _Name] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == "aiokafka" and record.levelno < logging.WARNING:
            return False
        if record.levelno >= logging.CRITICAL:
            return True
        severe = record.levelno >= logging.ERROR
        key = record.name, str(record.msg)[:TEXT_CHARACTERS_MAX], severe
        name = self._seen.get(key)
        if name is None:
            name = self._seen[key] = _Name(_ours(record), self._clock.monotonic())
            if len(self._seen) > KEPT_NAMES_MAX:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        if not name.may_pass(self._clock.monotonic()):
            name.suppressed += 1
            return False
        if name.suppressed:
            record.suppressed, name.suppressed = name.suppressed, 0
        return True


class _Name:
    """A token bucket: ``burst`` at once, then one in ``quiet_s``."""

    __slots__ = ("_at_s", "_burst", "_quiet_s", "_tokens", "suppressed")

    def __init__(self, ours: bool, now_s: float) -> None:
        self._burst, self._quiet_s = (BURST, QUIET_S) if ours else (1, LIBRARY_QUIET_S)
        self._tokens = float(self._burst)
        self._at_s = now_s
        self.suppressed = 0

    def may_pass(self, now_s: float) -> bool:
        earned = (now_s - self._at_s) / self._quiet_s
        self._tokens, self._at_s = min(self._burst, self._tokens + earned), now_s
        if self._tokens < 1.0 - _ROUNDING:
            return False
        self._tokens -= 1.0
        return True


class _Stream(logging.StreamHandler[TextIO]):
    """Ours, so that a second ``setup`` finds and replaces the first one."""

    def __init__(self, stream: TextIO, formatter: _Formatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self.copy: Copy | None = None
        self._entry = formatter.entry

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self.copy is not None:
            self.copy(record, self._entry(record))


def copy_to(copy: Copy | None) -> None:
    """Let ``copy`` have all that is written from now on; None: nobody. Call ``setup`` before."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stream):
            handler.copy = copy


def setup(
    level: Level,
    format: Format | None = None,  # noqa: A002  the key is called so
    stream: TextIO | None = None,
    clock: Clock | None = None,
    shown: Callable[[str], str] = str,
) -> logging.Handler:
    """Send all logging to ``stream`` (stderr), as console on a terminal and else as JSON."""
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    chosen = format or ("console" if terminal else "json")
    coloured = terminal and not os.environ.get("NO_COLOR")
    handler = _Stream(
        stream,
        JsonFormatter(shown) if chosen == "json" else ConsoleFormatter(shown, coloured=coloured),
    )
    handler.addFilter(Floodgate(SystemClock() if clock is None else clock))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Stream)]:
        root.removeHandler(old)
    root.addHandler(handler)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(threshold)
    for name in TAMED:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(capture=True)
    return handler
