"""The audit log on real files: crashes, full disks, rotation, and what the check finds."""

import ast
import asyncio
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry

from agent import audit, config
from agent.assembly import config_hash
from agent.audit import Audit
from agent.audit_file import AuditFile, Entry
from agent.cli import main
from agent.clock import SystemClock
from agent.core.auditing import EVENTS, Note
from agent.core.notes import WAITING_MAX
from agent.errors import AgentError
from agent.operator.verify_audit import Verdict, records, verify
from agent.telemetry import Metrics
from tests.patience import WITHIN_S
from tests.running import NOWHERE, Agent, append, feedback
from tests.test_queue import fill, tmpfs  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent
AT = "2026-01-31T12:00:00.000Z"
NOTE_UNTIL_KILLED = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from agent import audit
from agent.clock import SystemClock
from agent.telemetry import Metrics
audit.GATHER_S = 0
async def main():
    metrics = Metrics(CollectorRegistry())
    log = audit.Audit(Path(sys.argv[1]), bytes_max=20_000, clock=SystemClock(), metrics=metrics)
    log.start()
    said = False
    while True:
        for n in range(40):
            log.note("file.adopted", path="p" * (n * 7), offset=n)
        await asyncio.sleep(0.001)
        if log._file.head and not said:
            said = True
            print("writing", flush=True)
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@asynccontextmanager
async def opened(path: Path, metrics: Metrics, **settings: Any) -> AsyncIterator[Audit]:
    log = Audit(path, clock=SystemClock(), metrics=metrics, **settings)
    log.start()
    yield log
    await log.close()


def life(path: Path, work: Callable[[Audit], object], **settings: Any) -> Metrics:
    """Let one life keep a log at ``path`` in which ``work`` notes something."""
    metrics = Metrics(CollectorRegistry())

    async def live() -> None:
        async with opened(path, metrics, **settings) as log:
            work(log)

    asyncio.run(live())
    return metrics


def noted(path: Path, count: int, **settings: Any) -> Verdict:
    """Let one life note ``count`` files; return what is there then."""

    def work(log: Audit) -> None:
        for number in range(count):
            log.note("file.adopted", path=f"app/{number}.jsonl", offset=number)

    life(path, work, **settings)
    return verify(path)


def written(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    return [dict(record) for record in records(path, event=event)]


def holds(path: Path, count: int) -> bool:
    return path.exists() and len(written(path)) == count


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not true():  # noqa: ASYNC110 - a file tells nobody that it changed
            await asyncio.sleep(0.01)


def call(*args: str) -> Result:
    return CliRunner().invoke(main, ["audit", *args], prog_name="feedback-agent")


# ---- what is written


async def test_a_record_says_what_was_noted_and_when(path: Path, metrics: Metrics) -> None:
    async with opened(path, metrics) as log:
        log.note("file.refused", path="app/x.jsonl", reason="symlink", detail="ELOOP")

    (record,) = written(path)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["at"])
    assert {
        "seq": 1,
        "event": "file.refused",
        "path": "app/x.jsonl",
        "reason": "symlink",
        "detail": "ELOOP",
    }.items() <= record.items()


def test_nobody_else_may_read_it(path: Path) -> None:
    noted(path, 1)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine\n")
    path.symlink_to(tmp_path / "victim")

    metrics = life(path, lambda log: log.note("agent.started"))

    assert "mine\n" == (tmp_path / "victim").read_text()
    assert metrics.audit_failures._value.get() > 0


def test_no_value_breaks_a_line_or_drives_a_terminal(path: Path) -> None:
    name = os.fsdecode(b"a\nb\x1b[2J\xff\xe2\x80\xae.jsonl")

    def work(log: Audit) -> None:
        log.note("file.refused", path=name, reason=b"caf\xe9", detail=1 << 80)
        log.note("dead_letters.counted", counts={"\udcff": 1.5, "x": None, "y": True})

    life(path, work)

    assert verify(path).whole
    assert path.read_text().replace("\n", "").isprintable()
    assert "a\\nb\\x1b[2J\\udcff\\u202e.jsonl" == written(path)[0]["path"]


async def test_names_go_through_the_one_door_for_them(path: Path, metrics: Metrics) -> None:
    """Redaction will stand there."""
    async with opened(path, metrics, shown=lambda name: f"<{len(name)}>") as log:
        log.note("file.adopted", path="alice.jsonl", client="alice", source="9f86", why="new")

    (record,) = written(path)
    assert ("<11>", "<5>", "9f86") == (record["path"], record["client"], record["source"])


async def test_dead_letters_are_counted_not_listed(path: Path, metrics: Metrics) -> None:
    async with opened(path, metrics, dead_letters=metrics.dead_letters) as log:
        metrics.lines_rejected.labels("oversize").inc(3)
        metrics.lines_rejected.labels("too_deep").inc()
        log.note("agent.stopped")

    (record,) = written(path, "dead_letters.counted")
    assert {"oversize": 3, "too_deep": 1} == record["counts"]


async def test_dead_letters_are_counted_again_and_again(
    path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "COUNT_S", 0.01)
    async with opened(path, metrics, dead_letters=metrics.dead_letters):
        metrics.lines_rejected.labels("oversize").inc(3)
        await until(lambda: written(path) if path.exists() else None)
        metrics.lines_rejected.labels("oversize").inc(4)

    assert [{"oversize": 3}, {"oversize": 4}] == [r["counts"] for r in written(path)]


async def test_any_thread_may_note_and_all_is_there(path: Path, metrics: Metrics) -> None:
    def work() -> None:
        for number in range(1000):
            log.note("file.adopted", offset=number)

    async with opened(path, metrics) as log:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)

    verdict = verify(path)
    assert (True, 4000) == (verdict.whole, verdict.records)


async def test_a_note_is_written_soon_and_not_only_at_the_end(
    path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note itself wakes the writer: no timer does."""
    for name, seconds in {"GATHER_S": 0.0, "SYNC_S": 1000.0, "COUNT_S": 1000.0}.items():
        monkeypatch.setattr(audit, name, seconds)
    async with opened(path, metrics) as log:
        log.note("agent.started")
        await until(partial(holds, path, 1))
        for count in (2, 3, 4):
            log.note("agent.stopped")
            await until(partial(holds, path, count))


def test_a_flood_is_counted_in_the_log(path: Path) -> None:
    def work(log: Audit) -> None:
        for number in range(1000):
            log.note("file.refused", path=f"app/{number}", reason="symlink")

    life(path, work)

    refused = written(path, "file.refused")
    assert len(refused) < 200
    assert 1000 == len(refused) + written(path, "notes.lost")[-1]["count"]


async def test_what_was_noted_before_the_start_is_there(path: Path, metrics: Metrics) -> None:
    log = Audit(path, clock=SystemClock(), metrics=metrics)
    log.note("agent.started")
    log.start()
    await log.close()

    assert ["agent.started"] == [record["event"] for record in written(path)]


async def test_without_a_path_nothing_is_kept(metrics: Metrics) -> None:
    log = Audit(None, clock=SystemClock(), metrics=metrics)
    log.start()
    log.note("agent.started")

    await log.close()

    assert [] == log._first()


# ---- lives


def test_the_next_life_goes_on_with_the_chain(path: Path) -> None:
    noted(path, 3)
    verdict = noted(path, 3)

    assert (True, 1, 6) == (verdict.whole, verdict.first, verdict.last)


def test_a_torn_record_is_cut_away_wherever_it_is_torn(path: Path, tmp_path: Path) -> None:
    noted(path, 3)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last + 1, len(whole)):
        torn = tmp_path / str(cut) / "audit.jsonl"
        torn.parent.mkdir()
        torn.write_bytes(whole[:cut])

        before, after = verify(torn), noted(torn, 1)

        assert (True, 2, cut - last) == (before.whole, before.last, before.unfinished_bytes)
        assert (True, 4, 1) == (after.whole, after.last, after.resumptions)
        (resumed,) = written(torn, "chain.resumed")
        assert (2, cut - last) == (resumed["after"], resumed["torn"])


@pytest.mark.parametrize("kept", [1, 5, 60])
def test_even_the_first_record_may_be_torn(path: Path, kept: int) -> None:
    noted(path, 1)
    os.truncate(path, kept)

    verdict = noted(path, 1)

    assert (True, 2, 1) == (verdict.whole, verdict.last, len(verdict.files))


def test_a_kill_at_any_time_leaves_the_chain_whole(path: Path) -> None:
    """Also in the middle of a write, or of a rotation."""
    seed = int.from_bytes(os.urandom(4))
    chance = random.Random(seed)  # noqa: S311 - chance that can be had again
    last = 0
    for _ in range(12):
        command = [sys.executable, "-c", NOTE_UNTIL_KILLED, str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert b"writing\n" == process.stdout.readline()
            time.sleep(chance.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)

        verdict = verify(path)
        assert verdict.whole, (seed, verdict)
        assert verdict.last >= last, seed
        last = verdict.last
    assert last


def test_a_file_that_is_no_audit_log_is_put_aside_as_it_is(path: Path) -> None:
    path.write_bytes(b"dear diary\n\nno end")

    noted(path, 1)

    assert b"dear diary\n\nno end" == path.with_name("audit.jsonl.1").read_bytes()
    assert 1 == written(path)[-1]["seq"]


# ---- rotation


def test_rotation_carries_the_chain_and_keeps_so_many_files(path: Path) -> None:
    verdict = noted(path, 200, bytes_max=5000, files_max=3)

    assert verdict.whole
    assert [f"{path}.2", f"{path}.1", str(path)] == list(verdict.files)
    assert 200 == verdict.last
    assert 1 < verdict.first
    assert verdict.last - verdict.first + 1 == verdict.records
    assert all(Path(file).stat().st_size <= 5000 for file in verdict.files)


def test_a_start_after_a_kill_within_a_rotation_goes_on(path: Path) -> None:
    """The renames are done, and the new file is not there yet."""
    noted(path, 5)
    path.rename(path.with_name("audit.jsonl.1"))

    between, after = verify(path), noted(path, 1)

    assert (True, 5) == (between.whole, between.last)
    assert (True, 6, 2) == (after.whole, after.last, len(after.files))


def test_a_file_taken_from_the_middle_is_missed(path: Path) -> None:
    noted(path, 200, bytes_max=10_000)
    path.with_name("audit.jsonl.2").unlink()

    verdict = verify(path)

    assert not verdict.whole
    (problem,) = verdict.problems
    assert (f"{path}.1", 1) == (problem.file, problem.line)
    assert "missing before record" in problem.what


def test_a_rotation_under_way_does_not_break_the_check(path: Path) -> None:
    """The newest file is opened, then renamed, then met again under its next name."""
    noted(path, 3)
    path.with_name("audit.jsonl.1").hardlink_to(path)

    verdict = verify(path)

    assert (True, 3) == (verdict.whole, verdict.records)


def test_a_gap_left_by_a_kill_does_not_cost_an_older_file(path: Path) -> None:
    files = noted(path, 50, bytes_max=5000).files
    for number in range(len(files) - 1, 0, -1):
        path.with_name(f"audit.jsonl.{number}").rename(path.with_name(f"audit.jsonl.{number + 1}"))

    verdict = noted(path, 30, bytes_max=5000, files_max=len(files) + 2)

    assert (True, 1) == (verdict.whole, verdict.first)


# ---- a disk that does not take it


async def test_a_full_disk_stops_nothing_and_all_is_written_once_there_is_room(
    tmpfs: Path,  # noqa: F811
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records that half arrived are torn, cut away, and written again."""
    monkeypatch.setattr(audit, "RETRY_S", 0.05)
    monkeypatch.setattr(audit, "SYNC_S", 0.05)
    path = tmpfs / "audit.jsonl"
    fill(tmpfs, leave=3 * 4096)

    async with opened(path, metrics) as log:
        for number in range(200):
            log.note("file.adopted", path=f"app/{number}.jsonl", offset=number)
        await until(lambda: metrics.audit_failures._value.get() >= 3)
        (tmpfs / "others").unlink()

    assert verify(path).whole
    assert list(range(200)) == [r["offset"] for r in written(path, "file.adopted")]
    assert written(path, "chain.resumed")


async def test_more_than_can_wait_is_counted_in_the_log(path: Path, metrics: Metrics) -> None:
    log = Audit(path, clock=SystemClock(), metrics=metrics)
    for _ in range(WAITING_MAX + 5):
        log.note("file.adopted")
    log.start()
    await log.close()

    assert {"file.adopted": 5} == written(path)[-1]["events"]
    assert verify(path).whole


async def test_a_failure_is_said_once(
    path: Path,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit, "RETRY_S", 0.01)
    monkeypatch.setattr(audit, "SYNC_S", 0.01)
    await asyncio.to_thread(path.mkdir)

    async with opened(path, metrics) as log:
        log.note("agent.started")
        await until(lambda: metrics.audit_failures._value.get() >= 3)
        await asyncio.to_thread(path.rmdir)
        await until(path.exists)

    said = [record.message for record in caplog.records if record.message.startswith("audit.")]
    assert 1 == said.count("audit.failed")
    assert ["agent.started"] == [record["event"] for record in written(path)]


async def test_an_append_that_failed_after_all_of_it_arrived_is_not_repeated(path: Path) -> None:
    """A disk may say no at the sync: whoever asks again learns how much is there."""
    file = AuditFile(path)
    await file.open()
    await file.append([Entry(AT, "agent.started", {})])
    before = file.head
    await file.append([Entry(AT, "agent.stopped", {}), Entry(AT, "agent.started", {})])
    file.head = before  # as if that had raised
    await file.close()

    assert 2 == (await file.open()).arrived
    await file.close()


# ---- the check


def test_the_command_says_whole_with_0_and_prints_the_head(path: Path) -> None:
    verdict = noted(path, 3)

    result = call("verify", str(path), "--head", verdict.head)

    assert 0 == result.exit_code, result.output
    assert "whole" in result.stdout
    assert verdict.head in result.stdout
    assert "\x1b" not in result.stdout


def test_the_command_says_broken_with_1_file_line_and_what(path: Path) -> None:
    noted(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])

    result = call("verify", str(path))

    assert 1 == result.exit_code
    assert f"{path}:2: 1 missing before record 3" in result.stdout
    told = json.loads(call("verify", str(path), "--json").stdout)
    assert (False, 1) == (told["whole"], told["broken"])
    assert {"file": str(path), "line": 2} == {k: told["problems"][0][k] for k in ("file", "line")}


def test_a_cut_end_shows_where_the_head_was_kept(path: Path) -> None:
    head = noted(path, 3).head
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))

    assert 0 == call("verify", str(path)).exit_code
    result = call("verify", str(path), "--head", head)
    assert 1 == result.exit_code
    assert "is not in the chain" in result.stdout


def test_the_command_finds_the_file_by_the_configuration(path: Path, tmp_path: Path) -> None:
    noted(path, 1)
    file = tmp_path / "config.yaml"
    file.write_text(
        f"agent: {{state_dir: {tmp_path}}}\nkafka: {{bootstrap_servers: 'kafka:9092'}}\n"
    )

    assert 0 == call("verify", "--config", str(file)).exit_code
    assert 1 == len(call("show", "--config", str(file)).stdout.splitlines())


def test_no_file_is_one_line_and_1(path: Path) -> None:
    result = call("verify", str(path))

    assert 1 == result.exit_code
    assert f"feedback-agent: error: {path}: there is no audit log\n" == result.stderr


def test_a_file_that_may_not_be_read_is_no_verdict(path: Path) -> None:
    path.mkdir()

    with pytest.raises(AgentError, match="directory"):
        verify(path)


async def test_show_chooses_by_event_and_time(path: Path, metrics: Metrics) -> None:
    async with opened(path, metrics) as log:
        log.note("file.gone", source="9f86")
        log.note("file.refused", reason="links")
        log.note("agent.stopped")

    assert 2 == len(call("show", str(path), "--event", "file").stdout.splitlines())
    assert "agent.stopped" in call("show", str(path), "--event", "agent.stopped").stdout
    assert 3 == len(call("show", str(path), "--since", "2020-01-01").stdout.splitlines())
    assert "" == call("show", str(path), "--since", "9999-01-01").stdout


# ---- the agent


def test_a_run_is_in_it_from_its_start_to_its_stop(tmp_path: Path) -> None:
    fast = {"start_s": 0.2}
    breaker = {"ack_age_max_s": 1, "failures_max": 1}
    with Agent(tmp_path, NOWHERE, kafka=fast, breaker=breaker) as agent:
        agent.start()
        agent.until(lambda: len(agent.log_entries("spool.mode")) == 2, "spool.mode")
        agent.until(lambda: bool(agent.log_entries("sink.down")), "sink.down")
        assert 0 == agent.stop()

    path = agent.state_dir / "audit.jsonl"
    assert verify(path).whole
    first, *middle, last = written(path)
    assert ("agent.started", "agent.stopped") == (first["event"], last["event"])
    assert config_hash(config.load(agent.config, {})) == first["config_hash"]
    modes = [(r["sink"], r["mode"]) for r in middle if r["event"] == "spool.mode"]
    assert ("events", "spooling") in modes
    assert any(r["event"] == "breaker.changed" and r["state"] == "open" for r in middle)
    (closed,) = agent.log_entries("audit.closed")
    assert last["hash"] == closed["head"]


def test_what_a_start_finds_lost_is_noted_after_the_start(tmp_path: Path) -> None:
    with Agent(tmp_path, NOWHERE, kafka={"start_s": 0.2}, breaker={"failures_max": 1}) as agent:
        append(agent.root / "app" / "x.jsonl", [feedback(1)])
        agent.start()
        agent.until(lambda: agent.metric("spool_records", sink="events") == 1, "spooled")
        assert 0 == agent.stop()
        for database in agent.state_dir.glob("spool.db*"):
            database.unlink()
        agent.start()
        assert 0 == agent.stop()

    names = [record["event"] for record in written(agent.state_dir / "audit.jsonl")]
    assert 2 == names.count("agent.started")
    assert names.index("spool.lost") > names.index("agent.started", 1)


def test_what_becomes_of_a_file_is_in_it_and_never_a_line(tmp_path: Path) -> None:
    """Adopted, truncated, refused, gone."""
    with Agent(tmp_path, NOWHERE, kafka={"start_s": 0.2}, source={"scan_s": 0.1}) as agent:
        file = agent.root / "app" / "x.jsonl"
        append(file, [feedback(n, comment="payload") for n in range(3)])
        file.with_name("link.jsonl").symlink_to("x.jsonl")
        agent.start()
        agent.until(lambda: agent.metric("spool_records", sink="events") == 3, "spooled")
        os.truncate(file, 0)
        append(file, [feedback(3, comment="payload")])
        agent.until(lambda: agent.metric("spool_records", sink="events") == 4, "spooled")
        file.unlink()
        log = agent.state_dir / "audit.jsonl"
        agent.until(lambda: "file.gone" in log.read_text(), "file.gone")
        assert 0 == agent.stop()

    told = [r for r in written(log) if r["event"].startswith(("file.", "generation."))]
    assert ["file.adopted", "file.gone", "file.refused", "generation.begun"] == sorted(
        r["event"] for r in told
    )
    by_event = {r["event"]: r for r in told}
    adopted, begun = by_event["file.adopted"], by_event["generation.begun"]
    assert ("app/x.jsonl", "app", "new", 0) == tuple(
        adopted[name] for name in ("path", "client", "why", "offset")
    )
    assert ("truncated", 1, 0, adopted["source"]) == tuple(
        begun[name] for name in ("cause", "generation", "resume_at", "source")
    )
    assert begun["watermark"] > 0
    assert ("app/link.jsonl", "symlink") == tuple(
        by_event["file.refused"][name] for name in ("path", "reason")
    )
    assert 0 == by_event["file.gone"]["unread_bytes"]
    assert "payload" not in log.read_text()


def test_the_hash_of_a_configuration_is_that_of_what_check_prints(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("kafka: {bootstrap_servers: 'kafka:9092'}\nagent: {node: n}\n")

    printed = CliRunner().invoke(main, ["check", "--config", str(file)]).stdout_bytes

    assert sha256(printed).hexdigest() == config_hash(config.load(file, {}))


def test_the_log_is_a_note() -> None:
    note: Note = Audit(None, clock=SystemClock(), metrics=Metrics(CollectorRegistry())).note
    note("agent.started")


def notes_made() -> dict[str, set[str]]:
    """Return the fields of every event that a room notes."""
    found: dict[str, set[str]] = {}
    for source in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="note" | "_note") | ast.Name(id="note"),
                    args=[ast.Constant(value=str(name))],
                    keywords=keywords,
                ):
                    found.setdefault(name, set()).update(str(k.arg) for k in keywords)
                case _:
                    pass
    return found


def test_every_note_is_of_the_closed_list() -> None:
    made = notes_made()
    assert {"agent.started", "breaker.changed", "spool.dropped"} <= set(made)
    for name, fields in made.items():
        assert fields <= set(EVENTS[name]), name


def test_every_event_and_field_stands_in_the_document() -> None:
    text = (ROOT / "docs/audit.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|([^|]*)\|", text, re.MULTILINE))

    said = {name: tuple(re.findall(r"`([a-z_]+)`", fields)) for name, fields in rows.items()}
    assert dict(EVENTS) == said
