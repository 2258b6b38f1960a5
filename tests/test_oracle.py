"""The oracle must be able to fail: each kind of harm is done to a faultless run, and is named."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.places import parse_place
from agent.core.policy import SchemaPolicy
from agent.core.record import KafkaRecord, Origin, Recorder, RecordPolicy
from agent.demo import app, oracle
from agent.demo.oracle import Arrival, Arrivals, Verdict

PARTITIONS = 3
LINES = 400
NOW_NS = 1_800_000_000_000_000_000

WRONGS = ("lost", "out_of_order", "altered", "misjudged", "foreign")


class Written(NamedTuple):
    """A file in memory, with the id that the agent would give it."""

    id: str
    name: str
    body: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        start = 0
        for line in self.body.split(b"\n")[:-1]:
            yield start, line
            start += len(line) + 1


def written() -> list[Written]:
    lines = [
        app.make_line(7, "a", file=n // 200, seq=n, now_ns=NOW_NS + n, bad_share=0.1)
        for n in range(LINES)
    ]
    # the last line of each file has no LF yet: nobody promised anything about it
    return [
        Written("one", "a/feedback.jsonl.1", b"".join(lines[:200]) + b'{"torn'),
        Written("two", "a/feedback.jsonl", b"".join(lines[200:])),
    ]


def shipped(sources: list[Written]) -> list[Arrival]:
    """Return what an agent without a fault makes of ``sources``, through its own core."""
    decode = Decoder(SchemaPolicy()).decode
    arrivals = []
    for source in sources:
        origin = Origin(node="n", client="a", source_id=source.id, generation=1, inode=1,
                        birth_ns=1, inode_generation=1)  # fmt: skip
        recorder = Recorder(RecordPolicy(version="1", hostname="h"), origin)
        for start, line in source.lines():
            decoded = decode(line, NOW_NS / 1e9)
            end = start + len(line) + 1
            if isinstance(decoded, Decoded):
                made = recorder.record(decoded, line, start, end, "")
            else:
                made = recorder.dead_letter(line, decoded, start, end)
            arrivals.append(_arrival(made, start, dead=isinstance(decoded, Rejection)))
    return arrivals


def _arrival(made: KafkaRecord, start: int, *, dead: bool) -> Arrival:
    key, value, headers = made
    partition = 0 if dead else start % PARTITIONS
    return Arrival(dead, partition, key, value, headers, NOW_NS // 1_000_000, NOW_NS + 5_000_000)


def verdict_of(arrivals: list[Arrival]) -> Verdict:
    taken = Arrivals()
    for arrival in arrivals:
        taken.add(arrival)
    return oracle.compare(written(), taken, app.defect)


def wrongs(verdict: Verdict) -> dict[str, int]:
    return {name: getattr(verdict, name) for name in WRONGS if getattr(verdict, name)}


@pytest.fixture(name="arrivals")
def _arrivals() -> list[Arrival]:
    return shipped(written())


def index_of(arrivals: list[Arrival], *, dead: bool) -> int:
    """Return where a record of that topic stands, not among the first."""
    return next(i for i, a in enumerate(arrivals) if i > LINES // 4 and a.dead is dead)


def test_a_faultless_run_is_ok(arrivals: list[Arrival]) -> None:
    verdict = verdict_of(arrivals)

    assert verdict.ok, verdict.examples
    assert LINES == verdict.lines == verdict.delivered + verdict.dead_lettered
    assert 20 < verdict.dead_lettered < 60
    assert 0 == verdict.copies
    assert (verdict.percentile_ms(0.5) or 0) == pytest.approx(5.0, abs=0.1)


def test_partitions_may_overtake_each_other(arrivals: list[Arrival]) -> None:
    """Order is promised within a partition only."""
    arrivals.sort(key=lambda a: (a.dead, a.partition))

    assert verdict_of(arrivals).ok


@pytest.mark.parametrize("dead", [False, True])
def test_a_lost_line_is_found(arrivals: list[Arrival], dead: bool) -> None:
    del arrivals[index_of(arrivals, dead=dead)]

    verdict = verdict_of(arrivals)

    assert {"lost": 1} == wrongs(verdict)
    assert verdict.examples[0].startswith("lost: a/feedback.jsonl")


def test_everything_lost_is_found() -> None:
    assert {"lost": LINES} == wrongs(verdict_of([]))


@pytest.mark.parametrize("dead", [False, True])
def test_a_copy_is_counted_and_is_no_wrong(arrivals: list[Arrival], dead: bool) -> None:
    again = arrivals[index_of(arrivals, dead=dead)]

    verdict = verdict_of([*arrivals, again._replace(produced_ms=again.produced_ms + 50)])

    assert verdict.ok
    assert 1 == verdict.copies
    bounds = [again.produced_ms - 10, again.produced_ms + 40, again.produced_ms + 60]
    assert [0, 1, 0] == verdict.copies_between(bounds)


def test_a_copy_with_another_event_id_is_altered(arrivals: list[Arrival]) -> None:
    """Of a line that carries no id: only there the agent could make two."""
    given = {s + len(t): t for source in written() for s, t in source.lines()}
    at = next(
        i for i, a in enumerate(arrivals)
        if not a.dead and not any(a.key in line for line in given.values() if a.key)
    )  # fmt: skip
    other = b"00000000-0000-4000-8000-000000000000"
    value = arrivals[at].value.replace(arrivals[at].key or b"", other)

    verdict = verdict_of([*arrivals, arrivals[at]._replace(key=other, value=value)])

    assert {"altered": 1} == wrongs(verdict)
    assert "another event_id" in verdict.examples[0]


def _swap(arrivals: list[Arrival], *, dead: bool) -> None:
    """Exchange two neighbours of one file in one partition."""
    first = index_of(arrivals, dead=dead)
    second = next(
        i for i, a in enumerate(arrivals)
        if i > first and (a.dead, a.partition) == (dead, arrivals[first].partition)
    )  # fmt: skip
    arrivals[first], arrivals[second] = arrivals[second], arrivals[first]


@pytest.mark.parametrize("dead", [False, True])
def test_a_line_behind_a_later_one_is_out_of_order(arrivals: list[Arrival], dead: bool) -> None:
    _swap(arrivals, dead=dead)

    verdict = verdict_of(arrivals)

    assert {"out_of_order": 1} == wrongs(verdict)


def test_a_copy_may_come_at_any_place(arrivals: list[Arrival]) -> None:
    """Resending from a checkpoint repeats old lines behind new ones: that is what copies are."""
    assert verdict_of([*arrivals, *arrivals[: LINES // 2]]).ok


def test_a_line_first_seen_after_a_gap_is_out_of_order(arrivals: list[Arrival]) -> None:
    """The copies around it do not hide that its first delivery came late."""
    at = index_of(arrivals, dead=False)

    verdict = verdict_of([*arrivals[:at], *arrivals[at + 1 :], *arrivals])

    assert verdict.out_of_order
    assert 0 == verdict.lost


def _changed_value(a: Arrival) -> Arrival:
    fields = msgspec.json.decode(a.value)
    fields["metadata"]["seq"] += 1
    return a._replace(value=msgspec.json.encode(fields))


def _lost_key(a: Arrival) -> Arrival:
    return a._replace(key=b"another")


def _cut(a: Arrival) -> Arrival:
    return a._replace(value=a.value[:-1])


def _of_another_line(a: Arrival) -> Arrival:
    fields = msgspec.json.decode(a.value)
    fields["event_id"] = "00000000-0000-4000-8000-000000000000"
    return a._replace(value=msgspec.json.encode(fields), key=fields["event_id"].encode())


@pytest.mark.parametrize("harm", [_changed_value, _lost_key, _cut, _of_another_line])
def test_an_altered_event_is_found(
    arrivals: list[Arrival], harm: Callable[[Arrival], Arrival]
) -> None:
    with_own_id = msgspec.json.decode(written()[0].body.split(b"\n")[0])["event_id"].encode()
    at = next(i for i, a in enumerate(arrivals) if a.key == with_own_id)
    arrivals[at] = harm(arrivals[at])

    assert {"altered": 1} == wrongs(verdict_of(arrivals))


def test_an_altered_dead_letter_is_found(arrivals: list[Arrival]) -> None:
    at = index_of(arrivals, dead=True)
    arrivals[at] = arrivals[at]._replace(value=b"something else")

    assert {"altered": 1} == wrongs(verdict_of(arrivals))


def test_what_only_the_agent_writes_may_differ(arrivals: list[Arrival]) -> None:
    at = index_of(arrivals, dead=False)
    fields = msgspec.json.decode(arrivals[at].value)
    fields["metadata"]["hostname"] = "another"
    arrivals[at] = arrivals[at]._replace(value=msgspec.json.encode(fields))

    assert verdict_of(arrivals).ok


@pytest.mark.parametrize("reason", [b"oversize", b"because", None])
def test_a_wrong_reason_is_misjudged(arrivals: list[Arrival], reason: bytes | None) -> None:
    at = index_of(arrivals, dead=True)
    headers = [(k, v) for k, v in arrivals[at].headers if k != "reason"]
    headers += [] if reason is None else [("reason", reason)]
    arrivals[at] = arrivals[at]._replace(headers=headers)

    assert {"misjudged": 1} == wrongs(verdict_of(arrivals))


def test_a_good_line_among_the_dead_letters_is_misjudged(arrivals: list[Arrival]) -> None:
    at = index_of(arrivals, dead=False)
    headers = [*arrivals[at].headers, ("reason", b"schema")]
    arrivals[at] = arrivals[at]._replace(dead=True, headers=headers)

    assert {"misjudged": 1} == wrongs(verdict_of(arrivals))


def _placed(a: Arrival, source: bytes) -> Arrival:
    return a._replace(headers=[(k, source if k == "source" else v) for k, v in a.headers])


@pytest.mark.parametrize(
    "place", [b"1;one;1;1;2", b"1;never;1;0;10", b"2;one;1;0;10", b"1;one;1;9;9", b"\xff", b""]
)
def test_a_record_of_no_line_is_foreign(arrivals: list[Arrival], place: bytes) -> None:
    assert {"foreign": 1} == wrongs(verdict_of([*arrivals, _placed(arrivals[0], place)]))


def test_half_a_line_is_foreign_and_its_line_is_lost(arrivals: list[Arrival]) -> None:
    place = parse_place(dict(arrivals[0].headers)["source"])
    assert place is not None
    half = b"1;%s;1;0;%d" % (place.source.encode(), place.end - 9)

    verdict = verdict_of([_placed(arrivals[0], half), *arrivals[1:]])

    assert {"lost": 1, "foreign": 1} == wrongs(verdict)


def test_each_harm_is_counted_as_often_as_it_was_done(arrivals: list[Arrival]) -> None:
    gone = set(range(5, LINES, 11))

    verdict = verdict_of([a for i, a in enumerate(arrivals) if i not in gone])

    assert {"lost": len(gone)} == wrongs(verdict)
    assert oracle.EXAMPLES_MAX == len(verdict.examples)


def test_a_record_costs_a_row_of_numbers() -> None:
    """A million of them must fit: no text of any is kept."""
    rows = oracle.Rows()
    for start in range(1000):
        rows.append(oracle.Row(start, start + 1, 0, -1, 1, 1, 0, 0))

    assert all(isinstance(column, array) for column in rows._columns)
    assert 56 == sum(column.itemsize for column in rows._columns)
    assert 1000 == len(rows) == len(list(rows))


def test_files_are_found_under_the_ids_of_the_agent(tmp_path: Path) -> None:
    log = app.Log(tmp_path / "a", rotate_bytes=2000)
    for seq in range(40):
        log.append(app.make_line(1, "a", file=log.rotations, seq=seq, now_ns=NOW_NS))
    log.close()

    found = oracle.sources_below(tmp_path)

    assert log.rotations == len(found) == len({source.id for source in found})
    assert 40 == sum(1 for source in found for _ in source.lines())


# ---- the app, whose lines the oracle judges


def test_a_line_follows_from_seed_client_and_sequence() -> None:
    def made(seed: int = 1, client: str = "a", seq: int = 5) -> bytes:
        return app.make_line(seed, client, file=0, seq=seq, now_ns=NOW_NS)

    assert made() == made()
    assert 4 == len({made(), made(seed=2), made(client="b"), made(seq=6)})


def test_the_agent_finds_the_defects_that_the_app_made() -> None:
    """All five types and all three defects; the two judges share no rule."""
    decode = Decoder(SchemaPolicy()).decode
    seen = set()
    for seq in range(3000):
        line = app.make_line(1, "a", file=0, seq=seq, now_ns=NOW_NS, bad_share=0.2)[:-1]
        decoded = decode(line, NOW_NS / 1e9)
        found = decoded.reason if isinstance(decoded, Rejection) else None
        assert app.defect(oracle._fields(line)) == found, line
        seen.add(found or type(getattr(decoded, "event", None)).__name__)

    assert {"invalid_json", "unknown_type", "schema"} < seen
    assert 3 + 5 == len(seen)


def test_rotation_keeps_every_line_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """Two lives of the app: numbers go on, and each life has files of its own."""
    for lines in (30, 59):
        log = app.Log(tmp_path, rotate_bytes=3000)
        while log.written < lines:
            log.append(b"%d" % log.written + b" " * 400 + b"\n")
        log.close()

    files = list(tmp_path.glob(app.FILES))
    by_file = [[int(line) for line in path.read_text().splitlines()] for path in files]
    assert list(range(59)) == [number for numbers in sorted(by_file) for number in numbers]
    assert len(files) > 5
