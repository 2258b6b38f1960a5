"""What every command's screen keeps to."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from agent.operator import screen
from agent.operator.checkpoints import show_rows
from agent.operator.status import drawn

SINK = {
    "breaker": "open",
    "phase": "paused",
    "batches_queued": 0,
    "mode": "spooling",
    "spool_full": None,
}
STATUS: dict[str, Any] = {
    "running": True,
    "node": "node-7",
    "up_s": 20.0,
    "version": "0.1.0",
    "at": "2026-01-31T12:00:00Z",
    "health": {"ok": True, "reasons": []},
    "ready": {"ok": True, "reasons": []},
    "watcher": None,
    "reloaded": {},
    "sinks": {
        "events": {**SINK, "spooled_records": 0, "spooled_bytes": 0, "problem": None},
        "dead_letters": {
            **SINK, "spooled_records": 999_949, "spooled_bytes": 999,
            "problem": "not_enough_replicas",
        },
    },
    "clients": [],
    "files": [],
    "problems": [
        {"at": "2026-01-31T11:59:00Z", "count": 1, "event": "sink.down", "fields": {}},
        {"at": "2026-01-31T11:59:00Z", "count": 2, "event": "sink.down", "fields": {}},
    ],
}  # fmt: skip


def test_a_count_is_said_as_people_say_it() -> None:
    said = [screen.counted(number, "line") for number in (0, 1, 2, 1240)]
    assert ["0 lines", "1 line", "2 lines", "1,240 lines"] == said


def test_a_number_stands_beside_its_unit_where_the_screen_is_narrow() -> None:
    """Of what is folded at 80 columns, it is names."""
    narrow = Console(file=StringIO(), width=80)
    with narrow.capture() as shown:
        narrow.print(drawn(STATUS, 5))
    assert "999.9 k in 999 B" in shown.get()
    assert " dead_letters " in shown.get()
    assert " enough " in shown.get(), "folded between words"
    assert "1 min ago, once: sink.down" in shown.get()
    assert "1 min ago, 2 times: sink.down" in shown.get()


def test_a_table_without_a_row_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows([])
    assert "no checkpoints\n" == capsys.readouterr().out
