"""The seam between Kafka and the spool: which way lines go, and that the spool empties."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.seam import TAIL_SHARE, Mode, Tail, mode_of

CHUNK = 50
"""Records that may join the tail at once."""


@pytest.mark.parametrize(
    ("outage", "spooled", "mode"),
    [
        (False, False, Mode.LIVE),
        (False, True, Mode.REPLAYING),
        (True, False, Mode.SPOOLING),
        (True, True, Mode.SPOOLING),
    ],
)
def test_the_mode_follows_from_outage_and_spool_alone(
    outage: bool, spooled: bool, mode: Mode
) -> None:
    assert mode is mode_of(outage=outage, spooled=spooled)


@given(
    st.integers(1, 5000),
    st.floats(0.01, 0.9),
    st.lists(st.tuples(st.integers(1, 400), st.lists(st.integers(1, CHUNK), max_size=20)),
             min_size=1, max_size=30),
)  # fmt: skip
def test_the_spool_empties_whatever_joins_its_tail_while_it_may(
    spooled: int, share: float, turns: list[tuple[int, list[int]]]
) -> None:
    """The program of turns goes round until the spool is empty. Each turn appends what it may.

    What joins is at most the share of what was replayed and one chunk, so what is replayed in all
    is bounded: ``(spooled + CHUNK) / (1 - share)``.
    """
    tail, first, replayed = Tail(share), spooled, 0
    for n in count():
        portion, appends = turns[n % len(turns)]
        for records in appends:
            if tail.may_grow:
                tail.appended(records)
                spooled += records
        portion = min(portion, spooled)
        tail.replayed(portion)
        spooled -= portion
        replayed += portion
        assert replayed <= (first + CHUNK) / (1 - share) + 1
        if not spooled:
            break


@given(st.integers(1, CHUNK), st.floats(0.01, 1.0))
def test_the_tail_grows_again_once_enough_was_replayed(appended: int, share: float) -> None:
    """Reading waits for the replay, not for ever."""
    tail = Tail(share)
    tail.replayed(1)
    tail.appended(appended)
    assert (share > appended) == tail.may_grow

    tail.replayed(int(appended / share) + 1)

    assert tail.may_grow


def test_nothing_joins_the_tail_before_something_was_replayed() -> None:
    tail = Tail(TAIL_SHARE)
    assert not tail.may_grow

    tail.replayed(1)

    assert tail.may_grow


@pytest.mark.parametrize(("replayed", "appended"), [(1000, 0), (0, 1000)])
def test_what_one_replay_earned_or_owes_is_not_carried_to_the_next(
    replayed: int, appended: int
) -> None:
    tail = Tail(TAIL_SHARE)
    tail.replayed(replayed)
    tail.appended(appended)

    tail.rest()

    assert not tail.may_grow
    tail.replayed(1)
    assert tail.may_grow


@given(st.lists(st.integers(1, 10_000), max_size=20))
def test_without_a_share_the_tail_may_always_grow(appends: list[int]) -> None:
    tail = Tail(None)
    for records in appends:
        assert tail.may_grow
        tail.appended(records)
    assert tail.may_grow
