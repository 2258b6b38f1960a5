"""A small app that writes feedback: what an agent finds on a real node, and a little worse.

    python -m agent.demo.app --root DIR --client NAME --seed N --ledger FILE [--lines N] [--rate R]

One JSON object a line, by ``agent.writer`` into ``DIR/NAME``: a file for each life, rotated by
rename. It deletes nothing, so the files themselves say what was written; the ledger only counts.
Killed and started again it goes on at the next line: the content of a line follows from seed,
client and sequence number, its times apart.
"""

# ruff: noqa: RUF001  people write like this

import argparse
import json
import random
import signal
import string
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

from agent.core.reasons import Reason
from agent.writer import FeedbackWriter

FILES = "*.jsonl*"
ROTATE_BYTES = 4 << 20
BAD_SHARE = 0.005
ANONYMOUS_SHARE = 0.05
"""Lines without an event_id: the agent makes one."""
BYTES_MAX = 1 << 50
"""Nothing is dropped: what was written is on disk for the oracle to see."""
LEDGER_S = 0.1

_COMMENTS = (
    "Answer was right, but it took three tries.",
    "Perfect, thank you!",
    "Sehr hilfreich – genau was ich gesucht habe.",
    "Réponse trop longue, l'essentiel était à la fin.",
    "回答很准确，谢谢！",
    "とても助かりました 🙏",
    "Код не компилируется: пропущен импорт.",
    "The table it drew had the columns swapped.\nSecond attempt was fine.",
    'It said "I cannot help with that" to a cooking question.',
    "👍",
)
_TAGS = ("accuracy", "tone", "latency", "code", "formatting", "refusal", "übersetzung")
_MODELS = ("sable-2-large", "sable-2-small", "heron-7b", "heron-70b")
_SERVICES = ("router", "retriever", "reranker", "gateway")

_Fields = dict[str, object]


def _uuid(*of: object) -> str:
    return str(UUID(bytes=blake2b(repr(of).encode(), digest_size=16).digest(), version=4))


def _chance(draw: random.Random, share: float) -> bool:
    return draw.random() < share


def _user_feedback(draw: random.Random) -> _Fields:
    fields: _Fields = {"rating": draw.choice((1, 2, 3, 3.5, 4, 4.5, 5))}
    if _chance(draw, 0.6):
        fields["comment"] = " ".join(draw.sample(_COMMENTS, draw.randint(1, 3)))
    if _chance(draw, 0.5):
        fields["thumbs"] = draw.choice(("up", "down"))
    if _chance(draw, 0.4):
        fields["tags"] = draw.sample(_TAGS, draw.randint(1, 3))
    return fields


def _performance_metrics(draw: random.Random) -> _Fields:
    given, made = draw.randint(20, 4000), draw.randint(1, 1500)
    return {
        "model_id": draw.choice(_MODELS),
        "latency_ms": round(draw.lognormvariate(6, 0.6), 1),
        "tokens_input": given,
        "tokens_output": made,
        "tokens_total": given + made,
        "cost_usd": round((given + 3 * made) / 1e6, 6),
        "success": _chance(draw, 0.98),
        "cache_hit": _chance(draw, 0.2),
    }


def _model_response(draw: random.Random) -> _Fields:
    return {
        "model_id": draw.choice(_MODELS),
        "quality_score": round(draw.uniform(40, 100), 1),
        "quality_dimensions": {"accuracy": round(draw.random(), 3), "safety": 1},
        "response_length": draw.randint(1, 9000),
        "finish_reason": draw.choice(("stop", "length")),
        "model_params": {"temperature": 0.7, "max_tokens": 1024},
    }


def _system_health(draw: random.Random) -> _Fields:
    return {
        "service_name": draw.choice(_SERVICES),
        "status": draw.choices(("healthy", "degraded", "unhealthy"), (95, 4, 1))[0],
        "error_rate": round(draw.random() / 50, 5),
        "resources": {"cpu_percent": round(draw.uniform(1, 90), 1), "memory_mb": 512},
        "active_requests": draw.randint(0, 200),
    }


def _experiment_result(draw: random.Random) -> _Fields:
    return {
        "experiment_id": _uuid("experiment", draw.randint(1, 5)),
        "variant_id": draw.choice(("control", "shorter-answers", "citations")),
        "experiment_type": "ab_test",
        "reward": round(draw.gauss(0, 1), 4),
        "metrics": {"latency_ms": draw.randint(80, 900), "user_satisfaction": 4.2},
    }


_MAKERS: dict[str, Callable[[random.Random], _Fields]] = {
    "user_feedback": _user_feedback,
    "performance_metrics": _performance_metrics,
    "model_response": _model_response,
    "system_health": _system_health,
    "experiment_result": _experiment_result,
}


def make_line(
    seed: int, client: str, *, file: int, seq: int, now_ns: int, bad_share: float = BAD_SHARE
) -> bytes:
    """Return line ``seq`` of ``client``, its LF included.

    Only ``file`` (how often the file was rotated before) and ``now_ns`` (since the epoch) are not
    told by the seed. About ``bad_share`` of all lines have a ``defect``.
    """
    draw = random.Random(f"{seed}/{client}/{seq}")  # noqa: S311  test data
    bad = draw.random() < bad_share
    kind = draw.choice(tuple(_MAKERS))
    flaw = draw.choice(("torn", "type", "rating")) if bad else ""
    if flaw == "rating":
        kind = "user_feedback"
    fields: _Fields = {"type": "telemetry_v0" if flaw == "type" else kind}
    if draw.random() >= ANONYMOUS_SHARE:
        fields["event_id"] = _uuid(seed, client, seq)
    fields["timestamp"] = datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat()
    if kind == "user_feedback":
        fields["session_id"] = f"{client}-{file}"
    fields |= _MAKERS[kind](draw)
    if flaw == "rating":
        fields["rating"] = 11
    fields["metadata"] = {"file": file, "seq": seq, "written_at_ns": now_ns}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    if flaw == "torn":
        text = text[: draw.randint(1, len(text) - 1)]
    return text.encode() + b"\n"


def defect(fields: object) -> Reason | None:
    """Say what is wrong with a line of this app: ``fields`` is its JSON, None where it is none.

    It knows this app's own mistakes and nothing of the agent's rules.
    """
    if not isinstance(fields, dict):
        return "invalid_json"
    if fields["type"] not in _MAKERS:
        return "unknown_type"
    return "schema" if fields.get("rating", 0) > 5 else None  # noqa: PLR2004  stars


class Log:
    """The files of one client. ``written`` and ``rotations`` outlive a crash."""

    def __init__(self, directory: Path, rotate_bytes: int) -> None:
        before = list(directory.glob(FILES))
        self.written = sum(map(_count_lines, before))
        self._rotations_before = len(before)
        self._writer = FeedbackWriter(
            directory, rotate_bytes=rotate_bytes, bytes_max=BYTES_MAX, strict=True
        )

    @property
    def rotations(self) -> int:
        return self._rotations_before + self._writer.stats().get("rotated", 0)

    def append(self, line: bytes) -> None:
        """Bad lines are no events: they go as they are. A full disk is not part of the show."""
        self._writer.write_line(line)
        self.written += 1

    def close(self) -> None:
        self._writer.close()


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


class Stop:
    """Set by SIGTERM."""

    def __init__(self) -> None:
        self.wanted = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, number: int, frame: object) -> None:
        self.wanted = True


def write(arguments: argparse.Namespace, log: Log, stop: Stop) -> None:
    """Append until ``lines`` are written in all, or SIGTERM; at ``rate`` lines a second."""
    began, begun_with, noted = time.monotonic(), log.written, 0.0
    while not stop.wanted and (arguments.lines is None or log.written < arguments.lines):
        now = time.monotonic()
        if now - noted >= LEDGER_S:
            note(arguments.ledger, log)
            noted = now
        due = began + (log.written - begun_with) / arguments.rate if arguments.rate else now
        if due > now + LEDGER_S:  # it was stopped: no burst of all that it missed, and no debt
            began, begun_with = now, log.written
        elif due > now:
            time.sleep(due - now)
        line = make_line(
            arguments.seed,
            arguments.client,
            file=log.rotations,
            seq=log.written,
            now_ns=time.time_ns(),
            bad_share=arguments.bad_share,
        )
        log.append(line)


def note(ledger: Path, log: Log) -> None:
    """Put the counts where a reader finds the old ones or the new ones, whole."""
    fresh = ledger.with_suffix(".new")
    fresh.write_text(json.dumps({"lines": log.written, "files": log.rotations + 1}))
    fresh.replace(ledger)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.demo.app", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, help="in all; without it, until SIGTERM")
    parser.add_argument("--rate", type=float, default=0.0, help="lines a second; 0 is unbounded")
    parser.add_argument("--rotate-bytes", type=int, default=ROTATE_BYTES)
    parser.add_argument("--bad-share", type=float, default=BAD_SHARE)
    parser.add_argument("--ledger", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if set(arguments.client) - set(string.ascii_letters + string.digits + "._-"):
        parser.error("a client is named by a-z A-Z 0-9 . _ -")
    stop = Stop()
    log = Log(arguments.root / arguments.client, arguments.rotate_bytes)
    try:
        write(arguments, log, stop)
    finally:
        note(arguments.ledger, log)
        log.close()


if __name__ == "__main__":
    main()
