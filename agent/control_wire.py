"""What both ends of the control socket agree on: where it is, and how a line looks."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

NAME = "control.sock"
VERSION = 1
ANSWER_S = 60.0
"""Within which the next item must come, or be taken."""
ADDRESS_BYTES_MAX = 107
"""Of ``sun_path``, the NUL at its end left off (unix(7))."""

_ASCII = json.JSONEncoder().encode  # and not msgspec: it takes a path that is not UTF-8


def encoded(said: object) -> bytes:
    """Return one line of JSON."""
    return _ASCII(said).encode() + b"\n"


@contextlib.contextmanager
def address_in(directory: Path) -> Iterator[str]:
    """Yield by what the socket can be reached, a short way where its own path is too long."""
    path = str(directory / NAME)
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield path
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)
