"""One cluster for all of xdist's workers: who starts it, whose turn it is, who stops it."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.faults.cluster import Brokers, Kafka, stop

K = TypeVar("K", bound=Kafka)


@contextmanager
def shared(run: Path, start: Callable[[Path], K]) -> Iterator[K]:
    """The first user starts a cluster in ``run``, or finds it running; the last one stops it."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / "users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield start(run)
        finally:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stop(run)
            except BlockingIOError:
                pass  # another worker has it still


@contextmanager
def turn(run: Path) -> Iterator[None]:
    """Have the cluster in ``run`` to oneself: only now may its nodes come to harm."""
    with (run / "turn").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def three_in_turn(run: Path) -> Brokers:
    """Start three nodes in ``run``, or find them running.

    It waits for the turn: where another has killed all three for a while, scripts/kafka would see
    what a reboot leaves, and start another cluster in their place.
    """
    with turn(run):
        return Brokers(run)
