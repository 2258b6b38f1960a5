"""What an event costs the thread that writes it: ``scripts/bench/writer`` runs this.

    python -m tests.cost [--events N] [--directory DIR]

The median of many short rounds and the best of them, in microseconds, for each way to write.
"""

import argparse
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from agent.writer import AsyncFeedbackWriter, FeedbackHandler, FeedbackWriter

ROUNDS = 140
"""Short ones, so that some of them meet nobody else on the machine."""
THREADS, THREAD_ROUNDS = 8, 20
COMMENT = "Answer was right, but it took three tries."
EVENT = {"type": "user_feedback", "session_id": "session-17", "rating": 4, "comment": COMMENT}
LARGE = {**EVENT, "comment": COMMENT * 100}


def mean_us(once: Callable[[], object], events: int) -> float:
    began_s = time.perf_counter()
    for _ in range(events):
        once()
    return (time.perf_counter() - began_s) / events * 1e6


def rounds_us(once: Callable[[], object], events: int) -> list[float]:
    return [mean_us(once, max(1, events // ROUNDS)) for _ in range(ROUNDS)]


def of_threads_us(writer: FeedbackWriter, events: int) -> list[float]:
    """Return the time from start to end by the events of all threads together."""

    def together_us() -> float:
        each = max(1, events // THREADS // THREAD_ROUNDS)
        threads = [
            threading.Thread(target=mean_us, args=(lambda: writer.write(EVENT), each))
            for _ in range(THREADS)
        ]
        began_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - began_s) / (each * THREADS) * 1e6

    return [together_us() for _ in range(THREAD_ROUNDS)]


def costs(directory: Path, events: int) -> dict[str, list[float]]:
    log = logging.Logger("app")  # noqa: LOG001  of this program alone
    with (
        FeedbackWriter(directory) as writer,
        FeedbackWriter(directory, name="synced", fsync="line") as synced,
        AsyncFeedbackWriter(directory, name="queued", queue_bytes_max=1 << 30) as queued,
    ):
        log.addHandler(FeedbackHandler(writer))
        return {
            "write": rounds_us(lambda: writer.write(EVENT), events),
            "user_feedback": rounds_us(
                lambda: writer.user_feedback("session-17", rating=4, comment=COMMENT), events
            ),
            "write, 4 KB": rounds_us(lambda: writer.write(LARGE), events),
            f"write, {THREADS} threads": of_threads_us(writer, events),
            "logging": rounds_us(lambda: log.info("x", extra={"feedback": EVENT}), events),
            "AsyncFeedbackWriter.write": rounds_us(lambda: queued.write(EVENT), events),
            'write, fsync="line"': rounds_us(lambda: synced.write(EVENT), events // 50),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/writer")
    parser.add_argument("--events", type=int, default=70_000, help="of each row")
    parser.add_argument("--directory", type=Path, help="on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        print("| us an event | median | best |\n|---|---|---|")  # noqa: T201  what it is for
        for name, found_us in costs(Path(directory), arguments.events).items():
            print(f"| `{name}` | {median(found_us):.1f} | {min(found_us):.1f} |")  # noqa: T201
    print(f"Python {sys.version.split()[0]}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
