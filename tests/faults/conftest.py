"""Clusters for the faults, one of three nodes and one that knows ACLs, for a whole session."""

from collections.abc import Iterator

import pytest

from tests import real_kafka
from tests.conftest import RUN
from tests.faults.cluster import Brokers, Kafka, guarded
from tests.faults.sharing import shared, three_in_turn, turn


@pytest.fixture(scope="session")
def real() -> None:
    """Kafka can be started here."""
    if lacking := real_kafka.missing():
        pytest.skip(f"no real Kafka: {' and '.join(lacking)} missing")


@pytest.fixture(scope="session")
def three_brokers(real: None, request: pytest.FixtureRequest) -> Iterator[Brokers]:
    with shared(request.config.stash[RUN] / "three", three_in_turn) as found:
        yield found


@pytest.fixture
def brokers(three_brokers: Brokers, request: pytest.FixtureRequest) -> Iterator[Brokers]:
    """All three, well, and nobody else's while the test runs."""
    with turn(request.config.stash[RUN] / "three"):
        yield three_brokers


@pytest.fixture(scope="session")
def guarded_broker(real: None, request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """One that knows ACLs; nobody harms it, so any number of tests have it at a time."""
    with shared(request.config.stash[RUN] / "guarded", guarded) as found:
        yield found
