import copy
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.events import Event, ModelResponse, UserFeedback
from agent.core.folding import _FOREIGN, folded, folds
from agent.core.phones import _phones, phones
from agent.core.policy import SchemaPolicy
from agent.core.redact import (
    FAILED,
    UNSHOWN,
    Redaction,
    RedactionFailed,
    Redactor,
)
from agent.core.redaction_rules import DIGITS, KINDS, RULES, Kind, Rule
from agent.core.spans import merged
from agent.core.suspicion import suspects, suspicious
from agent.core.writing import write_all
from tests.examples import EXAMPLES

EMAIL, CARD, PHONE = "jo.doe@example.com", "4111 1111 1111 1111", "+1 415 555 0123"
REDACTOR = Redactor(Redaction(version="1"))
HANG_S = 1.0

GROUPS = "abcd:" * 7 + "abcd"
FRAGMENTS = [
    *(GROUPS, "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:10.0.0.1", "2001:db8:85a3:8d3:1319:8a2e:370:7348"),
    *(EMAIL, CARD, PHONE, "123-45-6789", "DE89 3704 0044 0532 0130 00", "10.0.0.1", "fe80::1"),
    *("0", "1", "9", "12", "0171", "4111", "@", "%40", ".", ":", "::", "-", "+", "(", ")", " "),
    *("a", "f", "DE", "GB82", "ssn ", "tel ", "x", "_", "/", "#", "[", "]", "[EMAIL]", "[CARD]#2"),
    *("\u200b", "\ufe0f", "\u20e3", "\uff10", "\uff20", "\u0661", "\u00a0", "\u2011", "\u3002"),
    *("\u0301", "\u0344", "\ufdfa", "\u00e9", "\U0001f44d", "\\n", "\\u0000", "\\u200b", "\\", '"'),
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


def redacted(text: str) -> str:
    return REDACTOR.text(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"<{EMAIL}>, yes", "<[EMAIL]>, yes"),
        ("mailto:jo@example.com?subject=x", "mailto:[EMAIL]?subject=x"),
        ("\uff4a\uff4f\uff20\uff45\uff58\uff0e\uff43\uff4f\uff4d ok", "[EMAIL] ok"),
        ("j\u200bo@exa\u2060mple.com", "[EMAIL]"),
        ("jose\u0301@example.com", "[EMAIL]"),
        ("jo%40example.com", "[EMAIL]"),
        (f"pay {CARD}.", "pay [CARD]."),
        ("4\u0661\u0661\u06611111111111111", "4\u0661\u0661\u06611111111111111"),
        ("\uff14111\u00a01111\u20111111 1111", "\uff14111\u00a01111\u20111111 1111"),
        ("\uff14111\u00a01111 1111\u20031111", "[CARD]"),
        ("1\ufe0f\u20e3 415 555 0123", "[PHONE]"),
        (f"on {PHONE} ext. 12", "on [PHONE]"),
        ("SSN: 123456789", "SSN: [SSN]"),
        ("415-555-0123 " * 20, "[PHONE] " * 20),
        ("0171 1234567 " * 20, "[PHONE] " * 20),
        ("0049 171 1234567 " * 20, "[PHONE] " * 20),
        ("Phone:\n60-56-85-91\n", "Phone:\n[PHONE]\n"),
        ("a,07700 063 966-Fax\nb", "a,[PHONE]-Fax\nb"),
        ("they do not answer at 78 651 450", "they do not answer at [PHONE]"),
        ("+992 372 12 3456", "[PHONE]"),
        (
            "my card 4937 03486091 7284, old one 676222165679",
            "my card [CARD], old one [CARD]",
        ),
        ("ip 9.6.0.2, 9.6.0.2:80, 9.6.0.12", "ip [IPV4], [IPV4]:80, [IPV4]"),
        ("from ::ffff:10.0.0.1 to 10.0.0.2:80", "from [IPV6] to [IPV4]:80"),
    ],
)
def test_a_marker_stands_where_it_stood_and_all_else_stays(text: str, shown: str) -> None:
    assert shown == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "2.10.3 1.2.3.4-rc1 v1.2.3.4 Chrome/120.0.0.0 version 10.0.0.1",
        "it runs 9.6.0.2 on Oracle 12.1.0.2 and Android 10.0.0.1, 1.1.1.1",
        "114-0919326-1627090, 00522789, 00756-3470, 06234-1908",
        "1 234 567 mobile users, 1 234 567 home runs",
        "4b8c0f9e-1111-4222-8333-444455556666 12345678-1234-4123-9123-123456789012",
        "6333adf6-9961-4477-be07-0a9955234807, the end of which is a Belgian IBAN's",
        "9e107d9d372bb6826bd81d3542a419d6 1764000000123 1764000000 20260131",
        "2026-01-31T12:00:00.123456+02:00 31.01.2026 12:30 01/31/2026 12:30:45",
        "order 0123456789, ref 415-555-0123, invoice #0171 1234567",
        "$1,234,567.89 and 1.234.567,89 EUR, 612 345 678",
        "52.520008, 13.404954 and +52.520008, -122.419416",
        "12:30:45 std::vector a::b ::before dead::beef aa:bb:cc:dd:ee:ff",
        "icon@2x.png lodash@4.17.21 user@localhost",
        "card 4111 1111 1111 1112, credit card 123456789012",
        "DE88 3704 0044 0532 0130 00 and 4111 1111 1111 1112",
        "000-12-3456 666-12-3456 900-12-3456 123-00-4567",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert text == redacted(text)


@given(texts)
@example("4111 1111 1111 1111" * 3)
@example("jo@example.com@example.com@example.com")
def test_what_is_redacted_is_redacted(text: str) -> None:
    """A second agent, or a spooled record read again, changes nothing."""
    once = redacted(text)
    assert once == redacted(once)
    once = REDACTOR.json_text(text)
    assert once == REDACTOR.json_text(once)


@given(texts)
def test_the_cheap_test_passes_nothing_that_a_rule_finds(text: str) -> None:
    plain = folded(text)
    if not suspicious(plain.encode("utf-8", "surrogatepass")):
        assert [] == REDACTOR._found(plain)


IDS = [
    *(
        '"',
        '"',
        '"',
        "s-",
        "u-",
        "u_",
        "user-",
        "DE-",
        "tel",
        "fax ",
        "ssn ",
        "ssn",
        "card ",
        "visa",
    ),
    *("a", "b", "e", "f", "be", "DE", "DE89", "BE68", "x", "-", " ", ".", "(", "+", "\n", "\\"),
    *("1", "9", "60475084", "5551234", "123456789", "4111111111111111", "0171", "53 9007 5470 34"),
]


@settings(max_examples=EXAMPLES * 10)
@given(st.lists(st.sampled_from(IDS), max_size=9).map("".join))
@example("tel-55512345")
@example("s-4111111111111111")
@example('ssn "a123456789"')
@example('"BE945390075470AB"')
@example('"BE-945390075470AB"')
@example('"tel-55512345"')
def test_what_looks_like_an_id_is_passed_only_where_no_rule_finds_anything(text: str) -> None:
    """In a text as in JSON, in which quotes and line ends have a backslash before them."""
    found = REDACTOR._found(text)

    assert not found or suspicious(text.encode())
    assert not found or suspects(msgspec.json.encode([text]))


def test_a_name_in_a_path_is_looked_at_as_if_it_stood_alone() -> None:
    """A client may be a path too, and becomes part of every record: source.client_depth."""
    assert "ns/[PHONE]" == REDACTOR.shown("ns/+4915129988776")
    assert "[SSN]/[IPV4].jsonl.1" == REDACTOR.shown("536-22-8726/203.0.113.177.jsonl.1")
    assert "acme/feedback-20260131.jsonl" == REDACTOR.shown("acme/feedback-20260131.jsonl")


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_a_rule_finds_nothing_where_it_may_find_nothing(kind: Kind, text: str) -> None:
    rule = RULES[kind]
    assert rule.may_find(text, sum(map(text.count, DIGITS))) or not [*rule.find(text)]


AROUND = [
    *(
        PHONE,
        "415-555-0123",
        "555 0123",
        "55 50 12 3",
        "07700 900 123",
        "answering me under",
        "tel",
    ),
    *(
        "messages us on",
        " number is ",
        "mobiltelefon-nummer",
        "ref",
        "order no. ",
        "-Fax",
        " (office",
    ),
    *(" mobile", ")", "\n", " ", "   ", ",", ".", ";", "#", " ext. 12", "x9", "users", "1", "00"),
    *("word " * 12, "\t" * 60, "z" * 70, "2026-11-23", "4b8c0f9e-1111-4222-8333-444455556666"),
]


@settings(max_examples=EXAMPLES * 5)
@given(st.lists(st.sampled_from(AROUND), max_size=9).map("".join))
@example("555 0123 mobile" + " " * 200 + "users")
@example("answering me under 4 1 5 5 5 5 0" + " " * 100 + "1")
def test_phones_are_looked_for_around_digits_and_found_as_everywhere(text: str) -> None:
    assert merged(_phones(text, 0, len(text))) == merged(phones(text))


@pytest.mark.parametrize("id_", ["60475084f1", "s-60475084f1", "u-60475084", "sess_9e60475084"])
def test_a_short_hexadecimal_id_is_not_looked_at_again(id_: str) -> None:
    """Every tenth has as many digits in a row as a phone."""
    assert not suspicious(f'"{id_}"'.encode())
    assert not suspects(msgspec.json.encode([id_]))


def test_a_text_that_needs_no_folding_is_one_that_folding_would_leave() -> None:
    """The cheap test of foreign texts stands for folding them."""
    for code in range(0x80, 0x110000):
        if _FOREIGN.fullmatch(character := chr(code)):
            fold = folded(character)
            assert fold
            assert not re.search(r"[\x00-\x7f]", fold), hex(code)
    assert folds("\u200b")
    assert not folds("abc")


def test_equal_values_have_equal_hashes_by_the_key_and_no_others() -> None:
    one, other = (Redactor(Redaction(version="1", hash_key=key * 16)) for key in (b"a", b"b"))
    marker = re.compile(r"\[EMAIL:[a-p]{16}\]")

    first = one.text(EMAIL)
    assert marker.fullmatch(first)
    assert first == one.text(EMAIL.upper())
    assert first == one.text("jo\u200b.doe@example.com")
    assert first != one.text("x" + EMAIL)
    assert first != other.text(EMAIL)
    assert first == one.text(first)


def decoded_of(line: dict[str, Any]) -> Decoded:
    found = Decoder(SchemaPolicy(unknown_types="pass")).decode(json.dumps(line).encode(), 0.0)
    assert isinstance(found, Decoded), found
    return found


def test_every_string_and_key_of_an_event_is_redacted_and_its_ids_are_not() -> None:
    uuid = "41111111-1111-4111-8111-111111111111"
    decoded = decoded_of(
        {
            "type": "user_feedback",
            "event_id": uuid,
            "request_id": uuid,
            "timestamp": "2026-01-01T00:00:00.123456789Z",
            "schema_version": EMAIL,
            "session_id": f"s:{EMAIL}",
            "user_id": EMAIL,
            "comment": f"a {PHONE}",
            "tags": ["x", CARD],
            "metadata": {"deep": [{EMAIL: [EMAIL]}], "n": 4111111111111111},
            "unknown": {"list": [EMAIL, 1, None, True]},
            EMAIL: 1,
        }
    )
    redactor = Redactor(Redaction(version="1"))
    assert decoded is redactor.event(decoded)
    event = decoded.event
    assert isinstance(event, UserFeedback)
    assert (uuid, uuid, "2026-01-01T00:00:00.123456789Z") == (
        event.event_id,
        event.request_id,
        event.timestamp,
    )
    assert ("[EMAIL]", "s:[EMAIL]", "[EMAIL]") == (
        event.schema_version,
        event.session_id,
        event.user_id,
    )
    assert ("a [PHONE]", ["x", "[CARD]"]) == (event.comment, event.tags)
    assert event.metadata == {"deep": [{"[EMAIL]": ["[EMAIL]"]}], "n": 4111111111111111}
    assert decoded.extras == {"unknown": {"list": ["[EMAIL]", 1, None, True]}, "[EMAIL]": 1}
    assert redactor.counts == {"email": 7, "phone": 1, "card": 1}


@pytest.mark.parametrize(
    ("prompt_hash", "shown"),
    [("41111111" * 8, "41111111" * 8), (EMAIL, "[EMAIL]"), (f"{PHONE}", "[PHONE]")],
)
def test_a_prompt_hash_is_left_alone_where_it_is_one(prompt_hash: str, shown: str) -> None:
    decoded = decoded_of({"type": "model_response", "model_id": "m", "prompt_hash": prompt_hash})
    assert decoded is REDACTOR.event(decoded)
    event, texts = decoded.event, decoded.extras or {}
    assert isinstance(event, ModelResponse)
    assert shown == (event.prompt_hash or texts["prompt_hash"])


def test_keys_that_become_equal_are_numbered() -> None:
    fields = {"a@b.co": 1, "[EMAIL]": 2, "c@d.co": 3, "[EMAIL]#2": 4, "d": 5}
    decoded = decoded_of({"type": "user_feedback", "session_id": "s", "metadata": fields})
    REDACTOR.event(decoded)
    metadata = decoded.event.metadata
    assert metadata is not None
    assert sorted(metadata.values()) == [1, 2, 3, 4, 5]
    assert all(re.fullmatch(r"\[EMAIL\](#[0-9])?|d", key) for key in metadata)
    assert (2, 4) == (metadata["[EMAIL]"], metadata["[EMAIL]#2"])


def test_a_version_is_one_where_its_name_says_so() -> None:
    """Four numbers are what many apps call their version, and metadata is where they put it."""
    fields = {"app_version": "12.1.0.3", "firmware": "12.1.0.3", "version": EMAIL, "ip": "12.1.0.3"}
    decoded = decoded_of({"type": "user_feedback", "session_id": "s", "metadata": fields})
    REDACTOR.event(decoded)
    assert decoded.event.metadata == {**fields, "version": "[EMAIL]", "ip": "[IPV4]"}


@pytest.mark.parametrize("hash_key", [None, b"k" * 16])
@pytest.mark.parametrize(
    ("field", "bound"),
    [("comment", 10_000), ("user_id", 256), ("session_id", 256), ("schema_version", 64)],
)
def test_markers_make_no_text_longer_than_its_field_may_be(
    field: str, bound: int, hash_key: bytes | None
) -> None:
    """What a consumer was promised of a field holds; the record says that it was cut."""
    redactor = Redactor(Redaction(version="1", hash_key=hash_key))
    for unit in ("::1 ", "a@b.co ", "x", "1.2.3.45 "):
        text = (unit * bound)[:bound].strip()
        decoded = decoded_of({"type": "user_feedback", "session_id": "s", field: text})
        assert decoded is redactor.event(decoded)
        shown = getattr(decoded.event, field)
        assert 0 < len(shown) <= bound
        assert not re.search(r"\[[^]]*$", shown), "no marker is halved"
        assert decoded.cut == (len(redactor.text(text)) > bound)
        assert shown == redactor.text(shown)


def test_each_tag_keeps_its_bound_and_none_is_lost() -> None:
    tags = ["::1 " * 32, "short"]
    decoded = decoded_of({"type": "user_feedback", "session_id": "s", "tags": tags})
    REDACTOR.event(decoded)
    assert isinstance(decoded.event, UserFeedback)
    assert decoded.cut
    assert [["[IPV6]"] * 18, ["short"]] == [tag.split() for tag in decoded.event.tags or []]


def test_a_value_of_a_closed_list_is_never_a_marker() -> None:
    """The event would be none any more, whatever rule a user writes."""
    rule = Rule("word", lambda text: (m.span() for m in re.finditer("up|healthy", text)), str)
    redactor = Redactor(Redaction(version="1", custom=(rule,)))
    decoded = decoded_of({"type": "user_feedback", "session_id": "up", "thumbs": "up"})
    redactor.event(decoded)
    assert isinstance(decoded.event, UserFeedback)
    assert ("[WORD]", "up") == (decoded.event.session_id, decoded.event.thumbs)


def test_a_rule_of_the_users_own_sees_what_a_phone_is_not() -> None:
    """A date of birth, an order number, a UUID: that they are no phones is all that is known."""
    dates, orders = "19[0-9]{2}-[0-9]{2}-[0-9]{2}", "[0-9]{3}-[0-9]{7}-[0-9]{7}"
    pattern = f"{dates}|{orders}|[0-9a-f]{{8}}(-[0-9a-f]{{4,12}}){{4}}"
    rule = Rule("mine", lambda text: (m.span() for m in re.finditer(pattern, text)), str)
    redactor = Redactor(Redaction(version="1", custom=(rule,)))
    text = "born 1980-01-31, order 114-0919326-1627090, 4b8c0f9e-1111-4222-8333-444455556666"
    assert "born [MINE], order [MINE], [MINE]" == redactor.text(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 10**9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, dict):
        return [shape(inner) for inner in value.values()]
    return None if isinstance(value, str) else value


@given(st.dictionaries(texts, json_values, max_size=4))
def test_structure_is_never_touched(metadata: dict[str, Any]) -> None:
    """As many keys, as long lists, the same types; numbers, true, false and null as they are."""
    event = UserFeedback(session_id="s", metadata=copy.deepcopy(metadata))
    decoded = Redactor(Redaction(version="1")).event(Decoded(event))
    assert isinstance(decoded, Decoded)
    assert shape(metadata) == shape(decoded.event.metadata)
    again = copy.deepcopy(decoded.event.metadata)
    assert isinstance(REDACTOR.event(decoded), Decoded)
    assert again == decoded.event.metadata


def failing(_: str) -> Iterator[tuple[int, int]]:
    raise ValueError("payload")


def restless(text: str) -> Iterator[tuple[int, int]]:
    """Find a word, whose marker holds it again."""
    return (match.span() for match in re.finditer(r"\bx+\b|(?<=\])$", text))


def test_whatever_fails_fails_closed() -> None:
    """No payload leaves for a bug in a rule, and no loop is endless."""
    for find in (failing, restless, lambda _: iter([(0, 10**6)])):
        broken = Redactor(Redaction(version="1", custom=(Rule("mine", find, str),)))
        decoded = decoded_of({"type": "user_feedback", "session_id": "s xx"})
        outcome = broken.event(decoded)
        assert outcome is FAILED or outcome is decoded
        assert broken.shown("a xx") in {UNSHOWN, "[MINE]", "a [MINE]"}
    with pytest.raises(ValueError, match="payload"):
        Redactor(Redaction(version="1", custom=(Rule("mine", failing, str),))).text("x")
    grows = Rule("mine", lambda text: iter([(len(text) - 1, len(text))]), str)
    with pytest.raises(RedactionFailed):
        Redactor(Redaction(version="1", custom=(grows,))).text("x")


HOSTILE = [
    *(
        "a",
        "1",
        "@",
        "a@",
        "@a",
        "a.",
        "a@a.",
        ".",
        "-",
        "+",
        "+1",
        "+1 ",
        "00",
        "01 ",
        "0171/",
        "(",
    ),
    *("(1)", "1-", "1 ", "1.", "4111 ", "4111-1111-", "4", "a@b.c", "%40", "DE", "DE89", "DE89 3"),
    *(
        "DE893704004405320130",
        ":",
        "::",
        "1:",
        "f:",
        ":f",
        "1.1.",
        "1.1.1.1",
        "255.",
        "ssn",
        "ssn ",
    ),
    *(
        "tel",
        "tel ",
        "tel: ",
        "phone number ",
        "order ",
        "card ",
        "card 4",
        "messages to ",
        "my number is ",
        "1 1-Fax ",
        "1(2)3 office",
        "ip 1.1.1.1 ",
        "version ",
        "connection from ",
        "2026-01-01",
        "2026-01-01 12:",
        "[EMAIL",
        "[",
    ),
    *(
        "\u200b",
        "\u0301\u0316",
        "\ufdfa",
        "\uff20",
        "1\u200b",
        "a\u0301@",
        "\\n",
        "\\u0000",
        "\\",
        "_",
    ),
    *(
        "0" * 64 + " ",
        "a" * 64 + "@",
        "a" * 63 + ".",
        "f" * 45 + ":",
        EMAIL + " ",
        CARD,
        PHONE + "\n",
    ),
]


def took_s(text: str) -> float:
    best = float("inf")
    for _ in range(2):
        began_s = time.thread_time()
        for look in (REDACTOR.text, REDACTOR.json_text):
            look("jo@example.com " + text)
        for rule in RULES.values():
            for _ in rule.find(text):
                pass
        best = min(best, time.thread_time() - began_s)
    return best


@pytest.mark.parametrize("unit", HOSTILE)
def test_no_text_takes_more_than_linear_time(unit: str) -> None:
    """Eight times the text takes about eight times as long; squared it would be 64. No hang."""
    short, long = (unit * (length // len(unit)) for length in (6_250, 50_000))
    least_s = 0.002  # below it the clock and the machine say more than the text
    long_s = took_s(long)
    assert long_s < 4 * HANG_S  # some forty looks at it
    assert long_s < 24 * max(took_s(short), least_s)


def test_only_the_kinds_that_are_wanted_are_looked_for() -> None:
    text = f"{EMAIL} {CARD}"
    assert "[EMAIL] " + CARD == Redactor(Redaction(version="1", kinds=("email",))).text(text)
    assert tuple(RULES) == KINDS


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "a_number", EMAIL, ":"]) | texts,
            texts
            | st.integers(-(2**53), 2**53)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.lists(texts | st.integers(0, 2**53), max_size=3),
            max_size=3,
        ),
        max_size=4,
    )
)
@example([{"a": GROUPS}, {"a": "1:2:3:4:5:6:7:8"}, {"a": '"::1'}, {"a": '"1:2:3:4:5:6:7:8'}])
@example([{"a": "s-4155550123"}, {"s-4155550123": 1}, {"a": 'tel "s-4155550123"'}])
@example([{"a": "4.1.5.5"}, {"a": "1.2.3.45"}, {"a": "1 2 3 4 5 6"}, {"a": "call 4 15 55 01"}])
@example([{"a": ":4111111111111111,"}])
@example([{"a": 'x":4111111111111111,'}])
@example([{"a": 1234567890123}, {"a": CARD}, {"a": 0.1234567}])
def test_events_together_are_redacted_as_each_is_alone(metadata: list[dict[str, Any]]) -> None:
    """The cheap test of many at once passes over numbers of JSON, and over nothing else."""
    lines = [
        {"type": "user_feedback", "session_id": "s", "metadata": fields} for fields in metadata
    ]
    together: list[Event | Decoded | Rejection] = [decoded_of(line).event for line in lines]
    alone = [REDACTOR.event(decoded_of(line)) for line in lines]
    REDACTOR.events(together, [text for _, text in write_all(together)])
    assert [_event(one) for one in alone] == [_event(one) for one in together]


def _event(one: Event | Decoded | Rejection) -> Event | Rejection:
    return one.event if isinstance(one, Decoded) else one
