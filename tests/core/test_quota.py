"""In flight: what was read and lies below no checkpoint yet, by events and by bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.ledger import Chunk, Ledger
from agent.core.policy import MIB, InFlightPolicy
from agent.core.quota import InFlight

POLICY = InFlightPolicy(events_max=100, bytes_max=MIB)


def chunk(length: int, lines: int) -> Chunk:
    return Chunk(Ledger(0, b""), 1000, 1000 + length, b"", lines)


@pytest.mark.parametrize(
    ("length", "lines", "full"),
    [(500, 99, False), (500, 100, True), (MIB - 1, 1, False), (MIB, 1, True), (2 * MIB, 0, True)],
)
def test_either_bound_ends_reading(length: int, lines: int, full: bool) -> None:
    in_flight = InFlight(POLICY)
    in_flight.add(chunk(length, lines))

    assert full is in_flight.full


def test_there_is_room_again_once_a_checkpoint_is_stored() -> None:
    in_flight, held = InFlight(POLICY), chunk(MIB, 100)
    in_flight.add(held)

    in_flight.remove(held)

    assert not in_flight.full
    assert (0, 0) == (in_flight.events, in_flight.bytes)


@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 60)), max_size=30))
def test_one_chunk_may_overshoot_and_no_more(sizes: list[tuple[int, int]]) -> None:
    """Who asks before each chunk holds at most the bound and one chunk."""
    in_flight, held = InFlight(POLICY), []
    for length, lines in sizes:
        if in_flight.full:
            break
        held.append(chunk(length, lines))
        in_flight.add(held[-1])
    assert in_flight.bytes < POLICY.bytes_max + 300_000
    assert in_flight.events < POLICY.events_max + 60

    for stored in held:
        in_flight.remove(stored)
    assert (0, 0) == (in_flight.events, in_flight.bytes)


def test_storing_more_than_was_read_is_a_bug() -> None:
    in_flight = InFlight(POLICY)
    in_flight.add(chunk(10, 1))

    with pytest.raises(AssertionError, match="more was stored than was read"):
        in_flight.remove(chunk(11, 1))
