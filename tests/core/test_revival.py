import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.core.decode import Decoder
from agent.core.policy import SchemaPolicy
from agent.core.record import Origin, Recorder, RecordPolicy
from agent.core.redact import Redaction
from agent.core.redaction_rules import KINDS
from agent.core.revival import Dead, Letter, Revived, Reviver, Wanted

AT_MS = 1_795_000_000_000
NOW_S = AT_MS / 1000 + 60
POLICY = RecordPolicy(version="9", hostname="here")
REDACTION = Redaction(version="2", kinds=KINDS)
ORIGIN = Origin(
    node="node-7", client="app", source_id="8a7f", generation=2, inode=5, birth_ns=6,
    inode_generation=7,
)  # fmt: skip
LINE = {"type": "user_feedback", "session_id": "s", "comment": "write to joe@example.com"}


def reviver(redaction: Redaction | None = REDACTION) -> Reviver:
    return Reviver(
        Decoder(SchemaPolicy()), redaction, POLICY, topic="dlq", rfc3339=lambda at_s: f"at {at_s}"
    )


def letter(value: bytes, **headers: str) -> Letter:
    given = {"reason": "schema", "source": "1;8a7f;2;7;99", "client": "app",
             "collector_id": "node-7", **headers}  # fmt: skip
    encoded = {name: text.encode() for name, text in given.items() if text}
    return Letter(id="0:17", timestamp_ms=AT_MS, value=value, headers=encoded)


def event_of(found: Revived | Dead) -> tuple[dict[str, Any], dict[str, bytes]]:
    assert isinstance(found, Revived), found
    _, value, headers = found.record
    return json.loads(value), dict(headers)


def dead(found: Revived | Dead) -> str:
    assert isinstance(found, Dead), found
    return found.why


def test_it_is_the_event_that_its_line_would_have_been() -> None:
    """But for the id of one that has none: that is made of bytes which are not in a dead letter."""
    line = json.dumps({**LINE, "event_id": "00000000-0000-4000-8000-000000000007"}).encode()
    decoder = Decoder(SchemaPolicy())
    own = Recorder(RecordPolicy(version="9", hostname="node-7"), ORIGIN)
    key, value, headers = own.record(
        decoder.decode(line, NOW_S), line, 7, 99, f"at {AT_MS / 1000}"  # type: ignore[arg-type]
    )  # fmt: skip
    found = reviver(None).revive(letter(line), NOW_S)

    assert isinstance(found, Revived)
    assert (key, value) == found.record[:2]
    marks = [("replay_of", b"dlq/0:17"), ("replayed_at", f"at {NOW_S}".encode())]
    assert [*headers, *marks] == found.record[2]


def test_an_id_that_was_derived_stays_the_same_however_often_it_is_replayed() -> None:
    line = json.dumps(LINE).encode()
    first, again = (event_of(reviver().revive(letter(line), at))[0] for at in (NOW_S, NOW_S + 1))
    other = event_of(reviver().revive(letter(line, source="1;8a7f;2;99;120"), NOW_S))[0]
    assert first["event_id"] == again["event_id"] != other["event_id"]
    assert "5" == first["event_id"][14], "a UUIDv5"


def test_what_was_let_through_before_is_redacted_now() -> None:
    event, headers = event_of(reviver().revive(letter(json.dumps(LINE).encode()), NOW_S))
    assert "write to [EMAIL]" == event["comment"]
    assert b"2" == headers["redaction"]


def test_a_record_that_was_refused_says_itself_whose_it_is() -> None:
    """Its dead letter is the event."""
    metadata = {"client": "app", "collector_id": "node-7", "mine": 1}
    value = json.dumps({**LINE, "metadata": metadata}).encode()
    refused = letter(value, reason="refused_too_large", client="", collector_id="")
    assert ("app", "node-7") == (refused.client, refused.node)
    event, _ = event_of(reviver().revive(refused, NOW_S))
    assert metadata.items() <= event["metadata"].items()


def test_what_is_not_whole_is_not_sent() -> None:
    line = json.dumps(LINE).encode()
    for value, headers, why in (
        (line, {"cut": "9999"}, "cut"),
        (b'{"length":7,"hash":"ab"}', {}, "no_payload"),
        (line, {"client": ""}, "no_client"),
        (line, {"source": ""}, "no_source"),
        (line, {"source": "1;8a7f;2;-7;99"}, "no_source"),
        (b'{"type":"user_feedback"}', {}, "schema"),
        (b"no json", {}, "invalid_json"),
        (b'{"type":"mine"}', {}, "unknown_type"),
    ):
        assert why == dead(reviver().revive(letter(value, **headers), NOW_S))


def test_nobody_poses_as_another_by_what_a_line_says() -> None:
    """Of a rejected line the metadata is the app's own word."""
    posing = json.dumps({**LINE, "metadata": {"client": "victim"}}).encode()
    assert "no_client" == dead(reviver().revive(letter(posing, client=""), NOW_S))
    event, _ = event_of(reviver().revive(letter(posing), NOW_S))
    assert "app" == event["metadata"]["client"]


TEXTS = st.text(max_size=20)


@given(
    st.binary(max_size=60)
    | st.recursive(TEXTS | st.integers() | st.none(), lambda x: st.dictionaries(TEXTS, x)).map(
        lambda value: json.dumps(value).encode()
    ),
    st.dictionaries(
        st.sampled_from(["reason", "source", "client", "cut", "collector_id"]),
        st.binary(max_size=20) | st.sampled_from([b"1;8a7f;2;7;99", b"refused_invalid", b"app"]),
    ),
)
def test_whatever_lies_in_the_topic_there_is_an_answer(
    value: bytes, headers: dict[str, bytes]
) -> None:
    """Anybody who may write to it can put anything there."""
    found = Letter(id="0:0", timestamp_ms=AT_MS, value=value, headers=headers)
    Wanted(reason="x").matches(found)
    assert isinstance(reviver().revive(found, NOW_S), Revived | Dead)


def test_all_that_is_wanted_must_be_so() -> None:
    one = letter(b"{}")
    assert Wanted().matches(one)
    assert Wanted("schema", "app", AT_MS, AT_MS + 1).matches(one)
    for wanted in (
        Wanted(reason="oversize"), Wanted(client="ap"), Wanted(since_ms=AT_MS + 1),
        Wanted(until_ms=AT_MS),
    ):  # fmt: skip
        assert not wanted.matches(one)
