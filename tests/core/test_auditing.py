import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import auditing
from agent.core.auditing import EVENTS, START, Chain, Head, last, parsed, sealed

AT = "2026-01-31T12:00:00.000Z"
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FIELDS = st.dictionaries(
    TEXT.filter(lambda name: name not in {"seq", "at", "event", "prev", "hash"}),
    TEXT | st.integers(-(1 << 63), (1 << 63) - 1) | st.none() | st.dictionaries(TEXT, TEXT),
    max_size=4,
)
LOGS = st.lists(FIELDS, min_size=1, max_size=8)


def chained(fields: list[dict[str, object]], head: Head = START) -> list[bytes]:
    """Return the lines, without LF, of a record for each of ``fields``."""
    lines = []
    for one in fields:
        line, head = sealed(head, AT, "file.adopted", one)
        lines.append(line.removesuffix(b"\n"))
    return lines


def numbered(count: int) -> list[bytes]:
    return chained([{"offset": n} for n in range(count)])


def checked(lines: list[bytes], expected: str | None = None) -> Chain:
    chain = Chain(expected)
    for number, line in enumerate(lines, 1):
        chain.take(line, "audit.jsonl", number)
    return chain


def wrong(lines: list[bytes]) -> list[tuple[int, str]]:
    return [(problem.line, problem.what) for problem in checked(lines).problems]


def test_the_hash_is_that_of_the_line_before_it() -> None:
    """What docs/audit.md promises to who checks with other tools."""
    first, second = numbered(2)

    assert sha256(first[: first.index(b',"hash":')]).hexdigest() == json.loads(first)["hash"]
    assert json.loads(first)["hash"] == json.loads(second)["prev"]
    assert "0" * 64 == json.loads(first)["prev"]


@given(LOGS)
def test_what_was_sealed_is_whole_and_says_what_it_was_given(
    fields: list[dict[str, object]],
) -> None:
    lines = chained(fields)

    chain = checked(lines)

    assert 0 == chain.broken
    assert len(lines) == chain.records
    for line, given_fields in zip(lines, fields, strict=True):
        assert given_fields.items() <= json.loads(line).items()
        assert b"\n" not in line


@given(LOGS, st.data())
def test_no_byte_may_change(fields: list[dict[str, object]], data: st.DataObject) -> None:
    lines = chained(fields)
    number = data.draw(st.integers(0, len(lines) - 1))
    altered = bytearray(lines[number])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    lines[number] = bytes(altered)

    assert wrong(lines)[0][0] == number + 1


@given(LOGS, st.data())
def test_no_line_may_go_move_or_come_twice(
    fields: list[dict[str, object]], data: st.DataObject
) -> None:
    """But for the first ones, rotated out, and the last ones: for those see ``expected``."""
    lines = chained([*fields, {}, {}])
    places = st.integers(0, len(lines) - 1)
    deleted = data.draw(st.integers(1, len(lines) - 2))
    one, other = data.draw(st.lists(places, min_size=2, max_size=2, unique=True))
    twice = data.draw(places)
    swapped = list(lines)
    swapped[one], swapped[other] = swapped[other], swapped[one]

    assert wrong([*lines[:deleted], *lines[deleted + 1 :]])
    assert wrong(swapped)
    assert wrong([*lines[: twice + 1], *lines[twice:]])


@given(LOGS, st.integers(1, 8))
def test_only_a_head_from_elsewhere_shows_a_cut_end(
    fields: list[dict[str, object]], cut: int
) -> None:
    lines = chained([{}, *fields])
    head = json.loads(lines[-1])["hash"]
    kept = lines[: max(1, len(lines) - cut)]

    assert checked(lines, head).met
    assert 0 == checked(kept).broken
    assert not checked(kept, head).met


def test_a_head_of_an_altered_record_does_not_count() -> None:
    lines = numbered(1)
    head = json.loads(lines[0])["hash"]

    assert not checked([lines[0].replace(b'"offset":0', b'"offset":9')], head).met


def test_records_made_anew_follow_on_but_miss_the_head() -> None:
    """Whoever can rewrite the file can rewrite the chain: that is what the head is for."""
    head = json.loads(numbered(3)[-1])["hash"]
    forged = chained([{"offset": 0}, {"offset": 7}, {"offset": 2}])

    assert 0 == checked(forged, head).broken
    assert not checked(forged, head).met


def test_a_problem_says_where_and_what() -> None:
    lines = numbered(5)
    altered = lines[2].replace(b'"offset":2', b'"offset":9')

    assert [(3, "record 3 was altered: its hash is not that of its bytes")] == wrong(
        [*lines[:2], altered, *lines[3:]]
    )
    assert [(3, "2 missing before record 5")] == wrong([*lines[:2], lines[4]])
    assert [(3, "record 1 stands after record 2")] == wrong([*lines[:2], lines[0]])
    assert [(2, "is no record of an audit log")] == wrong([lines[0], b"{}", lines[1]])
    stranger = chained([{}, {}, {}])[1]
    assert [(2, "record 2 does not follow the one before it: either was altered")] == wrong(
        [lines[0], stranger]
    )


def test_the_first_record_of_all_follows_nothing() -> None:
    line, _ = sealed(Head(0, "1" * 64), AT, "agent.started", {})

    assert wrong([line.removesuffix(b"\n")])


def test_a_chain_may_begin_where_older_files_were_rotated_out() -> None:
    chain = checked(numbered(5)[3:])

    assert 0 == chain.broken
    assert (4, 5) == (chain.first and chain.first.seq, chain.head and chain.head.seq)


def test_all_problems_are_counted_and_few_are_kept() -> None:
    chain = checked([b"nonsense"] * 100)

    assert (100, auditing.PROBLEMS_MAX) == (chain.broken, len(chain.problems))


HASHED = b',"hash":"' + b"0" * 64 + b'"}'


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[1]", b"\xff", b'{"seq":1' + HASHED, b'{"seq":"1"' + HASHED]
)
def test_what_is_no_record_is_none(line: bytes) -> None:
    assert parsed(line) is None


def test_depth_is_no_way_to_stop_the_check() -> None:
    assert parsed(b'{"a":' + b"[" * 100_000 + HASHED) is None


@given(LOGS, st.binary(max_size=40).filter(lambda torn: b"\n" not in torn), st.integers(0, 30))
def test_the_last_sound_record_is_found_from_the_end(
    fields: list[dict[str, object]], torn: bytes, cut: int
) -> None:
    """``cut``: the end of a log that is looked at may begin within a record."""
    lines = chained([{}, *fields])
    data = b"".join(line + b"\n" for line in lines)[cut:] + torn

    head, torn_bytes = last(data)

    assert head == Head(len(lines), json.loads(lines[-1])["hash"])
    assert len(torn) == torn_bytes


def test_no_field_of_an_event_has_the_name_of_a_part_of_the_record() -> None:
    for event, fields in EVENTS.items():
        own = {"seq", "at", "event", "prev", "hash", "suppressed"}
        assert own.isdisjoint(fields), event
