"""Clusters for the faults, one of three nodes and one that knows ACLs, for a whole session."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests import real_kafka
from tests.conftest import RUN
from tests.faults.cluster import Brokers, Kafka, guarded, stop

K = TypeVar("K", bound=Kafka)


@pytest.fixture(scope="session")
def three_brokers(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    with _shared(request.config.stash[RUN] / "three", Brokers) as found:
        yield found


@pytest.fixture
def brokers(three_brokers: Brokers, request: pytest.FixtureRequest) -> Iterator[Brokers]:
    """All three, well, and nobody else's while the test runs."""
    with (request.config.stash[RUN] / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield three_brokers


@pytest.fixture(scope="session")
def guarded_broker(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """One that knows ACLs; nobody harms it, so any number of tests have it at a time."""
    with _shared(request.config.stash[RUN] / "guarded", guarded) as found:
        yield found


@contextmanager
def _shared(run: Path, start: Callable[[Path], K]) -> Iterator[K]:
    """The first of xdist's workers starts a cluster, the last one stops it."""
    if lacking := real_kafka.missing():
        pytest.skip(f"no real Kafka: {' and '.join(lacking)} missing")
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
