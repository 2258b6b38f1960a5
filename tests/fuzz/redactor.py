"""``core.redact`` on any text in any place: at rest after one pass, and the event is still one.

The first byte chooses the type of event; the rest are texts, ended by ``END``, each of tokens or,
from ``RAW`` on, of bytes as they are. They go into every place of an event that takes a text.
"""

import copy
import json
from itertools import cycle, islice
from typing import Any

import msgspec

from agent.core import events
from agent.core.decode import Decoded, Decoder
from agent.core.diagnosis import Rejection
from agent.core.folding import folded, folds
from agent.core.policy import SchemaPolicy
from agent.core.record import Recorder, RecordPolicy
from agent.core.redact import EXEMPT, FAILED, Redaction, RedactionFailed, Redactor
from agent.core.suspicion import suspicious
from tests.fuzz.decoder import NOW_S, NOW_TEXT, ORIGIN, UUID

END, RAW = 0xFF, 0xE0
TOKENS = [
    *("jo.doe@example.com", "4111 1111 1111 1111", "+1 415 555 0123", "123-45-6789", "10.0.0.1"),
    *("DE89 3704 0044 0532 0130 00", "fe80::1", "::1", "a@b.co", "0171", "4111", "07700 900 123"),
    *("0", "1", "9", "12", "00", "@", "%40", ".", ":", "::", "-", "+", "(", ")", " ", "  ", "/"),
    *("a", "f", "DE", "GB82", "ssn ", "tel ", "card ", "ip ", "version ", "x", "_", "#", "#2"),
    *("-Fax", " office", "call me at ", "order ", "2026-01-31", "[", "]", "[EMAIL]", "[CARD]#2"),
    *("[PHONE:abcdefghijklmnop]", "\n", "\t", "\\", "\\n", "\\u0040", '"', "'", ",", ";", "\0"),
    *("\u200b", "\ufe0f", "\u20e3", "\uff10", "\uff20", "\u0661", "\u00a0", "\u2011", "\u3002"),
    *("\u0301", "\u0344", "\ufdfa", "\u00e9", "\U0001f44d", "\udc80", "x" * 60),
]
FIELDS: list[dict[str, Any]] = [
    {"type": "user_feedback", "thumbs": "up", "rating": 4},
    {"type": "performance_metrics", "latency_ms": 1.5, "success": True},
    {"type": "model_response", "quality_score": 88},
    {"type": "system_health", "status": "healthy", "resources": {"memory_mb": 4111111111111111}},
    {"type": "experiment_result", "experiment_id": UUID.decode()[1:-1], "metrics": {"cost": 1}},
    {"type": "custom", "n": None},
]
BOUNDS = {
    "session_id": 256,
    "user_id": 256,
    "comment": 10_000,
    "model_id": 256,
    "service_name": 256,
    "variant_id": 256,
    "schema_version": 64,
    "provider": 10_000,
    "prompt_hash": 10_000,
    "finish_reason": 10_000,
}
DECODER = Decoder(SchemaPolicy(unknown_types="pass", extra_bytes_max=1 << 24))
REDACTORS = [
    Redactor(Redaction(version="1")),
    Redactor(Redaction(version="1", hash_key=b"k" * 16)),
    Redactor(Redaction(version="1", kinds=("phone", "ipv6"))),
]


def texts_of(data: bytes) -> list[str]:
    return [_text_of(part) for part in data.split(bytes([END]))]


def _text_of(part: bytes) -> str:
    if part[:1] >= bytes([RAW]):
        return part[1:].decode(errors="replace")
    return "".join(TOKENS[byte % len(TOKENS)] for byte in part)


def check(data: bytes) -> None:
    kind, texts = data[0] if data else 0, texts_of(data[1:])
    line = line_of(kind, [text.encode(errors="replace").decode() for text in texts])
    for redactor in REDACTORS:
        for text in texts:
            check_text(redactor, text)
        check_event(redactor, line)


def check_text(redactor: Redactor, text: str) -> None:
    """Redacted twice is redacted once; what is shown of a name always is a text."""
    plain = folded(text)
    if not folds(text) and not suspicious(plain.encode("utf-8", "surrogatepass")):
        assert [] == redactor._found(plain), "the cheap test passes nothing that a rule finds"
    for redact in (redactor.text, redactor.json_text):
        try:
            once = redact(text)
        except RedactionFailed:
            continue
        assert once == redact(once)
        assert _encodable(once) or not _encodable(text)
    assert redactor.shown(text) == redactor.shown(redactor.shown(text))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def line_of(kind: int, texts: list[str]) -> bytes:
    """Return a line that is valid, ``texts`` in all its places one after the other."""
    next_text = cycle(texts).__next__
    fields = copy.deepcopy(FIELDS[kind % len(FIELDS)])
    known = events.EVENT_TYPES.get(fields["type"], events.UnknownEvent).__struct_fields__
    for name, bound in BOUNDS.items():
        if name in known:  # once more and again: markers make it grow
            fields[name] = ("x" + next_text() * (1 + kind // len(FIELDS)))[:bound]
    if "tags" in known:
        fields["tags"] = [text[:128] for text in texts][:64]
    fields["metadata"] = {
        next_text(): next_text(),
        "deep": [{next_text(): [next_text(), 4111111111111111, None, True, -0.5]}],
        "version": next_text(),
        **{text: number for number, text in enumerate(islice(texts, 60))},
    }
    fields |= {"unknown": [next_text()], f"_{next_text()}": {next_text(): 4155550123}}
    return json.dumps(fields).encode()


def check_event(redactor: Redactor, line: bytes) -> None:
    """As many keys, as long lists, the same numbers; and every consumer's bound still holds."""
    decoded = DECODER.decode(line, NOW_S)
    assert isinstance(decoded, Decoded), decoded
    before = copy.deepcopy(decoded)
    if redactor.event(decoded) is FAILED:
        return
    assert shape(fields_of(before)) == shape(fields_of(decoded))
    for name in EXEMPT & {*before.event.__struct_fields__}:
        assert getattr(before.event, name) == getattr(decoded.event, name)
    once = copy.deepcopy(decoded)
    assert redactor.event(decoded) is decoded
    assert once == decoded, "a second pass changes nothing"
    recorder = Recorder(RecordPolicy(version="1", hostname="h"), ORIGIN, redactor)
    _, value, headers = recorder.record(decoded, line, 0, len(line) + 1, NOW_TEXT)
    assert decoded.cut == ("cut" in dict(headers))
    again = DECODER.decode(value, NOW_S)
    assert not isinstance(again, Rejection), again
    assert redactor.event(again) is again
    _, same, _ = recorder.record(again, value, 0, len(value) + 1, NOW_TEXT)
    assert value == same, "a second agent changes nothing"


def fields_of(decoded: Decoded) -> Any:
    return [msgspec.to_builtins(decoded.event), decoded.extras]


def shape(value: Any) -> Any:
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, dict):
        return [shape(inner) for inner in value.values()]
    return "" if isinstance(value, str) else value
