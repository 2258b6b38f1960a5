"""Clients in metrics: named up to a bound, and no longer than they have files."""

import zlib

import pytest
from prometheus_client import CollectorRegistry

from agent.clients import NAME_CHARACTERS_MAX, NAMED_MAX, Clients, Known
from agent.core.discovery import Seen
from agent.telemetry import OTHER, Metrics
from tests.fakes import FakeClock


class World:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clock = FakeClock()
        self.clients = Clients(Metrics(self.registry), clock=self.clock)

    def scanned(self, *names: str, size: int = 10) -> int:
        return self.clients.scanned([one(name, size) for name in names])

    def lines(self, label: str) -> float | None:
        """Return how many lines were counted under ``label``."""
        name = "feedback_agent_client_lines_read_total"
        return self.registry.get_sample_value(name, {"client": label})

    def lag(self, of: str = "bytes") -> dict[str, float]:
        """Return the series of ``client_lag_bytes`` or ``client_lag_seconds``, by label."""
        return {
            sample.labels["client"]: sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"feedback_agent_client_lag_{of}"
        }


def one(client: str, size: int, *, mtime_s: int = 0, torn: bool = False) -> Known:
    inode = zlib.crc32(client.encode())
    seen = Seen(f"{client}/a.jsonl", client, inode, size, mtime_s * 10**9)
    return Known(client, seen, 0, torn)


@pytest.fixture
def world() -> World:
    return World()


def test_a_client_beyond_the_bound_is_one_of_the_others(world: World) -> None:
    """A thousand pods must not make a thousand series."""
    names = [f"client-{n}" for n in range(1000)]

    assert 10_000 == world.scanned(*names)

    lag = world.lag()
    assert NAMED_MAX + 1 == len(lag)
    assert 10 * (1000 - NAMED_MAX) == lag[OTHER]
    assert 10_000 == sum(lag.values())


def test_a_client_without_files_gives_its_place_away(world: World) -> None:
    """Pods come and go for weeks: those that are there are the ones to be seen."""
    world.scanned(*(f"old-{n}" for n in range(NAMED_MAX)))
    world.scanned("new")

    assert {"new": 10, OTHER: 0} == world.lag()


def test_a_place_is_kept_as_long_as_the_client_has_files(world: World) -> None:
    """Or its counters would begin again and again."""
    names = [f"client-{n}" for n in range(100)]
    for _ in range(3):
        world.scanned(*names)
        names.reverse()

    assert {*(f"client-{n}" for n in range(NAMED_MAX)), OTHER} == set(world.lag())


def test_lines_are_counted_under_the_same_label(world: World) -> None:
    world.scanned("acme")
    world.clients.read("acme", 3)

    assert (3, 0) == (world.lines("acme"), world.lines(OTHER))


def test_a_client_has_its_label_from_its_first_line_on(world: World) -> None:
    """A backlog at a start is read before a scan has looked at how far everybody is."""
    world.clients.read("acme", 2)
    world.clients.read(OTHER, 1)

    assert (2, 1) == (world.lines("acme"), world.lines(OTHER))


def test_lines_of_a_client_beyond_the_bound_are_those_of_the_others(world: World) -> None:
    world.scanned(*(f"client-{n}" for n in range(NAMED_MAX)))
    world.clients.read("one-more", 2)

    assert 2 == world.lines(OTHER)


def test_a_name_is_not_longer_than_a_label_should_be(world: World) -> None:
    """Two that begin alike: the second is one of the others, and no sum is wrong."""
    world.scanned("x" * 200, "x" * 201)

    assert {"x" * NAME_CHARACTERS_MAX: 10, OTHER: 10} == world.lag()


def test_a_client_that_is_called_other_is_one_of_the_others(world: World) -> None:
    world.scanned(OTHER)

    assert {OTHER: 10} == world.lag()


def test_the_lag_in_seconds_is_that_of_the_clients_oldest_line(world: World) -> None:
    """Sums of ages mean nothing: who waits longest is who should be looked at."""
    now_s = int(world.clock.wall())
    newer = one("a2", 10, mtime_s=now_s - 1)._replace(client="a")
    files = one("a", 10, mtime_s=now_s - 30), newer, one("b", 10, mtime_s=now_s - 5)
    world.clients.scanned(files)
    lag = world.lag("seconds")

    assert 30 <= lag["a"] < 31
    assert 5 <= lag["b"] < 6
    assert 0 == lag[OTHER]


def test_a_last_line_without_its_end_is_not_late(world: World) -> None:
    """An app that died within a line would raise an alarm that nobody can end."""
    now_s = int(world.clock.wall())
    world.clients.scanned([one("a", 10, mtime_s=now_s - 999, torn=True)])

    assert 0 == world.lag("seconds")["a"]
    assert 10 == world.lag()["a"]
