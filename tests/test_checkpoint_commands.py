"""``checkpoint`` and ``explain`` as a person types them, with the agent up and down."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import main
from agent.demo.broker import EmbeddedKafka
from tests.running import Agent, append, event_id, feedback, mock_topics, records

LINES = 50
PATH = "app/x.jsonl"


@pytest.fixture
def agent(tmp_path: Path, embedded: EmbeddedKafka) -> Iterator[Agent]:
    with Agent(tmp_path, mock_topics(embedded), source={"exclude": ["*.tmp.jsonl"]}) as made:
        append(made.root / PATH, map(feedback, range(LINES)))
        yield made


def call(agent: Agent, *args: str, exit_code: int = 0, **more: Any) -> Result:
    command = [*args, "--config", str(agent.config)]
    result = CliRunner().invoke(main, command, prog_name="feedback-agent", **more)
    assert exit_code == result.exit_code, result.output
    return result


def verdict(agent: Agent, path: str, exit_code: int = 0) -> tuple[str, set[str]]:
    found = json.loads(call(agent, "explain", path, "--json", exit_code=exit_code).stdout)
    return found["state"], {finding["code"] for finding in found["findings"]}


def listed(agent: Agent, *more: str) -> list[dict[str, Any]]:
    out = call(agent, "checkpoint", "list", "--json", *more).stdout
    return [json.loads(line) for line in out.splitlines()]


def arrivals(agent: Agent) -> dict[str, list[int]]:
    """Return the generations in which each event arrived."""
    found: dict[str, list[int]] = {}
    for record in records(agent.topics, agent.topics.events):
        source = dict(record.headers)["source"].split(b";")
        found.setdefault(record.key.decode(), []).append(int(source[2]))
    return found


def noted(agent: Agent) -> list[dict[str, Any]]:
    out = call(agent, "audit", "show", "--event", "checkpoint").stdout
    return [json.loads(line) for line in out.splitlines()]


def test_a_running_agent_begins_again_and_says_who_wanted_it(agent: Agent) -> None:
    """As a new generation: the checkpoint of one never goes back (invariant 2)."""
    agent.start()
    agent.until_delivered(LINES)
    settled = (agent.root / PATH).stat().st_size
    call(agent, "checkpoint", "reset", PATH, "--to", "start", "--yes")
    agent.until_delivered(2 * LINES)
    agent.until(lambda: listed(agent)[0]["watermark"] == settled, "settled again")

    rows = listed(agent, "--all")
    assert [(0, settled), (1, settled)] == [(r["generation"], r["watermark"]) for r in rows]
    assert [1] == [row["generation"] for row in listed(agent)], "the newest life alone"
    assert 0 == agent.stop()
    assert {event_id(n): [0, 1] for n in range(LINES)} == {
        key: sorted(generations) for key, generations in arrivals(agent).items()
    }
    (note,) = noted(agent)
    assert (PATH, settled, 0) == (note["path"], note["watermark"], note["resume_at"])
    assert f"uid {os.getuid()}" == note["by"]
    call(agent, "audit", "verify")


def test_an_agent_that_is_down_begins_where_it_was_told(agent: Agent) -> None:
    agent.start()
    agent.until_delivered(LINES)
    assert 0 == agent.stop()
    lines = (agent.root / PATH).read_bytes().splitlines(keepends=True)
    tenth = sum(map(len, lines[:10]))

    call(agent, "checkpoint", "reset", PATH, "--to", str(tenth), "--yes")
    agent.start()
    agent.until_delivered(LINES - 10)
    assert 0 == agent.stop()

    again = {event_id(n): [0] if n < 10 else [0, 1] for n in range(LINES)}
    assert again == {key: sorted(found) for key, found in arrivals(agent).items()}
    assert [tenth] == [note["resume_at"] for note in noted(agent)]
    call(agent, "audit", "verify")


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_only_where_a_line_begins_may_reading_begin(agent: Agent, running: bool) -> None:
    """Half a line would be a dead letter, and the other half lost."""
    agent.start()
    agent.until_delivered(LINES)
    if not running:
        assert 0 == agent.stop()
    first = len(feedback(0)) + 1
    size = (agent.root / PATH).stat().st_size

    for to, said in (
        ("7", f"within a line: it begins at 0, the next one at {first}"),
        (str(size + 1), "beyond the end"),
        (str(10**17), "beyond the end"),
    ):
        result = call(agent, "checkpoint", "reset", PATH, "--to", to, "--yes", exit_code=1)
        assert said in result.stderr
    call(agent, "checkpoint", "reset", PATH, "--to", "middle", exit_code=64)
    assert [0] == [row["generation"] for row in listed(agent, "--all")]


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_nothing_is_changed_by_a_look_or_by_a_no(agent: Agent, running: bool) -> None:
    agent.start()
    agent.until_delivered(LINES)
    if not running:
        assert 0 == agent.stop()
    reset = "checkpoint", "reset", PATH, "--to"

    looked = json.loads(call(agent, *reset, "start", "--dry-run", "--json").stdout)
    asked = call(agent, *reset, "start", "--json", input="n\n", exit_code=130)
    stands = call(agent, *reset, "end", "--yes")

    assert looked["again_bytes"] == looked["before"] > 0
    assert looked["dry_run"]
    assert "would begin" in asked.stderr
    assert "would begin" not in asked.stdout, "that is for JSON"
    assert "nothing to do" in stands.stdout
    assert [0] == [row["generation"] for row in listed(agent, "--all")]
    assert [] == noted(agent)


def test_what_is_passed_over_is_said_and_not_sent(agent: Agent) -> None:
    """A file that nobody has read may begin at its end, with the agent down."""
    agent.start()
    agent.until_delivered(LINES)
    assert 0 == agent.stop()
    late = agent.root / "app/late.jsonl"
    append(late, map(feedback, range(1000, 1010)))
    with late.open("ab") as file:
        file.write(b'{"type":')

    result = call(agent, "checkpoint", "reset", "app/late.jsonl", "--to", "end", "--yes")
    assert "never sent" in result.stdout
    with late.open("ab") as file:
        file.write(feedback(2000)[len(b'{"type":') :] + b"\n")
    agent.start()
    agent.until_delivered(1)
    assert 0 == agent.stop()

    assert event_id(2000) in arrivals(agent)
    assert event_id(1000) not in arrivals(agent)


def test_what_cannot_be_audited_is_not_done(agent: Agent) -> None:
    """With the agent down nobody else would know of it."""
    agent.start()
    agent.until_delivered(LINES)
    assert 0 == agent.stop()
    before, log = listed(agent, "--all"), agent.state_dir / "audit.jsonl"
    log.unlink()
    log.mkdir()

    result = call(agent, "checkpoint", "reset", PATH, "--to", "start", "--yes", exit_code=1)

    assert "nothing was changed" in result.stderr
    assert before == listed(agent, "--all")


def test_a_file_that_is_closed_for_another_begins_again_too(
    tmp_path: Path, embedded: EmbeddedKafka
) -> None:
    """No scan finds it changed: it is opened because it was reset."""
    few = {"descriptors_max": 1, "scan_s": 0.2}
    with Agent(tmp_path, mock_topics(embedded), source=few) as agent:
        for name in ("a", "b"):
            append(agent.root / f"app/{name}.jsonl", [feedback(ord(name), comment=name)])
        agent.start()
        agent.until_delivered(2)
        agent.until(lambda: all(row["watermark"] for row in listed(agent)), "both are settled")
        for path in ("app/a.jsonl", "app/b.jsonl"):
            call(agent, "checkpoint", "reset", path, "--to", "start", "--yes")
        agent.until_delivered(4)
        assert 0 == agent.stop()
        assert [[0, 1], [0, 1]] == [sorted(found) for found in arrivals(agent).values()]


def test_compressed_files_are_not_reset(agent: Agent) -> None:
    """Their content has another source, and its offsets are nothing a file can be opened at."""
    packed = agent.root / "app/y.jsonl.1.gz"
    packed.write_bytes(gzip.compress(feedback(500) + b"\n"))
    agent.start()
    agent.until_delivered(LINES + 1)
    reset = "checkpoint", "reset", "app/y.jsonl.1.gz", "--to", "start", "--yes"
    assert "is compressed" in call(agent, *reset, exit_code=1).stderr
    assert 0 == agent.stop()
    assert "is compressed" in call(agent, *reset, exit_code=1).stderr


def test_explain_says_why_a_file_is_read_or_not(agent: Agent) -> None:
    links = agent.root / "app/one.jsonl", agent.root / "app/two.jsonl"
    append(links[0], [feedback(900)])
    os.link(*links)
    append(agent.root / "app/y.tmp.jsonl", [feedback(901)])
    append(agent.root / "app/z.log", [feedback(902)])
    (agent.root / "app/link.jsonl").symlink_to("x.jsonl")
    agent.start()
    agent.until_delivered(LINES)
    with (agent.root / PATH).open("ab") as file:
        file.write(b"torn")
    agent.until(lambda: verdict(agent, PATH) == ("current", {"torn"}), "seen")

    assert ("not_read", {"links"}) == verdict(agent, str(links[0]), 1)
    assert ("not_read", {"excluded"}) == verdict(agent, "app/y.tmp.jsonl", 1)
    assert ("not_read", {"not_included"}) == verdict(agent, "app/z.log", 1)
    assert ("not_read", {"symlink"}) == verdict(agent, "app/link.jsonl", 1)
    assert ("not_read", {"outside"}) == verdict(agent, "/etc/passwd", 1)
    assert ("gone", {"missing"}) == verdict(agent, "app/none.jsonl")
    assert "is not read" in call(agent, "explain", "app/z.log", exit_code=1).stdout

    assert 0 == agent.stop()
    assert ("current", {"torn", "down"}) == verdict(agent, PATH)
    assert ("not_read", {"excluded", "down"}) == verdict(agent, "app/y.tmp.jsonl", 1)
    (agent.root / PATH).write_bytes(b"")
    assert "changed" in verdict(agent, PATH)[1]


def test_explain_knows_a_copy_that_waits(agent: Agent) -> None:
    agent.start()
    agent.until_delivered(LINES)
    original = agent.root / PATH
    (agent.root / "app/x.jsonl.1").write_bytes(original.read_bytes())
    agent.until(
        lambda: verdict(agent, "app/x.jsonl.1") == ("waiting", {"copy"}), "it waits as a copy"
    )


def test_without_an_agent_or_its_state_that_is_said(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"agent: {{node: n, state_dir: {tmp_path}/none}}\nsource: {{root: {tmp_path}/feedback}}\n"
        "kafka: {bootstrap_servers: ['k:1']}\n"
    )
    result = CliRunner().invoke(main, ["checkpoint", "list", "--config", str(config)])
    assert 1 == result.exit_code
    assert "no agent has run here" in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_state_directory_that_is_taken_is_left_alone(agent: Agent) -> None:
    """An agent that does not answer may still write: nobody else may."""
    agent.start()
    agent.until_delivered(LINES)
    (agent.state_dir / "control.sock").unlink()
    result = call(agent, "checkpoint", "reset", PATH, "--to", "start", "--yes", exit_code=75)
    assert "belongs to a running agent" in result.stderr
