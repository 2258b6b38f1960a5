"""Which events are wanted by their own time."""

from hypothesis import given
from hypothesis import strategies as st

from agent.core.decode import Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import Event
from agent.core.policy import SchemaPolicy
from agent.core.window import Window

NOW_S = 1_700_000_000.0
HOURS = st.integers(0, 23)


def event(timestamp: str | None, **policy: float) -> Event:
    at = "null" if timestamp is None else f'"{timestamp}"'
    line = f'{{"type":"user_feedback","session_id":"s","timestamp":{at}}}'.encode()
    found = Decoder(SchemaPolicy(**policy)).decode(line, NOW_S)  # type: ignore[arg-type]
    assert not isinstance(found, Rejection)
    return found.event


def at(hour: int) -> str:
    return f"2023-01-01T{hour:02}:00:00Z"


def seconds(hour: int) -> float:
    return 1_672_531_200.0 + 3600 * hour


@given(HOURS, HOURS, st.lists(HOURS))
def test_since_is_in_it_and_until_is_not(since: int, until: int, hours: list[int]) -> None:
    window = Window(seconds(since), seconds(until))

    taken = [hour for hour in hours if window.takes(event(at(hour)))]

    assert [hour for hour in hours if since <= hour < until] == taken
    assert len(hours) == len(taken) + window.passed_over
    assert (min(map(seconds, taken), default=None), max(map(seconds, taken), default=None)) == (
        window.oldest_s,
        window.newest_s,
    )


def test_without_ends_everything_is_wanted() -> None:
    window = Window()
    assert all(window.takes(event(text)) for text in (at(1), "0001-01-01T00:00:00Z", None))
    assert (0, 1) == (window.passed_over, window.timeless)


def test_an_offset_counts() -> None:
    """20:00 in New York is tomorrow in UTC."""
    window = Window(seconds(24), None)
    assert window.takes(event("2023-01-01T20:00:00-05:00"))
    assert not window.takes(event("2023-01-01T20:00:00+05:00"))


def test_an_event_without_a_time_is_wanted() -> None:
    """Nobody can say that it is not."""
    window = Window(seconds(1), seconds(2))
    assert window.takes(event(None))
    assert 1 == window.timeless


def test_what_a_topic_would_delete_is_counted_unless_nobody_trusts_its_time() -> None:
    """A record whose time is suspect has the time of reading."""
    window = Window()
    window.expires_s = seconds(5)
    found = Decoder(SchemaPolicy(age_max_s=NOW_S - seconds(3))).decode_all(
        [
            f'{{"type":"user_feedback","session_id":"s","timestamp":"{at(hour)}"}}'.encode()
            for hour in (2, 4, 6)
        ],
        NOW_S,
    )
    for one in found:
        assert not isinstance(one, Rejection)
        assert window.takes(one)
    assert 1 == window.expired
