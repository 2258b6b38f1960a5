"""Since when a line waits, held against a file of which every write is known."""

from hypothesis import given
from hypothesis import strategies as st

from agent.core.discovery import Seen
from agent.core.lag import MARKS_MAX, Waits


def seen(size: int, mtime_s: float) -> Seen:
    return Seen("a.jsonl", "a", 1, size, int(mtime_s * 10**9))


def look(waits: Waits, *behind: tuple[Seen, int]) -> list[float]:
    """Return, for each file and its watermark, since when its oldest line waits."""
    waits.begin()
    return [waits.since(*one) for one in behind]


def test_a_line_waits_since_the_write_that_a_scan_first_saw_with_it() -> None:
    waits = Waits()

    assert [10.0] == look(waits, (seen(100, 10.0), 0))
    assert [10.0] == look(waits, (seen(200, 20.0), 50))
    assert [20.0] == look(waits, (seen(300, 30.0), 100))


def test_a_file_that_caught_up_begins_anew() -> None:
    waits = Waits()
    look(waits, (seen(100, 10.0), 0))
    look(waits)

    assert [50.0] == look(waits, (seen(200, 50.0), 100))


def test_what_was_truncated_waits_no_more() -> None:
    waits = Waits()
    look(waits, (seen(100, 10.0), 0))

    assert [20.0] == look(waits, (seen(30, 20.0), 0))


def test_a_line_that_shares_a_mark_may_seem_older_and_never_younger() -> None:
    """An outage lasts for many scans, and a file keeps but a few marks."""
    waits, scans = Waits(), 40
    for at in range(1, scans + 1):
        assert [1.0] == look(waits, (seen(at * 100, float(at)), 0))

    for settled in range(1, scans):
        (since_s,) = look(waits, (seen(scans * 100, float(scans)), settled * 100))
        assert 1.0 <= since_s <= settled + 1


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.floats(0, 1), st.booleans()), min_size=1, max_size=200
    )
)
def test_a_line_never_seems_younger_than_scans_know(
    steps: list[tuple[int, float, bool]],
) -> None:
    """Each step the file grows, some of it is settled, and perhaps a scan looks.

    Whatever was joined: not younger than the write of the first scan that met it, not older than
    the oldest line that ever waited, and only so many marks.
    """
    waits, size, watermark = Waits(), 0, 0
    scans: list[tuple[int, float]] = []
    for at, (grown, share, scanned) in enumerate(steps, start=1):
        size += grown
        watermark += int((size - watermark) * share)
        if not scanned or watermark == size:
            continue
        scans.append((size, float(at)))
        first = next(mtime_s for known, mtime_s in scans if known > watermark)
        (since_s,) = look(waits, (seen(size, float(at)), watermark))
        assert scans[0][1] <= since_s <= first
        assert len(waits._marks[1]) <= MARKS_MAX
