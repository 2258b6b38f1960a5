"""Whatever stands in a file: the agent goes on, and each line is an event, a dead letter with
its reason and place, or blank. Nothing disappears."""

import itertools
import json
import random
import string
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka import ConsumerRecord

from agent.core.places import Place, parse_place
from agent.core.reasons import REASONS, Reason
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests import conftest, real_kafka
from tests.running import Agent, append, feedback, mock_topics, records, source_of

LINE_BYTES_MAX = 128 << 10
HUGE_BYTES = 20 << 20
EXTRA_BYTES_MAX = 16384


class Bad(NamedTuple):
    name: str
    line: bytes
    reason: Reason


def _with(text: str) -> bytes:
    """Return a line that would be good, with ``text`` among its fields."""
    return b'{"type":"user_feedback","session_id":"s",%b}' % text.encode()


BAD = [
    Bad("no_json", b"not json", "invalid_json"),
    Bad("torn", feedback(1)[:-9], "invalid_json"),
    Bad("two_values", b"{} {}", "invalid_json"),
    Bad("nul_bytes_within", _with('"comment":"@"').replace(b"@", b"\0" * 64), "invalid_json"),
    Bad("invalid_utf8", _with('"comment":"@"').replace(b"@", b"\xff\xfe"), "invalid_utf8"),
    Bad("overlong_utf8", _with('"comment":"@"').replace(b"@", b"\xc0\xaf"), "invalid_utf8"),
    Bad("lone_surrogate", _with(r'"comment":"\ud800"'), "invalid_utf8"),
    Bad("depth_11", _with('"metadata":' + '{"a":' * 10 + "1" + "}" * 10), "too_deep"),
    Bad("depth_50000", b"[" * 50_000 + b"]" * 50_000, "too_deep"),
    Bad("64_bits_unsigned", _with('"metadata":{"n":9223372036854775808}'), "number"),
    Bad("65_bits", _with('"metadata":{"n":18446744073709551616}'), "number"),
    Bad("4300_digits", _with('"metadata":{"n":' + "9" * 4301 + "}"), "number"),
    Bad("not_finite", _with('"metadata":{"n":1e999}'), "number"),
    Bad("nan", _with('"rating":NaN'), "number"),
    Bad("infinity", _with('"rating":-Infinity'), "number"),
    Bad("array", b"[1,2]", "not_an_object"),
    Bad("text", b'"text"', "not_an_object"),
    Bad("null", b"null", "not_an_object"),
    Bad("unknown_type", b'{"type":"telemetry_v0"}', "unknown_type"),
    Bad("no_type", b'{"session_id":"s"}', "schema"),
    Bad("rating_6", _with('"rating":6'), "schema"),
    Bad("no_session", b'{"type":"user_feedback"}', "schema"),
    Bad("session_257", b'{"type":"user_feedback","session_id":"%b"}' % (b"s" * 257), "schema"),
    Bad("user_257", _with(f'"user_id":"{"u" * 257}"'), "schema"),
    Bad("comment_10001", _with(f'"comment":"{"x" * 10_001}"'), "schema"),
    Bad("tag_129", _with(f'"tags":["{"t" * 129}"]'), "schema"),
    Bad("tags_65", _with(f'"tags":{json.dumps(["t"] * 65)}'), "schema"),
    Bad("metadata_65", _with(f'"metadata":{json.dumps({str(n): n for n in range(65)})}'), "schema"),
    Bad("version_65", _with(f'"schema_version":"{"1" * 65}"'), "schema"),
    Bad("bad_timestamp", _with('"timestamp":"yesterday"'), "schema"),
    Bad("bad_event_id", _with('"event_id":"12"'), "event_id"),
    Bad("extra", _with(f'"more":"{"x" * EXTRA_BYTES_MAX}"'), "extra_too_large"),
    Bad("one_too_long", _with(f'"comment":"{"x" * LINE_BYTES_MAX}"'), "oversize"),
    Bad("huge", b"y" * HUGE_BYTES, "oversize"),
]
BLANK = [b"", b"   ", b"\t", b"\r", b"\0" * 64]
ODD = [
    feedback(1, comment="carriage return") + b"\r",
    feedback(2, comment="duplicate key").replace(b'"rating": 4', b'"rating": 9, "rating": 4'),
    feedback(3, session="is known as well").replace(b'"session_id": "s3", ', b""),
    feedback(4, comment="a control character: \x01"),
    feedback(5, unknown="kept"),
    feedback(6, rating=None),
    feedback(9, comment="x" * 10_000, tags=["t" * 128] * 64, user_id="u" * 256),
    feedback(10, session_id="s" * 256, metadata={str(n): n for n in range(64)}),
    feedback(11, metadata={"n": [2**63 - 1, -(2**63)]}, schema_version="v" * 64),
    feedback(12).replace(b'"metadata": {', b'"metadata": {"a":' + b"[" * 8 + b"]" * 8 + b", "),
    feedback(13, more="x" * (EXTRA_BYTES_MAX - len('{"more":""}'))),
    feedback(14).ljust(LINE_BYTES_MAX),
    b"\0" * 100 + feedback(7),
    b"\0" * (LINE_BYTES_MAX + 1) + feedback(8),
]
"""Lines that are a little strange, or at a limit, and events."""
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def noise(length: int) -> str:
    """Return text that no compression makes much smaller."""
    return "".join(random.choices(string.ascii_letters, k=length))  # noqa: S311


def place_of(record: ConsumerRecord) -> Place:
    place = parse_place(dict(record.headers)["source"])
    assert place is not None
    return place


def test_every_line_is_an_event_a_dead_letter_or_blank(mock: Topics, tmp_path: Path) -> None:
    """One file of everything, good lines before, between and after; written while it is read."""
    lines = [BOM + feedback(1000)]
    for number, line in enumerate([*(bad.line for bad in BAD), *BLANK, *ODD], 1001):
        lines += [line, feedback(number)]
    reasons = {bad.line: bad.reason for bad in BAD}
    good = [n for n, line in enumerate(lines) if line not in reasons and line not in BLANK]
    ends = list(itertools.accumulate(len(line) + 1 for line in lines))
    starts = [0, *ends[:-1]]
    with Agent(tmp_path, mock, source={"line_bytes_max": LINE_BYTES_MAX}) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, lines[:10])
        agent.start()
        append(path, lines[10:])
        agent.until_delivered(len(good), len(BAD))
        assert len(lines) == agent.metric("lines_read_total")
        assert len(BLANK) == agent.metric("lines_blank_total")
        assert len(BAD) == agent.metric("lines_rejected_total")
        assert 1 == agent.metric("control_characters_removed_total")
        assert "exception" not in agent.log_text()
        assert 0 == agent.stop()
        source = source_of(path)
    events = {place_of(r): r for r in records(mock, mock.events)}
    dead = {place_of(r): r for r in records(mock, mock.dead_letters)}

    def places(numbers: list[int]) -> set[Place]:
        return {Place(source, 0, starts[n], ends[n]) for n in numbers}

    assert places(good) == set(events)
    (cleaned,) = (r for r in events.values() if b"a control character" in (r.value or b""))
    assert "a control character: " == json.loads(cleaned.value or b"")["comment"]
    bad = [n for n, line in enumerate(lines) if line in reasons]
    assert places(bad) == set(dead)
    found = {starts.index(p.start): dict(r.headers)["reason"].decode() for p, r in dead.items()}
    assert {n: reasons[lines[n]] for n in bad} == found
    assert len(dead) == len(records(mock, mock.dead_letters)), "a dead letter came twice"
    assert len(events) == len(records(mock, mock.events)), "an event came twice"


def test_every_reason_of_the_list_has_a_line_here_or_elsewhere() -> None:
    """A new reason needs a way through a real agent too."""
    elsewhere = {
        "unterminated",  # test_long_lines
        *("redaction_failed", "refused_too_large", "refused_invalid"),  # below
    }
    assert set(REASONS) == {bad.reason for bad in BAD} | elsewhere


def test_a_dead_letter_shows_the_line_as_far_as_it_may(mock: Topics, tmp_path: Path) -> None:
    """Whole and as text; of no text only its length and hash; of a long one the beginning."""
    lines = [b'{"type":"nobody\\u0040x"}', b"\xff" * 9, b"z" * (HUGE_BYTES // 10)]
    with Agent(tmp_path, mock, source={"line_bytes_max": LINE_BYTES_MAX}) as agent:
        append(agent.root / "acme/a.jsonl", lines)
        agent.start()
        agent.until_delivered(0, 3)
        assert 0 == agent.stop()

    letters = sorted(records(mock, mock.dead_letters), key=place_of)
    first, second, third = letters
    assert [b"unknown_type", b"invalid_utf8", b"oversize"] == [
        dict(letter.headers)["reason"] for letter in letters
    ]
    assert b'{"type":"nobody@x"}' == first.value
    assert {"length", "hash"} == json.loads(second.value).keys()
    assert 9 == json.loads(second.value)["length"]
    assert set(b"z") == set(third.value)
    assert b"%d" % len(lines[2]) == dict(third.headers)["cut"]
    assert all(letter.key == dict(letter.headers)["source"] for letter in letters)


def test_what_could_not_be_redacted_leaves_no_payload(mock: Topics, tmp_path: Path) -> None:
    """A rule of the user's own that would have to look too far: it fails closed, for that line."""
    pytest.importorskip("re2")
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: mine, pattern: 'a.*b|a'}\n")
    lines = [feedback(1), feedback(2, metadata={"x": "a" * 40_000}), feedback(3)]
    with Agent(tmp_path, mock, redact={"custom": str(rules)}) as agent:
        append(agent.root / "acme/file.jsonl", lines)
        agent.start()
        agent.until_delivered(2, 1)
        assert 1 == agent.metric("lines_rejected_total", reason="redaction_failed")
        assert 0 == agent.stop()
    (dead,) = records(mock, mock.dead_letters)
    assert b"redaction_failed" == dict(dead.headers)["reason"]
    said = json.loads(dead.value or b"")
    assert {"length": len(lines[1]), "hash": said["hash"]} == said


@pytest.mark.kafka
async def test_a_record_whose_time_the_topic_refuses_is_dead_lettered_alone(
    kafka: str, topics: conftest.Topics, tmp_path: Path
) -> None:
    """One that is years old, where the topic takes what is of the last day."""
    strict = Topics(
        kafka,
        await topics(partitions=1, message_timestamp_before_max_ms=86_400_000),
        await topics(1),
    )
    lines = [feedback(n, timestamp=None) for n in range(20)]
    lines[7] = feedback(7, timestamp="2001-02-03T04:05:06Z")
    with Agent(tmp_path, strict, kafka={"timestamp": "event"}) as agent:
        append(agent.root / "acme/a.jsonl", lines)
        agent.start()
        agent.until_delivered(19, 1)
        assert 0 == agent.stop()
    numbers = [int(r.key[-12:], 16) for r in await real_kafka.read_all(kafka, strict.events)]
    assert [n for n in range(20) if n != 7] == numbers
    (dead,) = await real_kafka.read_all(kafka, strict.dead_letters)
    assert b"refused_invalid" == dict(dead.headers)["reason"]
    assert 7 == json.loads(dead.value)["metadata"]["seq"]


@pytest.mark.kafka
async def test_a_record_too_large_for_the_topic_is_dead_lettered_alone(
    kafka: str, topics: conftest.Topics, tmp_path: Path
) -> None:
    """What the topic takes is less than what a line may be; compression must not save it. The
    others keep their order, those behind it included."""
    small = Topics(kafka, await topics(partitions=1, max_message_bytes=4096), await topics(1))
    lines = [feedback(n) for n in range(400)]
    large = [50, 51, 399]
    for n in large:
        lines[n] = feedback(n, comment=noise(9000))
    with Agent(tmp_path, small, kafka={"compression": "none"}) as agent:
        append(agent.root / "acme/a.jsonl", lines)
        agent.start()
        agent.until_delivered(400 - len(large), len(large))
        assert 0 == agent.stop()

    numbers = [int(r.key[-12:], 16) for r in await real_kafka.read_all(kafka, small.events)]
    assert [n for n in range(400) if n not in large] == numbers
    letters = sorted(await real_kafka.read_all(kafka, small.dead_letters), key=place_of)
    assert [b"refused_too_large"] * 3 == [dict(r.headers)["reason"] for r in letters]
    assert large == [json.loads(r.value)["metadata"]["seq"] for r in letters]
