"""A backfill sends what was named, once, with the ids the agent gave, and harms no agent."""

import gzip
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from agent.store import Store
from tests.backfilling import backfill, ids, interrupted, summary
from tests.running import NOWHERE, Agent, append, event_id, feedback, mock_topics, records

LONG = pytest.mark.long


@pytest.fixture
def agent(embedded_one: EmbeddedKafka, tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path, mock_topics(embedded_one)) as made:
        yield made


@pytest.fixture
def embedded_one() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka(1) as running:
        yield running


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "archive/checkout").mkdir(parents=True)
    return tmp_path / "archive"


def nameless(number: int) -> bytes:
    """Return a line without an id of its own."""
    fields = {"type": "user_feedback", "session_id": f"s{number}", "comment": "x" * 40}
    return json.dumps(fields).encode()


def sent(agent: Agent) -> Counter[str]:
    """Return how often each event is in the topic."""
    found = records(agent.topics, agent.topics.events)
    return Counter(json.loads(record.value)["event_id"] for record in found)


def test_a_directory_is_sent_once_compressed_files_and_bad_lines_too(
    agent: Agent, archive: Path
) -> None:
    """The same command again finds that all was sent; what is appended meanwhile is."""
    append(archive / "checkout/a.jsonl", [feedback(n) for n in range(2000)])
    (archive / "search").mkdir()
    packed = b"".join(feedback(n) + b"\n" for n in range(2000, 3000)) + b"bad\n"
    (archive / "search/b.jsonl.1.gz").write_bytes(gzip.compress(packed))
    (archive / "search/notes.txt").write_text("not asked for\n")

    first = summary(agent, archive, "--root", archive)

    assert {"invalid_json": 1} == first["counts"]["rejected"]
    assert (3001, 3000, 1) == tuple(
        first["counts"][name] for name in ("lines", "sent", "dead_letters")
    )
    found = records(agent.topics, agent.topics.events)
    clients = Counter(json.loads(r.value)["metadata"]["client"] for r in found)
    assert {"checkout": 2000, "search": 1000} == clients
    assert 1 == len(records(agent.topics, agent.topics.dead_letters))

    append(archive / "checkout/a.jsonl", [feedback(3000)])
    again = summary(agent, archive, "--root", archive)

    assert 1 == again["counts"]["sent"]
    assert {event_id(n): 1 for n in range(3001)} == sent(agent)


@pytest.mark.long
def test_forced_it_sends_all_again_with_the_same_ids(agent: Agent, archive: Path) -> None:
    append(archive / "checkout/a.jsonl", [nameless(n) for n in range(300)])
    append(archive / "checkout/b.jsonl", [nameless(n) for n in range(300)])

    summary(agent, archive, "--root", archive)
    assert 600 == summary(agent, archive, "--root", archive, "--force")["counts"]["sent"]

    assert {2} == set(sent(agent).values())
    assert 600 == len(sent(agent))


@pytest.mark.long
def test_what_another_backfill_sent_is_not_sent_again(
    agent: Agent, embedded_one: EmbeddedKafka, archive: Path
) -> None:
    """By another command: of one file, then of its directory."""
    embedded_one.create_topic("feedback-again", 1)
    append(archive / "checkout/a.jsonl", [nameless(n) for n in range(300)])
    append(archive / "checkout/b.jsonl", [nameless(n) for n in range(100)])
    (archive / "checkout/c.jsonl.gz").write_bytes(gzip.compress(feedback(1) + b"\n"))
    for name in ("a.jsonl", "c.jsonl.gz"):
        summary(agent, archive / "checkout" / name, "--root", archive)

    second = summary(agent, archive, "--root", archive)

    assert 100 == second["counts"]["sent"]
    assert {"same_file": 2, "unknown_to_agent": 1} == second["ids"]
    assert {1} == set(sent(agent).values())

    other = summary(agent, archive, "--root", archive, "--topic", "feedback-again")
    assert 401 == other["counts"]["sent"], "nothing of it is in that topic"


def test_the_rest_of_a_file_that_the_agent_had_goes_with_the_ids_it_would_have_got(
    agent: Agent, archive: Path
) -> None:
    """Moved away while the agent was down, half of it unsent."""
    path = agent.root / "checkout/a.jsonl"
    append(path, [nameless(n) for n in range(200)])
    with agent.start():
        agent.until_delivered(200)
        assert 0 == agent.stop()
    append(path, [nameless(n) for n in range(200, 300)])
    moved = path.rename(archive / "checkout/a.jsonl")

    rest = summary(agent, moved, "--root", archive)

    assert 100 == rest["counts"]["sent"]
    assert {"same_file": 1} == rest["ids"]
    assert {1} == set(sent(agent).values())
    of_rest = ids(records(agent.topics, agent.topics.events))
    assert 300 == len(of_rest)

    summary(agent, moved, "--root", archive, "--force")

    assert of_rest == ids(records(agent.topics, agent.topics.events)), "the same places and ids"
    assert {2} == set(sent(agent).values())


@pytest.mark.parametrize("name", [pytest.param("a.jsonl.1", marks=LONG), "a.jsonl.1.gz"])
def test_a_copy_of_what_the_agent_had_has_its_ids(agent: Agent, archive: Path, name: str) -> None:
    """Also while the agent runs: its checkpoints are locked, and read all the same."""
    path, copy = agent.root / "checkout/a.jsonl", archive / "checkout" / name
    append(path, [nameless(n) for n in range(400)])
    with agent.start():
        agent.until_delivered(400)
        agent.until_committed()
        content = path.read_bytes() + nameless(400) + b"\n"
        copy.write_bytes(gzip.compress(content) if name.endswith("gz") else content)

        assert 1 == summary(agent, copy, "--root", archive)["counts"]["sent"]
        forced = summary(agent, copy, "--root", archive, "--force")

        assert (401, {"copy": 1}) == (forced["counts"]["sent"], forced["ids"])
        assert 401 == len(sent(agent)), "no line has two ids"
        assert 0 == agent.stop()


def test_what_a_running_agent_follows_is_refused_and_the_rest_is_not(
    embedded_one: EmbeddedKafka, tmp_path: Path
) -> None:
    """They would be sent twice."""
    with Agent(tmp_path, mock_topics(embedded_one), source={"exclude": ["*.gz"]}) as agent:
        followed, old = agent.root / "checkout/a.jsonl", agent.root / "checkout/b.jsonl.gz"
        append(followed, [feedback(1)])
        old.write_bytes(gzip.compress(feedback(2) + b"\n"))
        agent.start()
        agent.until_delivered(1)

        refused = backfill(agent, agent.root)

        assert 1 == refused.code
        assert "the agent follows checkout/a.jsonl" in refused.err
        assert "--force" in refused.err
        assert "without --dry-run it ends here" in backfill(agent, followed, "--dry-run").err
        assert 1 == summary(agent, agent.root, "--include", "*.gz")["counts"]["sent"]
        assert 1 == summary(agent, followed, "--force")["counts"]["sent"]
        assert {event_id(1): 2, event_id(2): 1} == sent(agent)
        assert 0 == agent.stop()


@pytest.mark.long
def test_what_the_agent_passed_over_at_its_start_is_sent(
    embedded_one: EmbeddedKafka, tmp_path: Path
) -> None:
    """With start_at: end a checkpoint stands behind lines that nobody sent."""
    with Agent(tmp_path, mock_topics(embedded_one), source={"start_at": "end"}) as agent:
        path = agent.root / "checkout/a.jsonl"
        append(path, [nameless(n) for n in range(100)])
        agent.start()
        agent.until(lambda: bool(agent.status()["files"]), "a file")
        append(path, [nameless(100)])
        agent.until_delivered(1)
        assert 0 == agent.stop()

        assert 101 == summary(agent, path)["counts"]["sent"]

        assert 101 == len(sent(agent)), "what the agent sent has the same id"


def test_only_events_of_the_time_that_is_wanted_go(agent: Agent, archive: Path) -> None:
    """By their own time; one without a time goes, since nobody can say that it is not wanted."""
    days = [f"2026-01-{day:02}T12:00:00Z" for day in range(1, 11)]
    lines = [feedback(n, timestamp=at) for n, at in enumerate(days)]
    append(archive / "checkout/a.jsonl", [*lines, feedback(10, timestamp=None), b"bad"])
    window = "--since", "2026-01-03", "--until", "2026-01-05T12:00:00+00:00"

    found = summary(agent, archive, "--root", archive, *window)

    assert {event_id(n): 1 for n in (2, 3, 10)} == sent(agent)
    assert (8, 1) == (found["counts"]["passed_over"], found["timeless"])
    assert ("2026-01-03T12:00:00Z", "2026-01-04T12:00:00Z") == (found["oldest"], found["newest"])
    assert 11 - 3 + 3 == summary(agent, archive, "--root", archive)["counts"]["sent"]


def test_a_dry_run_counts_what_a_run_does_and_leaves_nothing(agent: Agent, archive: Path) -> None:
    """It connects to nothing: there is no broker in this configuration."""
    lines = [feedback(n) for n in range(1000)] + [b"bad", b"{}", b""]
    append(archive / "checkout/a.jsonl", lines)
    paths = (archive, "--root", archive)

    dry = summary(agent, *paths, "--dry-run")

    assert not agent.state_dir.exists()
    assert [] == records(agent.topics, agent.topics.events)
    real = summary(agent, *paths)
    kafka_bytes = [one["counts"].pop("kafka_bytes") for one in (dry, real)]
    assert dry["counts"] == real["counts"]
    assert kafka_bytes[1] == pytest.approx(kafka_bytes[0], rel=0.1)
    assert 0 == summary(agent, *paths, "--dry-run")["counts"]["sent"], "it knows what was sent"


@pytest.mark.long
def test_a_dry_run_needs_no_broker(tmp_path: Path, archive: Path) -> None:
    append(archive / "checkout/a.jsonl", [feedback(1)])
    with Agent(tmp_path, NOWHERE) as agent:
        assert 1 == summary(agent, archive, "--root", archive, "--dry-run")["counts"]["sent"]


@pytest.mark.long
def test_without_kafka_it_says_so_and_goes_on_later(tmp_path: Path, archive: Path) -> None:
    append(archive / "checkout/a.jsonl", [feedback(1)])
    with Agent(tmp_path, NOWHERE, kafka={"start_s": 0.5}) as agent:
        ended = backfill(agent, archive, "--root", archive)

    assert 1 == ended.code
    assert "unreachable: the topic feedback-events could not be reached within 0.5 s" in ended.err


def test_what_cannot_be_sent_is_named_and_the_exit_code_is_1(agent: Agent, archive: Path) -> None:
    """A last line without its end is no line; a name that lies is no archive."""
    append(archive / "checkout/a.jsonl", [feedback(1)])
    with (archive / "checkout/a.jsonl").open("ab") as file:
        file.write(feedback(2))
    (archive / "checkout/b.jsonl.gz").write_bytes(feedback(3) + b"\n")

    ended = backfill(agent, archive, "--root", archive)

    assert 1 == ended.code
    left = {one["path"]: one["why"] for one in ended.summary["left"]}
    why = {"checkout/a.jsonl": "its last line has no end", "checkout/b.jsonl.gz": "corrupt"}
    assert why == left
    assert {event_id(1): 1} == sent(agent)


@pytest.mark.long
def test_a_copy_beside_its_original_is_not_sent(agent: Agent, archive: Path) -> None:
    """It is compared once it has rested; its lines are the original's."""
    lines = [nameless(n) for n in range(100)]
    append(archive / "checkout/a.jsonl", lines)
    shutil.copyfile(archive / "checkout/a.jsonl", archive / "checkout/a.jsonl.1")

    found = summary(agent, archive, "--root", archive)

    assert (100, 1) == (found["counts"]["sent"], found["copies"])
    assert {1} == set(sent(agent).values())


@pytest.mark.parametrize(
    "by",
    [
        signal.SIGINT,
        signal.SIGHUP,  # its terminal is closed
        *(pytest.param(by, marks=LONG) for by in (signal.SIGTERM, signal.SIGKILL)),
    ],
)
def test_a_signal_ends_it_and_the_same_command_goes_on(
    agent: Agent, archive: Path, by: signal.Signals
) -> None:
    """Asked to stop, it sends nothing twice; killed, copies have the ids of their lines."""
    for name in "abc":
        append(archive / f"checkout/{name}.jsonl", [nameless(n) for n in range(4000)])
    paths = (archive, "--root", archive)

    ended = interrupted(agent, *paths, "--rate", 1000, by=by, after_bytes=100_000)

    before = len(records(agent.topics, agent.topics.events))
    assert 0 < before < 12_000, "it ended in the middle"
    if by is signal.SIGKILL:
        assert -by == ended.code
    else:
        assert 1 == ended.code, ended
        assert ended.summary["interrupted"]
        assert 0 == ended.summary["unsettled"]
    summary(agent, *paths)
    found = ids(records(agent.topics, agent.topics.events))
    assert 12_000 == len(found)
    assert {1} == {len(of_line) for of_line in found.values()}
    if by is not signal.SIGKILL:
        assert {1} == set(sent(agent).values())


def test_one_that_runs_already_is_named_and_left_alone(agent: Agent, archive: Path) -> None:
    """Somebody typed it twice. What it noted of itself is not touched: it is another's."""
    append(archive / "checkout/a.jsonl", [feedback(n) for n in range(10)])
    paths = (archive, "--root", archive)
    summary(agent, *paths)
    (job,) = agent.state_dir.glob("backfill/*/job.json")
    before, store = job.read_bytes(), Store.open(job.parent, "demo")
    try:
        ended = backfill(agent, *paths)
    finally:
        store.close()

    assert 75 == ended.code
    assert f"this backfill runs already, as pid {os.getpid()}" in ended.err
    assert before == job.read_bytes()


def test_a_path_whose_client_nobody_knows_is_refused(agent: Agent, archive: Path) -> None:
    append(archive / "checkout/a.jsonl", [feedback(1)])

    ended = backfill(agent, archive)

    assert 78 == ended.code
    assert "say --client NAME, or --root DIR" in ended.err
    summary(agent, archive, "--client", "old")
    (record,) = records(agent.topics, agent.topics.events)
    assert "old" == json.loads(record.value)["metadata"]["client"]


def test_a_name_that_is_no_text_is_a_name(agent: Agent, archive: Path) -> None:
    """Names are bytes: state, summary and messages take any."""
    path = archive / os.fsdecode(b"check\xffout/a.jsonl")
    append(path, [feedback(1)])
    with path.open("ab") as file:
        file.write(b"torn")

    ended = backfill(agent, archive, "--root", archive)

    assert ["check\\xffout/a.jsonl"] == [one["path"] for one in ended.summary["left"]]
    assert 1 == ended.summary["counts"]["sent"]
    again = backfill(agent, path, "--root", archive, "--dry-run")
    assert (1, 0) == (again.code, again.summary["counts"]["sent"])
