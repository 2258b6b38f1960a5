"""Files that an operator names: read whole, bounded, and never waited for."""

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Regular(NamedTuple):
    content: bytes
    mode: int


def read(path: Path, bytes_max: int) -> Regular:
    """Return what the file holds, links followed. Raises ``OSError`` or ``ValueError``."""
    # Not blocking: a FIFO in its place must not hold the agent up.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("not a regular file")
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise ValueError(f"more than {bytes_max} bytes")
    return Regular(content, mode)


def problem(error: OSError | ValueError) -> str:
    """Say what is wrong with a file, in the system's words or ours."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
