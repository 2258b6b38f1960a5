"""Secrets stand in files: read when they are needed, never kept longer than they are good.

What a file holds is used from the next time on that somebody asks, without a restart. While it is
missing or bad the last good one stays; ``agent.reloading`` says so. Nothing here ever shows a
secret.
"""

import logging
import re
import stat
from pathlib import Path

from agent.regular import problem, read
from agent.telemetry import event

log = logging.getLogger(__name__)

SECRET_BYTES_MAX = 64 << 10
CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


class SecretMissing(Exception):
    """There is no good one. ``str()`` names the file and what is wrong."""


class SecretFile:
    """One secret in one file: UTF-8, one line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._good: str | None = None
        self._exposed = False

    def text(self) -> str:
        """Return what the file holds now, else the last good one. Raises ``SecretMissing``."""
        try:
            return self.read()
        except SecretMissing:
            if self._good is None:
                raise
            return self._good

    def read(self) -> str:
        """Return what the file holds now. Raises ``SecretMissing``."""
        try:
            self._good = self._read()
        except (OSError, ValueError) as error:
            raise SecretMissing(f"{self._path}: {problem(error)}") from None
        return self._good

    def _read(self) -> str:
        raw, mode = read(self._path, SECRET_BYTES_MAX)
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
