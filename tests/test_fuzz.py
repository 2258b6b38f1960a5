"""The targets of ``scripts/fuzz``, driven by Hypothesis; and that they can fail.

FEEDBACK_AGENT_FUZZ_EXAMPLES says how many examples of each; the default is quick.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.core import decode, lines, redact
from tests.fuzz import decoder, redactor, splitter

EXAMPLES = int(os.environ.get("FEEDBACK_AGENT_FUZZ_EXAMPLES", "300"))
pytestmark = pytest.mark.timeout(300 + EXAMPLES // 20)
MANY = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])

FILES = st.lists(
    st.sampled_from(
        [b"\n", b"\n\n", b"ab\n", b"\r\n", b"\0", b"\0" * 80, b"x" * 9, b"y" * 70, b"z" * 200]
    ),
    max_size=40,
).map(b"".join)
HEADS = st.binary(min_size=splitter.HEAD_BYTES, max_size=splitter.HEAD_BYTES)
TOKENS = st.sampled_from(range(len(decoder.TOKENS)))
KINDS = st.sampled_from([0, *range(decoder.INSIDE, decoder.INSIDE + len(decoder.BEGINNINGS))])


@MANY
@given(HEADS, FILES | st.binary(max_size=300))
@example(bytes(splitter.HEAD_BYTES), b"\0\1")
@example(b"\0" * 3 + b"\x05" * 9, b"a\n" + b"\0" * 70 + b"bc\n\0\0")
def test_the_splitter_says_what_the_obvious_way_says(head: bytes, written: bytes) -> None:
    splitter.check(head + written)


@MANY
@given(st.binary(max_size=300))
@example(b"\x80" + b"[" * 100_000)
@example(b"\x80" + b'{"a":' * 100_000)
@example(b"\x80" + b"9" * 1_000_000)
@example(b"\x80" + b'{"type":"user_feedback","session_id":"' + b"\\u0001" * 100_000 + b'"}')
def test_the_decoder_keeps_its_promises_on_any_bytes(data: bytes) -> None:
    decoder.check(data)


@MANY
@given(KINDS, st.lists(TOKENS, max_size=12))
def test_the_decoder_keeps_its_promises_on_what_is_almost_a_line(
    kind: int, tokens: list[int]
) -> None:
    decoder.check(bytes([kind, *tokens]))


@MANY
@given(
    st.sampled_from(decoder.BEGINNINGS),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**65), 2**65)
        | st.floats()
        | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["type", "client", "a", "\x01"]) | st.text(), inner)
        ),
        max_leaves=30,
    ),
    st.sampled_from(["metadata", "x", "rating", "comment", "model_params", "tags", "event_id"]),
)
def test_the_decoder_keeps_its_promises_on_any_value(
    beginning: bytes, value: object, field: str
) -> None:
    encoded = json.dumps({field: value}).encode()
    decoder.check(b"\x80" + beginning + encoded[1:])


@MANY
@given(st.integers(0, 255), st.binary(max_size=120))
@example(0, bytes(range(len(redactor.TOKENS))))
def test_the_redactor_keeps_its_promises_on_any_text(kind: int, data: bytes) -> None:
    redactor.check(bytes([kind]) + data)


@MANY
@given(
    st.integers(0, 255),
    st.lists(
        st.lists(st.integers(0, len(redactor.TOKENS) - 1), max_size=8).map(bytes)
        | st.text(max_size=8).map(lambda text: bytes([redactor.RAW]) + text.encode()),
        max_size=5,
    ),
)
@example(250, [bytes([redactor.TOKENS.index("::1"), redactor.TOKENS.index(" ")])])
def test_the_redactor_keeps_its_promises_on_what_is_almost_personal(
    kind: int, texts: list[bytes]
) -> None:
    redactor.check(bytes([kind]) + bytes([redactor.END]).join(texts))


def test_the_splitters_oracle_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = lines.Cursor._grow

    def forgets(self: lines.Cursor, read: bytes, skip: int) -> None:
        broken(self, read, skip)
        self._passed = 0

    monkeypatch.setattr(lines.Cursor, "_grow", forgets)
    with pytest.raises(AssertionError):
        splitter.check(b"\0\0\0" + b"\x09" * 9 + b"too long\nb\n")


def test_the_decoders_oracle_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "may_hold_controls", lambda _: False)
    with pytest.raises(AssertionError):
        decoder.check(b"\x80" + decoder.BEGINNINGS[0] + rb'"comment":"\u0001"}')


@pytest.mark.parametrize(
    ("room", "broken"),
    [
        ("_within", lambda self, value, bound, decoded: value),
        ("_dict", lambda self, value: {self.text(key): value[key] for key in value}),
        ("_at_rest", lambda self, text, fold: text.replace("::1", "[::1]")),
    ],
)
def test_the_redactors_oracle_can_fail(
    monkeypatch: pytest.MonkeyPatch, room: str, broken: object
) -> None:
    monkeypatch.setattr(redact.Redactor, room, broken)
    one, other, space = (redactor.TOKENS.index(token) for token in ("::1", "fe80::1", " "))
    data = bytes([250, one, space, redactor.END, one, redactor.END, other])
    with pytest.raises(AssertionError):
        redactor.check(data)
