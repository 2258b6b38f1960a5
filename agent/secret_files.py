"""Secrets stand in files: read when they are needed, never kept longer than they are good.

What a file holds is used from the next time on that somebody asks, without a restart. While it is
missing or bad the last good one stays; that is said once. Nothing here ever shows a secret.
"""

import logging
import os
import re
import stat
from pathlib import Path

from agent.telemetry import event

log = logging.getLogger(__name__)

SECRET_BYTES_MAX = 64 << 10
CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


class SecretMissing(Exception):
    """There is none, and never was a good one. ``str()`` names the file and what is wrong."""


class SecretFile:
    """One secret in one file: UTF-8, one line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._good: str | None = None
        self._said: str | None = None
        self._exposed = False

    def text(self) -> str:
        """Return what the file holds now, else the last good one. Raises ``SecretMissing``."""
        try:
            text = self._read()
        except (OSError, ValueError) as error:
            wrong = problem(error)
            if self._good is None:
                raise SecretMissing(f"{self._path}: {wrong}") from None
            if wrong != self._said:
                event(log, logging.WARNING, "secret.unusable", file=self._path, detail=wrong)
            self._said = wrong
            return self._good
        if self._good is not None and text != self._good:
            event(log, logging.INFO, "secret.changed", file=self._path)
        self._good, self._said = text, None
        return text

    def _read(self) -> str:
        # Not blocking: a FIFO in its place must not hold the agent up.
        with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError("not a regular file")
            raw = file.read(SECRET_BYTES_MAX + 1)
        if len(raw) > SECRET_BYTES_MAX:
            raise ValueError(f"more than {SECRET_BYTES_MAX} bytes")
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError:  # it would quote what it found
            raise ValueError("not UTF-8") from None
        if not text or CONTROLS.search(text):
            raise ValueError("more than one line" if text else "empty")
        if not self._exposed and mode & stat.S_IROTH:
            self._exposed = True
            say_exposed(self._path, mode)
        return text


def say_exposed(path: Path, mode: int) -> None:
    """Warn of a secret that everybody on this machine may read."""
    event(log, logging.WARNING, "secret.exposed", file=path, mode=f"{stat.S_IMODE(mode):04o}")


def problem(error: OSError | ValueError) -> str:
    """Say what is wrong with a file, in the system's words or ours."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)
