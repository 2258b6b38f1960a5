"""Receipts lead to every record, are bounded, and what is damaged is no receipt."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.places import Place
from agent.core.receipts import UNTOLD, Receipt, Tally, decoded, encoded, windows

BATCHES = st.lists(
    st.tuples(
        st.sampled_from([("a", 0), ("a", 1), ("b", 0)]),
        st.tuples(st.integers(0, 90), st.integers(1, 10)),
        st.integers(0, 3),
        st.tuples(st.integers(0, 500), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(BATCHES, st.integers(0, 50), st.lists(st.integers(0, 40)))
def test_every_record_that_was_acknowledged_is_in_a_window(
    batches: list[tuple[tuple[str, int], tuple[int, int], int, tuple[int, int]]],
    apart_min: int,
    written_at: list[int],
) -> None:
    """However often they are written and joined: a proof that seeks finds what was acknowledged."""
    tally, written = Tally(100), list[Receipt]()
    for number, (life, (start, length), partition, (first, more)) in enumerate(batches):
        place = Place(*life, start, start + length)
        tally.acked([place], "events", partition, (first, first + more))
        if number in written_at:
            written += tally.take(1.0)
    written += tally.take(2.0)

    found = windows(written, apart_min)

    for life, (start, length), partition, (first, more) in batches:
        here = found["events", partition]
        assert any(low <= first and first + more <= high for low, high in here)
        mine = [r for r in written if r.life == life]
        assert any(r.start <= start and start + length <= r.end for r in mine)
    for joined in found.values():
        assert all(after[0] - before[1] > apart_min for before, after in pairwise(joined))


def test_where_a_broker_did_not_say_all_of_the_partition_is_wanted() -> None:
    tally = Tally(9)
    tally.acked([Place("a", 0, 0, 5)], "events", 3, (7, 9))
    tally.acked([Place("a", 0, 5, 9)], "events", 3, UNTOLD)
    assert {("events", 3): [UNTOLD]} == windows(tally.take(0.0), 1)
    receipts = [
        Receipt(at=0.0, source="a", generation=0, start=0, end=5, acked={"events": {"3": window}})
        for window in ((7, 9), UNTOLD, (500, 600))
    ]
    assert {("events", 3): [UNTOLD]} == windows(receipts, 1)


def test_more_than_fit_are_counted_and_left_out() -> None:
    """A node with a million files in motion, or a thousand partitions, costs no more memory."""
    tally = Tally(2)
    for source in ("a", "b", "c", "a"):
        tally.acked([Place(source, 0, 0, 5)], "events", 0, (0, 1))
    tally.acked([Place("a", 0, 5, 9)], "events", 1, (0, 1))
    tally.spooled([Place("a", 0, 5, 9)], "events", (0, 1))
    assert (2, 3) == (tally.held, tally.dropped)
    assert [("a", 5), ("b", 5)] == [(r.source, r.end) for r in tally.take(0.0)]
    assert 0 == tally.held


def test_receipts_read_back() -> None:
    tally = Tally(9)
    tally.acked([Place("a", 1, 0, 5), Place("b", 0, 2, 3)], "events", 0, (5, 6))
    tally.spooled([Place("a", 1, 5, 9)], "events", (0, 3))
    told = tally.take(12.5)
    assert told == [decoded(line) for line in encoded(told).splitlines()]
    assert {"events": (0, 3)} == told[0].spooled
    assert (0, 9, 12.5) == (told[0].start, told[0].end, told[0].at)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"at":1,"source":"a","generation":0,"start":5,"end":5}',
        b'{"at":1,"source":"a","generation":0,"start":-1,"end":5}',
        b'{"at":1,"source":"a","generation":0,"start":0,"end":5,"acked":{"t":{"x":[0,1]}}}',
    ],
)
def test_a_damaged_line_is_no_receipt(line: bytes) -> None:
    assert decoded(line) is None
