"""What stands in files changes while the agent runs: what is good is in force, else what was."""

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agent.core.redaction_rules import VERSION
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from agent.errors import ConfigError
from agent.reloaded import FILE_BYTES_MAX, Files, Reloaded
from agent.reloading import Reloading, Watched
from agent.telemetry import RELOADED, Metrics
from tests.fakes import InlineExecutor
from tests.running import Agent, append, event_id, feedback, mock_topics, records
from tests.secured_kafka import replace

KEY = "a.key"


def text_of(path: Path) -> str:
    """Load as the rooms do: what is not there, empty or ``bad`` is a mistake with its key."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(KEY, str(error.strerror)) from None
    if text in {"", "bad"}:
        raise ConfigError(KEY, "bad")
    return text


def reloaded(path: Path) -> Reloaded[str]:
    files = Files(path)
    return Reloaded("redaction", files, lambda: text_of(path), value=text_of(path), version=str)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


# ---- one value


def test_what_has_not_changed_is_not_loaded_again(file: Path) -> None:
    """Neither is what was written anew as it was: Kubernetes swaps all files for one."""
    kept = reloaded(file)
    assert "unchanged" == kept.look()
    replace(file, b"one")
    assert "unchanged" == kept.look()
    assert "one" == kept.value


def test_a_change_counts_once_it_has_stood_still(file: Path) -> None:
    """Half of a list of rules may well be a list of rules."""
    kept = reloaded(file)
    for written in ("t", "tw"):
        file.write_text(written)
        assert "unsettled" == kept.look()
    assert "adopted" == kept.look()
    assert ("tw", "tw") == (kept.value, kept.version)
    assert "unchanged" == kept.look()


def test_whoever_asks_has_written_everything(file: Path) -> None:
    kept = reloaded(file)
    file.write_text("two")
    assert "adopted" == kept.look(at_once=True)
    assert "two" == kept.value


def test_what_changes_while_it_is_loaded_is_not_taken(file: Path) -> None:
    def load() -> str:
        text = text_of(file)
        file.write_text("three")
        return text

    kept = Reloaded("redaction", Files(file), load, value="one")
    file.write_text("two")
    assert "unsettled" == kept.look(at_once=True)
    assert "one" == kept.value
    assert ["unsettled", "adopted"] == [kept.look(), kept.look()]
    assert "three" == kept.value


def test_a_change_before_the_first_look_is_seen(file: Path) -> None:
    files = Files(file)
    file.write_text("two")
    kept = Reloaded("redaction", files, lambda: text_of(file), value="one")
    assert "adopted" == kept.look(at_once=True)


def remove(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_text("")


def spoil(file: Path) -> None:
    file.write_text("bad")


@pytest.mark.parametrize("change", [remove, empty, spoil])
def test_the_last_good_one_stays_while_the_files_are_bad(
    file: Path, change: Callable[[Path], None]
) -> None:
    kept = reloaded(file)
    change(file)
    assert ["unsettled", "refused", "unchanged"] == [kept.look() for _ in range(3)]
    assert "one" == kept.value
    assert {"version": "one", "problem": f"{KEY}: {kept.problem and kept.problem.detail}"} == (
        kept.status()
    )
    file.write_text("one")
    assert "adopted" == kept.look(at_once=True)
    assert {"version": "one", "problem": None} == kept.status()


def test_a_swapped_link_is_a_change(tmp_path: Path) -> None:
    """As kubelet updates a ConfigMap: the file itself stays the same link."""
    mount = config_map(tmp_path / "mount", "one")
    kept = reloaded(mount / "file")
    swap(mount, "two")
    assert ["unsettled", "adopted"] == [kept.look(), kept.look()]
    assert "two" == kept.value


def config_map(mount: Path, content: str) -> Path:
    mount.mkdir()
    (mount / "file").symlink_to("..data/file")
    swap(mount, content)
    return mount


def swap(mount: Path, content: str) -> None:
    """Do as kubelet's AtomicWriter does."""
    fresh = mount / f"..{len(list(mount.iterdir()))}"
    fresh.mkdir()
    (fresh / "file").write_text(content)
    (mount / "..data_tmp").symlink_to(fresh.name)
    (mount / "..data_tmp").rename(mount / "..data")


def test_a_directory_changes_with_its_files(tmp_path: Path) -> None:
    mount = config_map(tmp_path / "mount", "one")
    files = Files(mount)
    seen = [files.first]

    def another() -> bool:
        seen.append(files.fingerprint())
        return seen[-1] not in seen[:-1]

    (mount / "..hidden").write_text("x")
    assert not another()
    (mount / "second").write_text("x")
    assert another()
    (mount / "second").rename(mount / "third")
    assert another()
    swap(mount, "two")
    assert another()
    (mount / "third").unlink()
    assert another()


def test_what_is_no_file_is_told_apart_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files = Files(path, None)
    seen = {files.first}
    path.mkdir()
    seen.add(files.fingerprint())
    path.rmdir()
    os.mkfifo(path)
    seen.add(files.fingerprint())
    path.unlink()
    path.touch()
    seen.add(files.fingerprint())
    with path.open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    seen.add(files.fingerprint())
    assert 5 == len(seen)


# ---- what is said


async def test_each_change_is_said_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry, adopted, noted = CollectorRegistry(), list[str](), list[tuple[str, Any]]()
    kept = reloaded(file)

    async def adopt() -> None:
        adopted.append(kept.value)

    room = Reloading(
        [Watched(kept, adopt)],
        InlineExecutor(),
        note=lambda name, /, **fields: noted.append((name, fields)),
        metrics=Metrics(registry),
    )
    with caplog.at_level(logging.INFO, "agent.reloading"):
        for content in ("bad", "bad", "two", "two"):
            replace(file, content.encode())
            await room._look(room._watched[0], at_once=True)
    assert ["two"] == adopted
    assert ["reload.refused", "reload.adopted"] == [r.getMessage() for r in caplog.records]
    assert [
        ("reload.refused", {"what": "redaction", "key": KEY, "reason": "bad"}),
        ("reload.adopted", {"what": "redaction", "version": "two"}),
    ] == noted
    counts = {
        (what, outcome): registry.get_sample_value(
            "feedback_agent_reloads_total", {"what": what, "outcome": outcome}
        )
        for what in RELOADED
        for outcome in ("adopted", "refused")
    }
    assert {pair: float(pair[0] == "redaction") for pair in counts} == counts


# ---- the agent


RULE = '- name: {name}\n  pattern: "{pattern}"\n'
EMPLOYEE = RULE.format(name="employee", pattern="EMP-[0-9]{6}")
NUMBER = "EMP-123456"


@pytest.fixture
def topics(embedded: EmbeddedKafka) -> Topics:
    pytest.importorskip("re2")
    return mock_topics(embedded)


def rules(work: Path, content: str = RULE.format(name="other", pattern="OTHER-[0-9]+")) -> Path:
    path = work / "rules.yaml"
    replace(path, content.encode())
    return path


def reloads(agent: Agent, outcome: str, what: str = "redaction") -> int:
    return int(agent.metric("reloads_total", what=what, outcome=outcome))


def ask(agent: Agent, outcome: str, times: int) -> None:
    agent.signal(signal.SIGHUP)
    agent.until(lambda: reloads(agent, outcome) == times, f"{outcome} {times} times")


def comments(topics: Topics) -> dict[str, tuple[str, str]]:
    """Return the comment and the header ``redaction`` of each event; each is there once."""
    found: dict[str, tuple[str, str]] = {}
    for record in records(topics, topics.events):
        assert record.value is not None
        event, headers = json.loads(record.value), dict(record.headers)
        assert event["event_id"] not in found, "a copy"
        found[event["event_id"]] = event["comment"], headers["redaction"].decode()
    return found


def test_a_rule_that_is_added_redacts_the_next_lines(topics: Topics, tmp_path: Path) -> None:
    """Without a restart, in lines as in dead letters; what was sent before stays what it was."""
    with Agent(tmp_path, topics, redact={"custom": str(rules(tmp_path))}) as agent:
        agent.start()
        path = agent.root / "app/a.jsonl"
        append(path, [feedback(n, comment=NUMBER) for n in range(50)])
        agent.until_delivered(50)
        before = agent.status()["reloaded"]["redaction"]["version"]
        rules(tmp_path, EMPLOYEE)
        ask(agent, "adopted", 1)
        after = agent.status()["reloaded"]["redaction"]["version"]
        append(path, [feedback(n, comment=NUMBER) for n in range(50, 100)])
        append(path, [NUMBER.encode()])
        agent.until_delivered(100, 1)
        (said,) = agent.log_entries("reload.adopted")
        assert 0 == agent.stop()
    assert before != after
    assert after.startswith(f"{VERSION}+")
    assert ("redaction", after) == (said["what"], said["version"])
    assert {
        event_id(n): (NUMBER, before) if n < 50 else ("[EMPLOYEE]", after) for n in range(100)
    } == comments(topics)
    (dead,) = records(topics, topics.dead_letters)
    assert b"[EMPLOYEE]" == dead.value
    audited = (agent.state_dir / "audit.jsonl").read_text()
    assert '"event":"reload.adopted","what":"redaction"' in audited


def test_names_are_shown_as_the_new_rules_have_it(topics: Topics, tmp_path: Path) -> None:
    """In metrics, in /status and in the log."""
    custom = {"custom": str(rules(tmp_path))}
    with Agent(tmp_path, topics, redact=custom, source={"scan_s": 0.5}) as agent:
        append(agent.root / NUMBER / "a.jsonl", [feedback(1)])
        agent.start()
        agent.until_delivered(1)
        agent.until(lambda: f'client="{NUMBER}"' in agent.get("/metrics").body, "a series")
        rules(tmp_path, EMPLOYEE)
        ask(agent, "adopted", 1)
        assert NUMBER not in agent.get("/status").body
        agent.until(lambda: 'client="[EMPLOYEE]"' in agent.get("/metrics").body, "another series")
        assert NUMBER not in agent.get("/metrics").body
        said = len(agent.log_text())
        (agent.root / NUMBER / "b.jsonl").symlink_to("x")
        agent.until(lambda: bool(agent.log_entries("file.skipped")), "a name in the log")
        assert NUMBER not in agent.log_text()[said:]
        assert 0 == agent.stop()


@pytest.mark.parametrize("content", ["", "- {name: x, pattern: '('}", None])
def test_bad_rules_are_said_once_and_the_last_good_ones_stay(
    topics: Topics, tmp_path: Path, content: str | None
) -> None:
    custom = rules(tmp_path, EMPLOYEE)
    with Agent(tmp_path, topics, redact={"custom": str(custom)}) as agent:
        agent.start()
        before = agent.status()["reloaded"]["redaction"]
        if content is None:
            custom.unlink()
        else:
            rules(tmp_path, content)
        ask(agent, "refused", 1)
        agent.signal(signal.SIGHUP)
        agent.until(lambda: len(agent.log_entries("reload.asked")) == 2, "asked again")
        append(agent.root / "app/a.jsonl", [feedback(1, comment=NUMBER)])
        agent.until_delivered(1)
        (said,) = agent.log_entries("reload.refused")
        assert said["key"].startswith("redact.custom")
        now = agent.status()["reloaded"]["redaction"]
        assert {**before, "problem": f"{said['key']}: {said['reason']}"} == now
        rules(tmp_path, EMPLOYEE)
        ask(agent, "adopted", 1)
        assert before == agent.status()["reloaded"]["redaction"]
        assert 0 == agent.stop()
    assert {event_id(1): ("[EMPLOYEE]", before["version"])} == comments(topics)


def test_a_new_hash_key_counts_for_the_next_lines(topics: Topics, tmp_path: Path) -> None:
    """For markers, and for what stands for a line that is not UTF-8."""
    key = tmp_path / "key"
    replace(key, b"0123456789abcdef")
    with Agent(tmp_path, topics, redact={"hash_key_file": str(key)}) as agent:
        agent.start()
        path = agent.root / "app/a.jsonl"
        for n, content in enumerate((b"", b"fedcba9876543210")):
            append(path, [feedback(n, comment="jo@example.com"), b"\xff"])
            agent.until_delivered(n + 1, n + 1)
            replace(key, content)
            ask(agent, "adopted" if content else "refused", 1)
        append(path, [feedback(2, comment="jo@example.com"), b"\xff"])
        agent.until_delivered(3, 3)
        assert 0 == agent.stop()
    first, second, third = (comments(topics)[event_id(n)][0] for n in range(3))
    assert first == second != third
    first, second, third = (r.value for r in records(topics, topics.dead_letters))
    assert first == second != third


@pytest.mark.long
def test_nobody_has_to_ask(topics: Topics, tmp_path: Path) -> None:
    """A ConfigMap that is swapped is noticed by the agent itself, while lines go on."""
    mount = config_map(tmp_path / "mount", RULE.format(name="other", pattern="OTHER"))
    with Agent(tmp_path, topics, redact={"custom": str(mount / "file")}) as agent:
        agent.start()
        swap(mount, EMPLOYEE)
        path, written = agent.root / "app/a.jsonl", 0
        while reloads(agent, "adopted") == 0:
            append(path, [feedback(written, comment=NUMBER)])
            written += 1
            agent.until_delivered(written)
        append(path, [feedback(written, comment=NUMBER)])
        agent.until_delivered(written + 1)
        assert 0 == agent.stop()
    found = comments(topics)
    in_order = [found[event_id(n)][0] for n in range(written + 1)]
    first = in_order.index("[EMPLOYEE]")
    assert [NUMBER] * first + ["[EMPLOYEE]"] * (written + 1 - first) == in_order
    assert first > 0
