"""Golden: ``org.apache.kafka.common.utils.Utils.murmur2`` of kafka-clients 4.1.1, and
``rd_kafka_msg_partitioner_consistent`` of the librdkafka in confluent-kafka 2.16.1."""

import ctypes
from pathlib import Path

import confluent_kafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.partition import crc32_partition, murmur2, murmur2_partition

# key, murmur2, its partition of 12 and of 7, the CRC-32 partition of 12 and of 7
GOLDEN = [
    (bytes.fromhex(""), 275646681, 9, 2, 0, 0),
    (bytes.fromhex("61"), 2731586172, 4, 5, 3, 4),
    (bytes.fromhex("6162"), 316155434, 2, 0, 5, 5),
    (bytes.fromhex("616263"), 479470107, 3, 4, 6, 5),
    (bytes.fromhex("61626364"), 2971317748, 8, 5, 1, 4),
    (bytes.fromhex("6162636465"), 461995741, 1, 4, 9, 3),
    (bytes.fromhex("3231"), 3321034988, 0, 3, 4, 6),
    (bytes.fromhex("666f6f626172"), 3504634814, 6, 0, 5, 6),
    (bytes.fromhex("612d6c6974746c652d6269742d6c6f6e672d737472696e67"), 3308985760, 8, 1, 6, 3),
    (
        bytes.fromhex("34623863306639652d313131312d343232322d383333332d343434343535353536363636"),
        79579835,
        11,
        6,
        0,
        4,
    ),
    (bytes.fromhex("73657373696f6e2dc3bc"), 1430654149, 1, 1, 4, 0),
    (bytes.fromhex("64656661756c74"), 2448679467, 7, 1, 7, 1),
    (bytes.fromhex("99"), 1288378381, 1, 3, 5, 2),
    (bytes.fromhex("1834"), 3252285136, 8, 0, 3, 5),
    (bytes.fromhex("5a94c9"), 3981825714, 10, 4, 2, 3),
    (bytes.fromhex("390b7702"), 612225306, 6, 0, 3, 4),
    (bytes.fromhex("09d32a595d4a98"), 623656200, 0, 6, 3, 3),
    (bytes.fromhex("41f4b3e592471abe05194bb55dcab391"), 2137033145, 5, 2, 2, 2),
    (
        bytes.fromhex("0016175aa147e1f3e98ee81edf7fae40bfe793d9fced52b202e34d15e5c4caaf166fc2ed"),
        628943487,
        3,
        4,
        8,
        6,
    ),
    (
        bytes.fromhex(
            "cea4fb1b65e240a4e944b31d0705e6c8b71cf8bdfc97c696693058b22edd1479f1953297e1c82141a6a46d99364cf461b317c99fee614cc5a74b029f8f814e38"
        ),
        2357707793,
        9,
        5,
        9,
        0,
    ),
    (b"\xf7" * 255, 3189101167, 11, 5, 10, 6),
    (b"\xf7" * 257, 3447878400, 4, 6, 8, 0),
    (b"\xf7" * 263, 1956642597, 9, 0, 11, 5),
]

_bundled = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
_librdkafka = ctypes.CDLL(str(next(_bundled.glob("librdkafka*"))))


def librdkafka(partitioner: str, key: bytes | None, partitions: int) -> int:
    function = getattr(_librdkafka, f"rd_kafka_msg_partitioner_{partitioner}")
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
    function.argtypes = [pointer, ctypes.c_char_p, size, number, pointer, pointer]
    function.restype = number
    return int(function(None, key, len(key or b""), partitions, None, None))


@pytest.mark.parametrize("row", GOLDEN)
def test_partitions_are_those_of_the_real_clients(
    row: tuple[bytes, int, int, int, int, int],
) -> None:
    key, digest, java_12, java_7, crc_12, crc_7 = row

    assert digest == murmur2(key)
    assert (java_12, java_7) == (murmur2_partition(key, 12), murmur2_partition(key, 7))
    assert (crc_12, crc_7) == (crc32_partition(key, 12), crc32_partition(key, 7))


@given(st.none() | st.binary(max_size=600), st.integers(1, 1000))
def test_any_key_goes_where_librdkafka_would_send_it(key: bytes | None, partitions: int) -> None:
    assert librdkafka("consistent", key, partitions) == crc32_partition(key, partitions)
    assert librdkafka("murmur2", key, partitions) == murmur2_partition(key, partitions)
