"""What went wrong lately, for who asks the running agent: the last warning or error of each name.

By name, so that a flood of one hides no other, and so that all of it is bounded.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agent.logs import JsonFormatter

NAMES_MAX = 20


class Lately(logging.Handler):
    """Keeps at most ``NAMES_MAX`` records of ours, as they were logged, and how many there were.

    Names and texts are made fit to be shown when asked for: rules may have changed since.
    """

    def __init__(self, shown: Callable[[str], str] = str) -> None:
        super().__init__(logging.WARNING)
        self._kept: OrderedDict[str, tuple[int, logging.LogRecord]] = OrderedDict()
        self.setFormatter(JsonFormatter(shown))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what the rooms log, until the end of the block."""
        ours = logging.getLogger("agent")
        ours.addHandler(self)
        try:
            yield
        finally:
            ours.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        name = str(record.msg)
        count, _ = self._kept.pop(name, (0, None))
        self._kept[name] = count + 1, record
        if len(self._kept) > NAMES_MAX:
            self._kept.popitem(last=False)

    def problems(self) -> list[dict[str, object]]:
        """Return the latest first: event, at, level, count and the fields of the last one."""
        self.acquire()
        try:
            kept = [*reversed(self._kept.values())]
        finally:
            self.release()
        return [_problem(json.loads(self.format(record)), count) for count, record in kept]


def _problem(entry: dict[str, Any], count: int) -> dict[str, object]:
    named = {key: entry.pop(key) for key in ("event", "at", "level")}
    for ours in ("logger", "exception"):  # a traceback is for the log
        entry.pop(ours, None)
    return {**named, "count": count, "fields": entry}
