from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from agent.core.notes import PER_FILE, USUAL, Noted, Notes
from tests.fakes import FakeClock


def noted(event: str, count: int = 1) -> Iterable[Noted]:
    return (Noted(0.0, event, {"n": n}) for n in range(count))


def add(notes: Notes, event: str, count: int = 1) -> None:
    for note in noted(event, count):
        notes.add(note)


def taken(notes: Notes, count: int = 100_000) -> list[Noted]:
    first = notes.first(count, 0.0)
    notes.done(len(first))
    return first


def test_a_flood_of_one_event_leaves_the_others_alone_and_is_counted() -> None:
    clock = FakeClock()
    notes = Notes(clock.monotonic)

    add(notes, "file.refused", 1_000_000)
    add(notes, "agent.stopped")
    clock.advance(2 / USUAL.per_s)
    add(notes, "file.refused")

    *flood, stopped, late = taken(notes)
    assert USUAL.burst == len(flood)
    assert "agent.stopped" == stopped.event
    assert 1_000_000 - USUAL.burst == late.fields["suppressed"]


def test_a_first_start_is_written_down_file_by_file() -> None:
    notes = Notes(FakeClock().monotonic, waiting_max=100_000)

    add(notes, "file.adopted", 50_000)

    assert PER_FILE.burst == len(taken(notes))


def test_what_finds_no_place_is_counted_where_there_is_room_again() -> None:
    notes = Notes(FakeClock().monotonic, waiting_max=3)

    add(notes, "file.adopted", 5)
    add(notes, "agent.stopped")
    assert 2 == len(notes.first(2, 0.0))  # they wait until they are done
    notes.done(2)
    add(notes, "agent.started")

    kept, lost, started = taken(notes)
    assert ("file.adopted", "notes.lost", "agent.started") == (
        kept.event,
        lost.event,
        started.event,
    )
    assert {"count": 3, "events": {"file.adopted": 2, "agent.stopped": 1}} == lost.fields


def test_the_end_says_what_was_suppressed_to_the_last() -> None:
    notes = Notes(FakeClock().monotonic)
    add(notes, "file.refused", USUAL.burst + 7)

    notes.end(0.0)

    assert {"count": 7, "events": {"file.refused": 7}} == taken(notes)[-1].fields


@given(st.lists(st.integers(0, 40)), st.integers(1, 20))
def test_each_note_is_written_or_counted(adds: list[int], waiting_max: int) -> None:
    """However notes and writes alternate, and the queue never grows beyond a record or so."""
    clock = FakeClock()
    notes = Notes(clock.monotonic, waiting_max)
    written: list[Noted] = []
    for count in adds:
        add(notes, "file.refused", count)
        assert len(notes.first(1000, 0.0)) <= waiting_max + 1
        written += taken(notes, count)
        clock.advance(count)
    notes.end(0.0)
    written += taken(notes)

    counted = [note.fields for note in written if note.event == "notes.lost"]
    said = sum(int(str(fields["count"])) for fields in counted)
    said += sum(int(str(note.fields.get("suppressed", 0))) for note in written)
    assert sum(adds) == len(written) - len(counted) + said
