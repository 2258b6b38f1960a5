"""``core.decode`` on any bytes: an event or a rejection, soon, and what was accepted is stable.

The first byte chooses: the bytes as they are, tokens strung together, or tokens inside of a good
line. So a fuzzer comes deeper into the grammar.
"""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.policy import SchemaPolicy
from agent.core.reasons import REASONS
from agent.core.record import Origin, Recorder, RecordPolicy

NOW_S = 1_795_428_000.0
NOW_TEXT = datetime.fromtimestamp(NOW_S, UTC).isoformat()
RAW, INSIDE = 0x80, 0x20
"""From which first byte on the bytes are as they are, or inside of a good line."""
DECODE_S_MAX = 1.0
"""Of this thread's time on the processor."""
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""All but tab, line feed and carriage return."""
UUID = b'"4b8c0f9e-1111-4222-8333-444455556666"'
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\n", b"\t", b"\0", b"\x7f"),
    *(
        b"\\u0000",
        b"\\u0040",
        b"\\ud800",
        b"\\ud83d\\ude00",
        b"\\n",
        b"\xc2\x85",
        b"\xff",
        b"\xed\xa0",
    ),
    *(b"null", b"true", b"false", b"0", b"-0", b"1", b"-1", b"4.5", b"1e5", b"1E-400", b"1e999"),
    *(b"NaN", b"9223372036854775807", b"-9223372036854775809", b"9" * 400, b"0.1" * 3, b"5.0"),
    *(b'"type":', b'"user_feedback"', b'"performance_metrics"', b'"model_response"'),
    *(b'"system_health"', b'"experiment_result"', b'"custom"', b'"healthy"', b'"ab_test"'),
    *(b'"session_id":', b'"session":', b'"event_id":', b'"request_id":', b'"timestamp":', UUID),
    *(UUID.upper(), b'"2026-11-23T10:00:00Z"', b'"2026-11-23T10:00:60.5+23:59"', b'"0001-01-01T'),
    *(b'"metadata":', b'"rating":', b'"tags":', b'"comment":', b'"schema_version":', b'"x":'),
    *(b'"model_id":', b'"latency_ms":', b'"tokens_total":', b'"tokens_input":', b'"model_params":'),
    *(b'"temperature":', b'"quality_dimensions":', b'"accuracy":', b'"custom_metrics":'),
    *(b'"service_name":', b'"status":', b'"resources":', b'"experiment_id":', b'"variant_id":'),
    *(b'"traceparent":', b'"client":', b"00-", b'"m"', b'""', b"a" * 300, b"[" * 12, b"]" * 12),
]
BEGINNINGS = [
    b'{"type":"user_feedback","session_id":"s",',
    b'{"type":"performance_metrics","model_id":"m","latency_ms":1,',
    b'{"type":"model_response","model_id":"m",',
    b'{"type":"system_health","service_name":"s","status":"healthy",',
    b'{"type":"experiment_result","variant_id":"v","experiment_id":' + UUID + b",",
    b'{"type":"custom",',
]
"""Of good lines; ``END`` makes them whole."""
END = b'"x":0}'
POLICIES = [
    SchemaPolicy(),
    SchemaPolicy(unknown_types="pass", age_max_s=3600.0, extra_bytes_max=64),
]
DECODERS = [Decoder(policy) for policy in POLICIES]
ORIGIN = Origin(
    node="n", client="c", source_id="0" * 16, generation=0, inode=1, birth_ns=1, inode_generation=1
)


def line_of(data: bytes) -> bytes:
    kind, rest = (data[0], data[1:]) if data else (RAW, b"")
    if kind >= RAW:
        return rest
    tokens = b"".join(TOKENS[byte % len(TOKENS)] for byte in rest)
    if kind >= INSIDE:
        return BEGINNINGS[kind % len(BEGINNINGS)] + tokens + END
    return tokens


def check(data: bytes) -> None:
    line = line_of(data).replace(b"\n", b" ")  # a line has none
    for decoder in DECODERS:
        got, took_s = timed(decoder, line)
        if took_s >= DECODE_S_MAX:  # a pause of the machine comes once, a slow line is slow again
            took_s = min(timed(decoder, line)[1] for _ in range(3))
        assert took_s < DECODE_S_MAX
        if isinstance(got, Rejection):
            check_rejected(line, got)
        else:
            check_ways_agree(decoder, line, got)
            check_accepted(decoder, line, got)


def timed(decoder: Decoder, line: bytes) -> tuple[Decoded | Rejection, float]:
    began_s = time.thread_time()
    return decoder.decode(line, NOW_S), time.thread_time() - began_s


def check_rejected(line: bytes, rejection: Rejection) -> None:
    """A reason of the list, and no payload in the detail; the dead letter is as true as it can be:
    UTF-8, and what was JSON says the same."""
    assert rejection.reason in REASONS
    assert rejection.detail.isascii()
    assert rejection.detail.isprintable()
    recorder = Recorder(RecordPolicy(version="1", hostname="h"), ORIGIN)
    _, value, headers = recorder.dead_letter(line, rejection, 0, len(line) + 1)
    text = value.decode()
    assert all(text.isascii() for _, text in headers)
    if rejection.reason in {"schema", "unknown_type", "event_id", "extra_too_large"}:
        assert json.loads(line) == json.loads(text)


def check_ways_agree(decoder: Decoder, line: bytes, fast: Decoded) -> None:
    slow = decoder._decode_doubtful(line)
    assert slow == fast, "the fast way and the slow way say the same"


def check_accepted(decoder: Decoder, line: bytes, decoded: Decoded) -> None:
    """Any JSON parser reads in the record what we decoded; decoded again it is the same record."""
    assert isinstance(json.loads(line), dict)
    value = record_of(decoded, line)
    read = json.loads(value)
    assert read == msgspec.json.decode(value)
    assert not CONTROLS.search("".join(strings(read)))
    again = decoder.decode(value, NOW_S)
    assert isinstance(again, Decoded), again
    assert again.removed == 0
    assert again.suspect == decoded.suspect
    assert record_of(again, value) == value


def strings(value: Any) -> Iterator[str]:
    """Yield every string in ``value``, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def record_of(decoded: Decoded, line: bytes) -> bytes:
    recorder = Recorder(RecordPolicy(version="1", hostname="h"), ORIGIN)
    _, value, headers = recorder.record(decoded, line, 0, len(line) + 1, NOW_TEXT)
    assert all(text.decode().isprintable() for _, text in headers)
    return value
