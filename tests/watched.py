"""Commands that go on until Ctrl-C, and what they print meanwhile."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.patience import WITHIN_S

# What runs in the background of a script ignores SIGINT, and so do its children.
_AGENT = ["env", "--default-signal=INT", sys.executable, "-m", "agent"]


@contextmanager
def watching(*words: str | Path, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, in the end not longer than the block: where that fails, nobody ends it."""
    with subprocess.Popen([*_AGENT, *words], **how) as running:
        try:
            yield running
        finally:
            running.kill()


def screen(*words: str | Path, until: str, times: int = 1, **environment: str) -> str:
    """Return what a terminal got until it showed that so often; then comes Ctrl-C."""
    ours, theirs = pty.openpty()
    variables: Mapping[str, str] = {**os.environ, "TERM": "xterm", **environment}
    with (
        os.fdopen(ours, "rb", buffering=0) as terminal,
        watching(*words, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as running,
    ):
        os.close(theirs)
        got = b""
        while got.count(until.encode()) < times:
            got += terminal.read(65536)
        running.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end is closed: EIO
            while more := terminal.read(65536):
                got += more
        assert 0 == running.wait(WITHIN_S), got
    return got.decode()
