"""What a proof remembers of a topic, against a set of lines."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import places
from agent.core.places import Along, Coverage, Place, hulls, parse_place

LINES = 40


@st.composite
def files(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Return the lines of a file, without a gap."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=LINES))
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    return list(zip([0, *ends], ends, strict=False))


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the lines of a file, and what arrived of them: in any order, not all, some twice."""
    lines = draw(files())
    return lines, draw(st.lists(st.sampled_from(lines), max_size=3 * LINES))


def bytes_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


@given(arrivals(), st.integers(1, 7))
def test_it_covers_what_was_added_and_counts_what_came_again(
    told: tuple[list[tuple[int, int]], list[tuple[int, int]]], loose_max: int
) -> None:
    """Merged early or late, in one step or in many, the answer is the same."""
    _, arrived = told
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "LOOSE_MAX", loose_max)
        coverage = Coverage(arrived)
        found = list(coverage)
    assert bytes_of(arrived) == bytes_of(found)
    assert all(before < after for (_, before), (after, _) in pairwise(found))
    assert sum(count - 1 for count in Counter(arrived).values()) == coverage.copies
    assert max((end for _, end in arrived), default=0) == coverage.end


@given(arrivals())
def test_each_line_is_found_exactly_if_it_arrived(
    told: tuple[list[tuple[int, int]], list[tuple[int, int]]],
) -> None:
    lines, arrived = told
    along = Along(Coverage(arrived))
    assert [line for line in lines if line in set(arrived)] == [
        line for line in lines if along.covers(*line)
    ]


@given(arrivals(), st.integers(0, 300), st.integers(0, 300))
def test_gaps_are_what_is_not_covered(
    told: tuple[list[tuple[int, int]], list[tuple[int, int]]], start: int, end: int
) -> None:
    _, arrived = told
    gaps = list(Coverage(arrived).gaps(start, end))
    assert set(range(start, end)) - bytes_of(arrived) == bytes_of(gaps)
    assert all(lower < upper for lower, upper in gaps)


def test_a_file_that_arrived_whole_is_one_range() -> None:
    """Memory is for gaps and not for lines: 300,000 of them, from several partitions in turns."""
    coverage, held = Coverage(), 0
    lines = [(n * 10, n * 10 + 10) for n in range(300_000)]
    for partition in range(4):
        for line in lines[partition::4]:
            coverage.add(*line)
            held = max(held, coverage.held)
    assert [(0, 3_000_000)] == list(coverage)
    assert 1 == coverage.ranges


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"2;ab;0;0;1",
        b"1;ab;0;5;5",
        b"1;ab;0;-1;5",
        b"1;ab;0;0",
        b"1;ab;0;0;1;2",
        b"1;ab;x;0;1",
        b"1;ab;0;0;%d" % (1 << 63),
        b"1;ab;0;0;%s" % (b"9" * 5000),
        b"\xff",
    ],
)
def test_what_is_no_place_is_none(header: bytes) -> None:
    """Anybody who may write to the topic may write anything there."""
    assert parse_place(header) is None


def test_a_place_reads_back() -> None:
    assert Place("00ff", 3, 5, 9) == parse_place(b"1;00ff;3;5;9")


def test_a_hull_holds_all_places_of_its_generation() -> None:
    one = [Place("a", 0, 5, 9), Place("a", 1, 0, 2), Place("a", 0, 1, 2), Place("b", 0, 3, 4)]
    assert {Place("a", 0, 1, 9), Place("a", 1, 0, 2), Place("b", 0, 3, 4)} == {*hulls(one)}
