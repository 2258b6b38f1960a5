"""The clients, each kind a process of its own: many that write a little, and one that floods."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, NamedTuple

TICK_S = 0.01
"""Between two writes of the one that floods."""


class Written(NamedTuple):
    lines: int
    took_s: float


def line(**metadata: object) -> bytes:
    """Return a good line, its LF included."""
    fields = {
        "type": "user_feedback",
        "timestamp": "2026-01-01T00:00:00Z",
        "session_id": "s7",
        "rating": 4,
        "comment": "Worked on the second attempt.",
        "metadata": metadata,
    }
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def write_little(files: list[Path], lines_per_s: float, seconds: float, tell: Connection) -> None:
    """Append a line to one file after the other, ``lines_per_s`` to each; tell ``Written``.

    Each says when it was written, in nanoseconds since the epoch. Who is late writes late: what is
    measured begins with the write.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(path.open("ab", buffering=0)) for path in files]
        pause_s = 1 / (lines_per_s * len(files))
        tell.send(_paced(lambda n: _stamped(opened[n % len(opened)]), pause_s, seconds))


def _stamped(file: BinaryIO) -> int:
    file.write(line(written_at_ns=time.time_ns()))
    return 1


def flood(path: Path, lines_per_s: float, seconds: float, tell: Connection) -> None:
    """Append to ``path`` as many lines at once as are due; tell ``Written``."""
    block = int(lines_per_s * TICK_S)
    text = line() * block
    with path.open("ab", buffering=0) as file:

        def write(_: int) -> int:
            wrote = os.write(file.fileno(), text)
            assert wrote == len(text), "a full disk is not part of it"
            return block

        tell.send(_paced(write, TICK_S, seconds))


def _paced(write: Callable[[int], int], pause_s: float, seconds: float) -> Written:
    """Call ``write`` with 0, 1, 2 and so on, ``pause_s`` after one another, for ``seconds``."""
    began_s, lines, number = time.monotonic(), 0, 0
    while (now_s := time.monotonic()) < began_s + seconds:
        due_s = began_s + number * pause_s
        if due_s > now_s:
            time.sleep(due_s - now_s)
        lines += write(number)
        number += 1
    return Written(lines, time.monotonic() - began_s)
