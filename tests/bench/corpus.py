"""Lines as apps write them, the same for the same seed: mixed types, about 400 bytes each.

One line in a hundred holds personal data, one in twenty text beyond ASCII or with escapes.
"""

import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

SEED = 20_261_123
BLOCK_LINES = 10_000
"""Texts repeat after so many lines; ids, times and numbers do not."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

_SHARES = {
    "user_feedback": 50,
    "performance_metrics": 20,
    "model_response": 15,
    "system_health": 5,
    "experiment_result": 10,
}
_WORDS = (
    "answer model latency question response quality summary context prompt table chart code "
    "because through without between another several detailed correct useful confusing slow fast "
    "again please thank expected result source document search upload page button error retry "
    "token limit price monthly account report language translate example number first second"
)
_STEMS = _WORDS.split()
_TAILS = ("", "", "", "s", "ed", "ing", "ly", "er", "ness", "able")
_SMALL_WORDS = "the a to of and is it was in for that on with this be not as at we you I but my"
_SMALL = _SMALL_WORDS.split()
_BEYOND = ("café", "naïve", "für", "größer", "привет", "結果", "🙂", "«oui»", "señor", 'said "no"')
_PERSONAL = (
    "mail me at {name}.{name}@example.com",
    "call +49 30 9018 {n:05d}",
    "card 4111 1111 1111 1111",
    "from 192.0.2.{b}",
)


class _Event(NamedTuple):
    type: str
    fields: dict[str, object]
    app: str


def lines(count: int, *, event_ids: bool = True, extras: bool = False) -> Iterator[bytes]:
    """Yield ``count`` lines with their newline.

    Args:
        count: How many.
        event_ids: Whether lines carry their ``event_id``.
        extras: Whether each line has two fields that its type does not know.
    """
    chance = random.Random(SEED)  # noqa: S311 - to be repeated, not to be secret
    block = [_event(chance) for _ in range(min(count, BLOCK_LINES))]
    began = datetime(2026, 11, 23, 9, tzinfo=UTC)
    for number, event in enumerate(chain.from_iterable(repeat(block))):
        if number == count:
            return
        at = began + timedelta(milliseconds=number)
        common = {
            "type": event.type,
            **({"event_id": _uuid(chance)} if event_ids else {}),
            "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        own = {**event.fields, "metadata": {"app": event.app, "seq": number}}
        more = {"team": "search", "trace": {"hop": number}} if extras else {}
        whole = common | own | more
        yield _encode(whole).encode() + b"\n"


def write(path: Path, count: int, *, event_ids: bool = True, extras: bool = False) -> int:
    """Write ``count`` lines to ``path``. Return their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(lines(count, event_ids=event_ids, extras=extras))
        return file.tell()


def _event(chance: random.Random) -> _Event:
    kind = chance.choices([*_SHARES], [*_SHARES.values()])[0]
    return _Event(kind, _FIELDS[kind](chance), chance.choice(("chat", "search", "mail")))


def _feedback(chance: random.Random) -> dict[str, object]:
    return {
        "session_id": f"s-{chance.getrandbits(40):x}",
        "user_id": f"u-{chance.getrandbits(32):x}",
        "rating": chance.randint(0, 5),
        "thumbs": chance.choice(("up", "down")),
        "comment": _text(chance, 20),
        "tags": chance.sample(_STEMS, 2),
    }


def _performance(chance: random.Random) -> dict[str, object]:
    asked, answered = chance.randint(20, 4000), chance.randint(20, 2000)
    return {
        "model_id": chance.choice(("large-3", "small-2", "vision-1")),
        "request_id": _uuid(chance),
        "latency_ms": round(chance.expovariate(1 / 700), 2),
        "provider": "inhouse",
        "tokens_input": asked,
        "tokens_output": answered,
        "cost_usd": round(asked * 2e-6, 6),
        "success": True,
        "cache_hit": chance.random() < 0.2,
        "custom_metrics": {"queue_ms": round(chance.random() * 40, 2), "retries": 0},
    }


def _response(chance: random.Random) -> dict[str, object]:
    return {
        "model_id": chance.choice(("large-3", "small-2")),
        "request_id": _uuid(chance),
        "quality_score": round(chance.random() * 100, 1),
        "quality_dimensions": {"accuracy": 0.9, "relevance": round(chance.random(), 3)},
        "prompt_hash": f"{chance.getrandbits(128):032x}",
        "response_length": chance.randint(10, 5000),
        "model_params": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 1024},
    }


def _health(chance: random.Random) -> dict[str, object]:
    return {
        "service_name": chance.choice(("gateway", "ranker", "inference")),
        "status": "healthy",
        "error_rate": round(chance.random() / 50, 4),
        "availability": 0.999,
        "resources": {"cpu_percent": round(chance.random() * 100, 1), "memory_mb": 2048.5},
        "active_requests": chance.randint(0, 200),
    }


def _experiment(chance: random.Random) -> dict[str, object]:
    return {
        "experiment_id": _uuid(chance),
        "variant_id": chance.choice("ab"),
        "experiment_type": "ab_test",
        "request_id": _uuid(chance),
        "reward": round(chance.random(), 4),
        "metrics": {"cost": 0.002, "quality": round(chance.random(), 3), "latency_ms": 340},
    }


_FIELDS: dict[str, Callable[[random.Random], dict[str, object]]] = {
    "user_feedback": _feedback,
    "performance_metrics": _performance,
    "model_response": _response,
    "system_health": _health,
    "experiment_result": _experiment,
}


def _text(chance: random.Random, words: int) -> str:
    said = [
        chance.choice(_SMALL)
        if chance.random() < 0.4
        else chance.choice(_STEMS) + chance.choice(_TAILS)
        for _ in range(chance.randint(words // 2, words * 2))
    ]
    if chance.random() < 0.1:
        said.insert(chance.randrange(len(said)), chance.choice(_BEYOND))
    if chance.random() < 0.02:
        personal = chance.choice(_PERSONAL)
        said.append(
            personal.format(
                name=chance.choice(_STEMS), n=chance.randrange(10**5), b=chance.randrange(256)
            )
        )
    return " ".join(said)


def _uuid(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))
