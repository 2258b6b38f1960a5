"""A real overlayfs for tests, in namespaces of its own: nothing is mounted outside, and it ends
with the process that holds it.

Copy-up: a file of the lower layer that is written to through the overlay becomes another one in
the upper layer, with another birth time. Who had it open before went on seeing the old one until
Linux 4.19.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import WITHIN_S

_MOUNT = (
    'mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work,userxattr"'
    ' "$1/merged" && echo mounted && exec cat'
)


class Overlay:
    """``lower`` is written to from outside; ``merged`` exists only for what ``prefix`` starts."""

    def __init__(self, base: Path, holder_pid: int) -> None:
        self.lower = base / "lower"
        self.merged = base / "merged"
        self.prefix = [
            *("nsenter", "--target", str(holder_pid)),
            *("--user", "--mount", "--preserve-credentials", "--"),
        ]

    def run(self, *command: str, text: bytes = b"") -> bytes:
        """Run a command where ``merged`` is; return what it printed."""
        done = subprocess.run(
            [*self.prefix, *command], input=text, capture_output=True, check=False, timeout=WITHIN_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def append(self, path: str, text: bytes) -> None:
        """Append through the overlay to ``path``, relative to its root."""
        self.run("sh", "-c", 'exec cat >>"$1"', "sh", str(self.merged / path), text=text)


@contextmanager
def mounted(base: Path) -> Iterator[Overlay]:
    """Mount an overlay over ``base``/lower at ``base``/merged; skip where that is not allowed."""
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"no overlay: {tool} missing")
    for directory in ("lower", "upper", "work", "merged"):
        (base / directory).mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no overlay: {holder.stderr.read().decode().strip()}")
        try:
            yield Overlay(base, holder.pid)
        finally:
            holder.stdin.close()
