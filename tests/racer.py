"""A process that exchanges two names without end: ``python -m tests.racer ONE OTHER``.

renameat2(2) with RENAME_EXCHANGE: both names are always there. It prints a line when it begins and
ends with its standard input.
"""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_BETWEEN_LOOKS = 1000


@contextmanager
def racing(one: Path, other: Path) -> Iterator[None]:
    """Let a process exchange ``one`` and ``other`` until the end of the block."""
    arguments = [sys.executable, "-m", "tests.racer", str(one), str(other)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as racer:
        assert racer.stdin is not None
        assert racer.stdout is not None
        assert racer.stdout.readline(), "the racer did not begin"
        try:
            yield
            assert racer.poll() is None, "the racer ended before the race"
        finally:
            racer.stdin.close()
    assert racer.returncode == 0


def main(one: str, other: str) -> None:
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    sys.stdout.write("racing\n")
    sys.stdout.flush()
    while not ended.is_set():
        for _ in range(_BETWEEN_LOOKS):
            assert exchange(*paths) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    main(*sys.argv[1:])
