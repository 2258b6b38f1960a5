"""What ``feedback-agent status`` says of an agent that runs, and of what one left behind."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import main
from agent.config.sections import Http
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import write_config
from agent.harvester import first_generation, starting_at
from agent.opener import Descriptor
from agent.operator.status import running
from agent.store import Store
from tests.patience import WITHIN_S
from tests.running import NOWHERE, Agent, append, feedback, mock_topics
from tests.watched import screen, watching

LINE = feedback(1)
LINE_BYTES = len(LINE) + 1


def status(*args: str) -> Result:
    return CliRunner().invoke(main, ["status", *args])


def config(work: Path, **sections: Any) -> str:
    file = work / "config.yaml"
    write_config(file, work / "feedback", work / "state", NOWHERE, **sections)
    return str(file)


def checkpointed(work: Path, path: str, offset: int, spooled: dict[str, tuple[int, int]]) -> None:
    """Leave what an agent does that settled the file up to ``offset``."""
    store = Store.open(work / "state", "node-1")
    with Descriptor(os.open(work / "feedback" / path, os.O_RDONLY)) as file:
        client = path.partition("/")[0]
        store.save(
            [starting_at(offset, file, first_generation(file.birth, path, client))], (), spooled
        )
    store.close()


def left_behind(result: Result) -> dict[str, Any]:
    assert 1 == result.exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert not found["running"]
    return found


# ---- running, and killed


def test_an_agent_that_runs_and_what_a_killed_one_leaves(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """The same files and offsets, told by the agent or by what it left on the disk."""
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        append(agent.root / "acme/a.jsonl", [LINE] * 10)
        append(agent.root / "acme/bad.jsonl", [b"no json", b"none either", b"{}"])
        agent.start()
        agent.until_delivered(10, 3)
        agent.until(lambda: agent.status()["ready"]["ok"], "ready")
        url = f"http://127.0.0.1:{agent._port}"

        shown, told = status("--url", url), status("--url", url, "--json")

        assert 0 == shown.exit_code, shown.output
        assert "acme/a.jsonl" in shown.stdout
        files = {file["path"]: file["watermark"] for file in json.loads(told.stdout)["files"]}
        assert 10 * LINE_BYTES == files["acme/a.jsonl"]
        assert {"invalid_json": 2, "schema": 1} == json.loads(told.stdout)["dead_letters"]
        assert "dead letters since its start: 2 invalid_json, 1 schema" in shown.stdout
        agent.until_committed()
        assert f"pid {agent.pid} holds" in status("--config", str(agent.config)).stdout
        agent.kill()

    append(agent.root / "acme/a.jsonl", [LINE] * 3)
    append(agent.root / "acme/new.jsonl", [LINE])
    before = contents(agent.state_dir)
    found = left_behind(status("--config", str(agent.config), "--json"))

    assert [
        ("acme/a.jsonl", 10 * LINE_BYTES, 3 * LINE_BYTES),
        ("acme/new.jsonl", 0, LINE_BYTES),
        ("acme/bad.jsonl", len("no json none either {} "), 0),
    ] == [(one["path"], one["watermark"], one["lag_bytes"]) for one in found["files"]]
    assert [{"client": "acme", "lag_bytes": 4 * LINE_BYTES}] == found["clients"]
    assert ("demo", None) == (found["node"], found["owner"])
    assert before == contents(agent.state_dir)


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in directory.iterdir() if p.is_file()
    }


# ---- stopped


def test_what_is_spooled_and_dead_is_told_from_the_last_checkpoint(tmp_path: Path) -> None:
    append(tmp_path / "feedback/acme/a.jsonl", [LINE])
    checkpointed(tmp_path, "acme/a.jsonl", 0, {"events": (100, 350), "dead_letters": (0, 7)})

    found = left_behind(status("--config", config(tmp_path), "--json"))
    shown = status("--config", config(tmp_path)).stdout

    spooled = {name: sink["spooled_records"] for name, sink in found["sinks"].items()}
    assert {"events": 250, "dead_letters": 7} == spooled
    assert "spooled then: events 250, dead letters 7" in shown


def test_a_file_that_was_truncated_since_is_behind_by_all_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "feedback/acme/a.jsonl"
    append(file, [LINE] * 5)
    checkpointed(tmp_path, "acme/a.jsonl", 5 * LINE_BYTES, {})
    os.truncate(file, 2 * LINE_BYTES)

    (found,) = left_behind(status("--config", config(tmp_path), "--json"))["files"]

    assert 2 * LINE_BYTES == found["lag_bytes"]


def test_a_file_in_the_place_of_another_is_new(tmp_path: Path) -> None:
    """The inode may be the same; who was born when tells them apart."""
    file = tmp_path / "feedback/acme/a.jsonl"
    append(file, [LINE] * 5)
    checkpointed(tmp_path, "acme/a.jsonl", 5 * LINE_BYTES, {})
    file.unlink()
    append(file, [LINE] * 5)

    (found,) = left_behind(status("--config", config(tmp_path), "--json"))["files"]

    assert (None, 5 * LINE_BYTES) == (found["source"], found["lag_bytes"])
    assert "new" in status("--config", config(tmp_path)).stdout


def test_the_lag_of_a_compressed_file_is_not_guessed(tmp_path: Path) -> None:
    append(tmp_path / "feedback/acme/a.jsonl.gz", [b"\x1f\x8b" + b"x" * 100])
    append(tmp_path / "feedback/acme/a.jsonl", [LINE])
    checkpointed(tmp_path, "acme/a.jsonl", 0, {})

    files = left_behind(status("--config", config(tmp_path), "--json"))["files"]

    assert {"acme/a.jsonl": LINE_BYTES, "acme/a.jsonl.gz": None} == {
        one["path"]: one["lag_bytes"] for one in files
    }


def test_where_no_agent_has_run_that_is_said(tmp_path: Path) -> None:
    result = status("--config", config(tmp_path))

    assert (1, "") == (result.exit_code, result.stdout)
    assert "no agent has run over it: no checkpoints.db" in result.stderr


def test_a_state_of_a_newer_version_is_not_guessed_at(tmp_path: Path) -> None:
    append(tmp_path / "feedback/acme/a.jsonl", [LINE])
    checkpointed(tmp_path, "acme/a.jsonl", 0, {})
    connection = sqlite3.connect(tmp_path / "state/checkpoints.db")
    connection.execute("PRAGMA user_version=9000")
    connection.close()

    assert 76 == status("--config", config(tmp_path)).exit_code


def test_a_damaged_database_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/checkpoints.db").write_bytes(b"no database" * 100)

    result = status("--config", config(tmp_path))

    assert 1 == result.exit_code
    assert "checkpoints.db: damaged: " in result.stderr
    assert ["checkpoints.db"] == os.listdir(tmp_path / "state")  # noqa: PTH208  names alone


def test_names_neither_drive_the_terminal_nor_show_who_they_are_about(tmp_path: Path) -> None:
    name = "acme/jo.doe@example.com\x1b[2J[red].jsonl"
    append(tmp_path / "feedback" / name, [LINE])
    append(tmp_path / "feedback/acme/b.jsonl", [LINE])
    checkpointed(tmp_path, "acme/b.jsonl", 0, {})

    for result in (
        status("--config", config(tmp_path)),
        status("--config", config(tmp_path), "--json"),
    ):
        assert "\x1b" not in result.stdout
        assert "jo.doe" not in result.stdout
        assert "[EMAIL]" in result.stdout


# ---- whoever else answers


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"status": "ok"}'])
def test_another_server_is_not_taken_for_an_agent(body: bytes) -> None:
    with answering(body) as address:
        result = status("--url", address)

    assert (1, "") == (result.exit_code, result.stdout)
    assert "does not answer as an agent does" in result.stderr


def test_who_accepts_and_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = status("--url", f"http://127.0.0.1:{server.getsockname()[1]}")

    assert 1 == result.exit_code
    assert "takes longer than" in result.stderr


@pytest.mark.parametrize(
    ("section", "url"),
    [
        (Http(), "http://127.0.0.1:9108"),
        (Http(host="0.0.0.0", port=1), "http://127.0.0.1:1"),  # noqa: S104  as Prometheus needs it
        (Http(host="::", port=1), "http://[::1]:1"),
        (Http(port=0), None),
    ],
)
def test_an_agent_is_asked_where_its_configuration_says(section: Http, url: str | None) -> None:
    assert url == running.url_of(section)


@pytest.mark.parametrize("url", ["https://a:1", "http://a:x", "ftp://a", "http://"])
def test_what_is_no_url_is_named(url: str) -> None:
    result = status("--url", url)

    assert 1 == result.exit_code
    assert f"--url {url}: " in result.stderr


# ---- again and again


WATCH = ("status", "--watch", "--every", "0.1", "--config")


def test_watch_draws_in_place_on_a_terminal_and_ends_well_on_ctrl_c(tmp_path: Path) -> None:
    append(tmp_path / "feedback/acme/a.jsonl", [LINE])
    checkpointed(tmp_path, "acme/a.jsonl", 0, {})

    said = screen(*WATCH, config(tmp_path), until="acme/a.jsonl", times=2)

    assert "\x1b[?1049h" in said  # a screen of its own, and so what was there comes back


def test_watch_without_a_terminal_prints_one_after_the_other(tmp_path: Path) -> None:
    append(tmp_path / "feedback/acme/a.jsonl", [LINE])
    checkpointed(tmp_path, "acme/a.jsonl", 0, {})
    with watching(*WATCH, config(tmp_path), stdout=subprocess.PIPE) as watched:
        assert watched.stdout is not None
        lines: list[bytes] = []
        while sum(b"acme/a.jsonl" in line for line in lines) < 2:
            lines.append(watched.stdout.readline())
        watched.send_signal(signal.SIGINT)
        assert 0 == watched.wait(timeout=WITHIN_S)

    assert b"\x1b" not in b"".join(lines)
