"""What ``feedback-agent doctor`` says of a node, and of what it was told of Kafka."""

import fcntl
import json
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from agent.cli import main
from agent.config import Config, load
from agent.core.discovery import Seen
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics, write_config
from agent.operator.doctor import CHECKS, Finding, cluster, kafka, node, state, topics
from agent.operator.doctor.cluster import Cluster, Partition, Reached, TopicSeen
from agent.operator.doctor.topics import Wanted
from tests.running import NOWHERE, OBEDIENT, Agent, append, feedback, mock_topics

DOCS = Path(__file__).parent.parent / "docs/operator.md"
NOW_S = 1_800_000_000.0
EVENTS = Wanted("feedback-events", "kafka.topic", "source.line_bytes_max", 786_432)
DEAD_LETTERS = Wanted("feedback-events-dlq", "dlq.topic", "dlq.line_bytes_max", 786_432)
SETTINGS = {
    "max.message.bytes": "1048588",
    "min.insync.replicas": "2",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "cleanup.policy": "delete",
}
ALL_OPERATIONS = 0xFFF


def config(tmp_path: Path, **sections: Any) -> Config:
    file = tmp_path / "config.yaml"
    (tmp_path / "feedback").mkdir(exist_ok=True)
    write_config(file, tmp_path / "feedback", tmp_path / "state", NOWHERE, **sections)
    return load(file, {})


def seen(settings: dict[str, str] | None = None, **more: Any) -> TopicSeen:
    known: dict[str, Any] = {
        "name": EVENTS.name,
        "error": 0,
        "partitions": (Partition(0, 1, 3, 3), Partition(1, 2, 3, 3)),
        "operations": ALL_OPERATIONS,
        "settings": SETTINGS | (settings or {}),
        "newer": False,
    }
    return TopicSeen(**known | more)


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in findings}


def doctor(file: Path, *args: str) -> Result:
    return CliRunner().invoke(main, ["doctor", "--config", str(file), *args])


# ---- all of it


def test_every_check_is_made_in_its_order_by_its_name(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """Scripts go by the names, and people by the order."""
    file, topics_ = tmp_path / "config.yaml", mock_topics(embedded)
    append(tmp_path / "feedback/acme/a.jsonl", [feedback(1)])
    write_config(file, tmp_path / "feedback", tmp_path / "state", topics_)

    result = doctor(file, "--json")

    said = json.loads(result.stdout)
    assert (0, True) == (result.exit_code, said["ok"]), result.output
    once = CHECKS.index("topic.exists")
    names = [finding["check"] for finding in said["findings"]]
    assert [*CHECKS[:once], *CHECKS[once:], *CHECKS[once:]] == names
    assert not (tmp_path / "state").exists()


def test_a_failure_is_exit_code_1_and_says_what_to_do(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    mock_topics(embedded)
    topics_ = Topics(embedded.bootstrap_servers, "feedback-events", "not-made")
    write_config(file, tmp_path / "feedback", tmp_path / "state", topics_)
    (tmp_path / "feedback").mkdir()

    result = doctor(file)

    assert 1 == result.exit_code
    assert "fail topic.exists              does not exist; dlq.topic names it\n" in squeezed(result)
    assert "> kafka-topics --create --topic not-made" in result.stdout


def test_beside_a_running_agent_it_says_so_and_disturbs_nothing(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        append(agent.root / "acme/a.jsonl", [feedback(1)])
        agent.start()
        agent.until_delivered(1)

        found = json.loads(doctor(agent.config, "--json").stdout)["findings"]

        (lock,) = (one for one in found if one["check"] == "state.lock")
        assert ("warn", f"held by a running agent, pid {agent.pid}") == (
            lock["verdict"],
            lock["found"],
        )
        assert "fail" not in {one["verdict"] for one in found}
        append(agent.root / "acme/a.jsonl", [feedback(2)])
        agent.until_delivered(2)
        assert 0 == agent.stop()
        assert not agent.log_entries("sink.down", "producer.retired")


def squeezed(result: Result) -> str:
    return "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())


def test_without_a_configuration_nothing_else_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{kafka: {bootstrap_servers: a:1}, log: {level: loud}}")

    result = doctor(file, "--json")

    (only,) = json.loads(result.stdout)["findings"]
    assert (1, "configuration", "fail") == (result.exit_code, only["check"], only["verdict"])
    assert "log.level: found 'loud'" in only["found"]


def test_where_no_broker_answers_the_rest_is_not_checked(tmp_path: Path) -> None:
    """What nobody could look at is neither good nor bad."""
    config(tmp_path)

    result = doctor(tmp_path / "config.yaml", "--json")

    found = {one["check"]: one for one in json.loads(result.stdout)["findings"]}
    assert (1, "fail") == (result.exit_code, found["kafka.bootstrap"]["verdict"])
    assert "127.0.0.1:1" in found["kafka.bootstrap"]["found"]
    later = CHECKS[CHECKS.index("kafka.brokers") :]
    assert {"warn"} == {found[check]["verdict"] for check in later}


def test_every_check_is_explained_where_operators_look() -> None:
    _, _, section = DOCS.read_text().partition("## doctor\n")
    rows = re.findall(r"^\| (`[^|]+`) \|", section.partition("\n## ")[0], re.MULTILINE)

    assert set(CHECKS) == {name for row in rows for name in re.findall("`([^`]+)`", row)}


# ---- the node


def test_a_root_that_is_missing_or_no_directory_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    missing, file = node.source_root(tmp_path / "missing"), node.source_root(tmp_path / "file")

    assert ("fail", "does not exist") == (missing.verdict, missing.found)
    assert ("fail", "is no directory") == (file.verdict, file.found)
    assert "ok" == node.source_root(tmp_path).verdict


def test_files_that_may_not_be_read_are_counted_and_one_is_named(tmp_path: Path) -> None:
    """Who runs the agent rarely knows under which user the apps write."""
    append(tmp_path / "feedback/acme/a.jsonl", [feedback(1)])
    append(tmp_path / "feedback/acme/b.jsonl", [feedback(2)])
    config(tmp_path)
    (tmp_path / "feedback/acme/b.jsonl").chmod(0)

    permissions = obedient(tmp_path, "source.permissions")

    assert "fail" == permissions["verdict"]
    assert "may not read 1 file (acme/b.jsonl for one) and 0 directories" in permissions["found"]


def test_the_name_of_a_file_is_shown_as_elsewhere(tmp_path: Path) -> None:
    """Redacted, and fit for JSON and a terminal although it is not even text."""
    name = os.fsdecode(b"acme/jo.doe@example.com\xff\x1b.jsonl")
    append(tmp_path / "feedback" / name, [feedback(1)])
    config(tmp_path)
    (tmp_path / "feedback" / name).chmod(0)

    found = obedient(tmp_path, "source.permissions")["found"]

    assert "jo.doe" not in found
    assert "[EMAIL]" in found
    assert found.isprintable()


def test_a_state_directory_of_another_user_is_no_place_for_state(tmp_path: Path) -> None:
    config(tmp_path)
    (tmp_path / "state").mkdir(mode=0o500)

    directory = obedient(tmp_path, "state.directory")

    assert ("fail", True) == (directory["verdict"], "may not write" in directory["found"])
    assert "chown -R" in directory["advice"]


def test_what_is_closed_to_us_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    config(tmp_path, agent={"state_dir": str(closed / "state")}, source={"root": str(closed / "a")})

    assert "may not write" in obedient(tmp_path, "state.directory")["found"]
    assert "fail" == obedient(tmp_path, "source.root")["verdict"]


def obedient(work: Path, check: str) -> dict[str, str]:
    """Return what is found by somebody whom the mode of files holds, even where root runs this."""
    prefix = OBEDIENT if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-m", "agent", "doctor", "--json", "--config"]
    done = subprocess.run(
        [*command, work / "config.yaml"], capture_output=True, text=True, check=False
    )
    found: dict[str, str] = next(
        one for one in json.loads(done.stdout)["findings"] if one["check"] == check
    )
    return found


def test_links_and_other_names_that_are_left_out_are_counted(tmp_path: Path) -> None:
    append(tmp_path / "feedback/acme/a.jsonl", [feedback(1)])
    (tmp_path / "feedback/acme/link.jsonl").symlink_to("a.jsonl")
    loaded = config(tmp_path)

    found = {one.check: one for one in node.of_source(loaded, Frozen(), str)}

    assert "files: 1, clients: 1; left out: 1 symlink" == found["source.files"].found
    assert "links are never followed: let apps write files" == found["source.files"].advice


class Frozen:
    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return NOW_S

    async def sleep(self, seconds: float) -> None:
        raise AssertionError


def test_a_file_from_the_future_is_a_wrong_clock() -> None:
    def written(at_s: float) -> tuple[Seen, ...]:
        return (Seen("a", "acme", 1, 10, int(at_s * 1e9)),)

    ahead = node.clock_files(Path("/"), written(NOW_S + 90), NOW_S)

    assert ("warn", True) == (ahead.verdict, "90 s in the future" in ahead.found)
    assert "ok" == node.clock_files(Path("/"), written(NOW_S), NOW_S).verdict


def test_more_directories_than_the_kernel_watches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "_watches_max", lambda: 8192)

    assert "ok" == node.inotify_watches(3000).verdict
    scarce = node.inotify_watches(5000)

    assert "warn" == scarce.verdict
    assert "sysctl fs.inotify.max_user_watches=65536" == scarce.advice


def test_a_limit_of_descriptors_that_reduces_what_is_open_is_said(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loaded = config(tmp_path)
    assert "ok" == node.process_descriptors(loaded, 1).verdict
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        reduced = node.process_descriptors(loaded, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert "warn" == reduced.verdict
    assert "256 allow 128 open source files, not the 512" in reduced.found


def test_a_lock_that_is_held_is_seen_without_being_touched(tmp_path: Path) -> None:
    """To try it could end an agent that starts in that moment."""
    assert "ok" == state.state_lock(tmp_path).verdict
    with (tmp_path / "lock").open("w") as lock:
        assert "ok" == state.state_lock(tmp_path).verdict
        fcntl.flock(lock, fcntl.LOCK_EX)

        held = state.state_lock(tmp_path)

    assert ("warn", f"held by a running agent, pid {os.getpid()}") == (held.verdict, held.found)


def test_a_state_directory_that_others_may_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    if node.filesystem(tmp_path) in state.MEMORY:
        pytest.skip("a file system in memory, which is said first")

    assert "chmod 0700 it" == state.state_directory(tmp_path / "state").advice
    (tmp_path / "state").chmod(0o700)
    assert "ok" == state.state_directory(tmp_path / "state").verdict


def test_a_disk_with_less_free_than_the_spool_leaves_is_said(tmp_path: Path) -> None:
    assert "ok" == state.state_disk(config(tmp_path, spool={"disk_free_min": 0.0})).verdict

    short = state.state_disk(config(tmp_path, spool={"disk_free_min": 0.999999}))

    assert ("warn", True) == (short.verdict, "less than spool.disk_free_min" in short.found)


# ---- Kafka, as it was told


def test_a_sound_topic_has_nothing_to_be_said_about() -> None:
    assert {"ok"} == set(verdicts(topics.of_topic(EVENTS, seen())).values())


@pytest.mark.parametrize(
    ("check", "verdict", "told"),
    [
        ("acl.write", "fail", {"operations": ALL_OPERATIONS & ~(1 << topics.WRITE)}),
        ("acl.write", "warn", {"operations": None}),
        ("acl.describe_configs", "warn", {"settings": None}),
        ("topic.partitions", "warn", {"partitions": (Partition(0, 1, 3, 3),)}),
        ("topic.partitions", "fail", {"partitions": (Partition(0, -1, 3, 3),)}),
        ("topic.replication", "warn", {"partitions": (Partition(0, 1, 1, 1),)}),
        ("topic.replication", "warn", {"partitions": (Partition(0, 1, 3, 2),)}),
        ("topic.min_insync_replicas", "fail", {"partitions": (Partition(0, 1, 3, 1),)}),
        ("topic.clock", "warn", {"newer": True}),
        ("topic.clock", "warn", {"newer": None}),
    ],
)
def test_what_is_wrong_with_a_topic(check: str, verdict: str, told: dict[str, Any]) -> None:
    found = TopicSeen(
        **{name: getattr(seen(), name) for name in TopicSeen.__struct_fields__} | told
    )

    assert verdict == verdicts(topics.of_topic(EVENTS, found))[check]


@pytest.mark.parametrize(
    ("check", "verdict", "settings"),
    [
        ("topic.min_insync_replicas", "warn", {"min.insync.replicas": "1"}),
        ("topic.min_insync_replicas", "warn", {"min.insync.replicas": "3"}),
        ("topic.min_insync_replicas", "fail", {"min.insync.replicas": "4"}),
        ("topic.message_bytes", "warn", {"max.message.bytes": "790000"}),
        ("topic.message_bytes", "fail", {"max.message.bytes": "100000"}),
        ("topic.retention", "warn", {"retention.ms": "3600000"}),
        ("topic.retention", "ok", {"retention.ms": "-1"}),
        ("topic.retention", "warn", {"retention.bytes": "1000000"}),
        ("topic.cleanup_policy", "fail", {"cleanup.policy": "compact,delete"}),
    ],
)
def test_what_is_wrong_with_its_settings(
    check: str, verdict: str, settings: dict[str, str]
) -> None:
    assert verdict == verdicts(topics.of_topic(EVENTS, seen(settings)))[check]


@pytest.mark.parametrize(
    ("settings", "event_time", "verdict"),
    [
        ({"message.timestamp.type": "LogAppendTime"}, True, "warn"),
        ({"message.timestamp.type": "LogAppendTime"}, False, "ok"),
        ({"message.timestamp.before.max.ms": "86400000"}, True, "warn"),
        ({"message.timestamp.before.max.ms": "86400000"}, False, "ok"),
        ({}, True, "ok"),
    ],
)
def test_a_topic_must_take_the_times_of_events_where_they_are_sent(
    settings: dict[str, str], event_time: bool, verdict: str
) -> None:
    topic = replace(EVENTS, event_time=event_time)

    assert verdict == topics.timestamps(topic, SETTINGS | settings).verdict


def test_a_limit_below_that_of_dead_letters_costs_their_payload() -> None:
    """There is no dead letter of a dead letter."""
    found = topics.message_bytes(DEAD_LETTERS, SETTINGS | {"max.message.bytes": "1000"})

    assert "longer dead letters lose their payload" in found.found


@pytest.mark.parametrize(("days", "verdict"), [(30, "ok"), (3, "warn"), (-1, "warn")])
def test_a_certificate_that_ends_soon_is_said(tmp_path: Path, days: int, verdict: str) -> None:
    loaded = config(tmp_path, kafka={"tls": {"enabled": True}})
    ends = {30: "Feb 14 08:00:00 2027 GMT", 3: "Jan 18 08:00:00 2027 GMT"}
    made = cluster.Handshake("TLSv1.3", ends.get(days, "Jan 14 08:00:00 2027 GMT"))
    reached = Cluster(bootstrap=(Reached("kafka:9093", made=made),))

    assert verdict == kafka.tls(loaded.kafka, reached, NOW_S).verdict


def test_one_bootstrap_server_that_is_away_is_no_failure(tmp_path: Path) -> None:
    made = Reached("a:9092", made=cluster.Handshake(None, None))
    away = Reached("b:9092", problem="connection refused")
    loaded = config(tmp_path).kafka

    assert "warn" == kafka.bootstrap(loaded, Cluster(bootstrap=(made, away))).verdict
    assert "fail" == kafka.bootstrap(loaded, Cluster(bootstrap=(away, away))).verdict


def test_brokers_that_advertise_what_cannot_be_reached_are_named(tmp_path: Path) -> None:
    """The bootstrap address answers and nothing else does: the usual mistake with containers."""
    away = cluster.Broker(2, "kafka-2.internal:9092", "name or service not known")
    found = kafka.brokers(config(tmp_path).kafka, Cluster(bootstrap=(), brokers=(away,)))

    assert ("fail", True) == (found.verdict, "2 at kafka-2.internal:9092" in found.found)
    assert "advertised.listeners" in found.advice


def test_modes_and_owners_are_shown_as_ls_does(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)

    assert node.owned(tmp_path.stat()).startswith("drwxr-x--- ")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750
