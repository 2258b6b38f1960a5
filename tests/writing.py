"""An app of many threads that writes by ``agent.writer`` and notes what it was told is written.

    python -m tests.writing --directory DIR --notes FILE --lines N --threads T

``FILE`` holds, for each thread, how many lines ``write`` has said are written: eight bytes at
``8 * thread``. Killed and started again it goes on there, so each number is on disk at least once.
"""

import argparse
import os
import threading
import time
from pathlib import Path

from agent.writer import FeedbackWriter

ROTATE_BYTES = 256 << 10
LONG_EVERY, LONG = 50, 9000
"""Now and then a line of several pages: SIGKILL may cut a write between two of them."""
PAUSE_S = 0.25
"""After such a line, so that there is time for kills."""


def noted(notes: Path, threads: int) -> list[int]:
    """Return how many lines each thread has written for sure."""
    content = notes.read_bytes() if notes.exists() else b""
    content = content.ljust(8 * threads, b"\0")
    return [int.from_bytes(content[8 * n : 8 * n + 8], "little") for n in range(threads)]


def _write(writer: FeedbackWriter, notes: int, thread: int, begin: int, lines: int) -> None:
    for n in range(begin, lines):
        comment = "x" * (LONG if n % LONG_EVERY == 0 else n % 97)
        while not writer.user_feedback(f"s{thread}", comment=comment, metadata={"n": n}):
            pass
        os.pwrite(notes, (n + 1).to_bytes(8, "little"), 8 * thread)
        if n % LONG_EVERY == 0:
            time.sleep(PAUSE_S)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.writing")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--lines", type=int, required=True, help="of each thread")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    begins = noted(arguments.notes, arguments.threads)
    fd = os.open(arguments.notes, os.O_RDWR | os.O_CREAT, 0o600)
    with FeedbackWriter(arguments.directory, rotate_bytes=ROTATE_BYTES, bytes_max=1 << 40) as w:
        threads = [
            threading.Thread(target=_write, args=(w, fd, n, begin, arguments.lines))
            for n, begin in enumerate(begins)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
