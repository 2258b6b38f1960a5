"""Bodies of records: what a Kafka client reads of them is what they were made of."""

import pytest
from aiokafka.record.util import decode_varint, encode_varint
from hypothesis import given
from hypothesis import strategies as st

from agent.core.body import TABLE_MAX, VARINTS, body, header, sized, varint, varints, with_header

HEADERS = st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=8)), max_size=63)
EDGES = [0, 1, 63, 64, 8191, 8192, TABLE_MAX - 1, TABLE_MAX, (1 << 20) - 1, 1 << 20, (1 << 62) - 1]


@given(st.integers(-(1 << 62), (1 << 62) - 1) | st.sampled_from(EDGES))
def test_a_varint_is_what_a_client_writes_and_reads(number: int) -> None:
    theirs = bytearray()
    encode_varint(number, theirs.append)

    assert theirs == varint(number)
    assert (number, len(theirs)) == decode_varint(varint(number))


@given(st.lists(st.integers(0, 2 * TABLE_MAX), max_size=5))
def test_many_varints_are_each_alone(numbers: list[int]) -> None:
    assert [*map(varint, numbers)] == varints(numbers)
    assert [*map(varint, range(TABLE_MAX))] == [*VARINTS]


@given(
    st.none() | st.binary(max_size=70),
    st.binary(max_size=300),
    HEADERS.map(dict),
    st.integers(0, 300),
)
def test_one_more_header_stands_behind_the_others(
    key: bytes | None, value: bytes, headers: dict[str, bytes], bytes_max: int
) -> None:
    own, unless = header("trace", b"1234"), header("trace", b"????")[:-4]
    given_headers = [(name, content or b"") for name, content in headers.items()][:62]
    more = [*given_headers, ("trace", b"1234")]
    plain, with_one = body(key, value, given_headers), body(key, value, more)

    assert (with_one if len(value) <= bytes_max else plain) == with_header(
        plain, own, unless, bytes_max
    )
    assert with_one == with_header(with_one, own, unless, 1 << 20), "it has one"


def test_more_headers_than_their_count_has_room_for_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        body(None, b"", [("h", b"")] * 64)
    assert b"\x01" == sized(None)
