"""What ``feedback-agent doctor`` finds wrong with a real Kafka."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner

from agent.cli import main
from agent.clock import SystemClock
from agent.demo.scene import Topics as Names
from agent.demo.scene import write_config
from tests.conftest import Topics
from tests.secured_kafka import (
    DESCRIBE,
    NOBODY,
    PASSWORD,
    ROTATED,
    USER,
    WRITE,
    Secured,
    replace,
)
from tests.test_brokers import producing

pytestmark = pytest.mark.kafka

WRONG = "wrong-battery"


def doctor(work: Path, names: Names, **kafka: Any) -> dict[tuple[str, str], dict[str, str]]:
    """Return what it finds, by check and subject."""
    file = work / "config.yaml"
    (work / "feedback").mkdir(exist_ok=True)
    section = {"request_timeout_s": 30, **kafka}
    write_config(file, work / "feedback", work / "state", names, kafka=section)
    done = CliRunner().invoke(main, ["doctor", "--json", "--config", str(file)])
    said = json.loads(done.stdout)
    assert (0 if said["ok"] else 1) == done.exit_code, done.output
    assert "Traceback" not in done.stderr
    return {(one["check"], one["subject"]): one for one in said["findings"]}


def of_check(found: dict[tuple[str, str], dict[str, str]], check: str) -> dict[str, str]:
    return next(one for (name, _), one in found.items() if name == check)


async def test_topics_as_they_should_be_and_as_they_should_not(
    kafka: str, topics: Topics, tmp_path: Path
) -> None:
    good = await topics(partitions=3, max_message_bytes=2_000_000)
    bad = await topics(
        partitions=1, max_message_bytes=5000, cleanup_policy="compact", min_insync_replicas=2,
        retention_ms=3_600_000,
    )  # fmt: skip

    found = await asyncio.to_thread(doctor, tmp_path, Names(kafka, good, bad))

    of_good = {check: one["verdict"] for (check, subject), one in found.items() if subject == good}
    assert "fail" not in of_good.values()
    assert "ok" == of_good["acl.write"] == of_good["topic.message_bytes"] == of_good["topic.clock"]
    of_bad = {check: one["verdict"] for (check, subject), one in found.items() if subject == bad}
    assert {"topic.message_bytes", "topic.cleanup_policy", "topic.min_insync_replicas"} == {
        check for check, verdict in of_bad.items() if verdict == "fail"
    }
    assert "warn" == of_bad["topic.retention"]
    assert "ok" == of_check(found, "acl.idempotent_write")["verdict"]


def test_a_topic_that_is_missing_is_named_and_not_made(kafka: str, tmp_path: Path) -> None:
    """Asked for by name, brokers would make it, with one partition and nobody's settings."""
    absent = f"absent-{uuid4().hex}"
    for _ in range(2):
        found = doctor(tmp_path, Names(kafka, absent, f"{absent}-dlq"))

        missing = found["topic.exists", absent]
        assert ("fail", "does not exist; kafka.topic names it") == (
            missing["verdict"],
            missing["found"],
        )


async def test_records_of_the_future_tell_of_a_wrong_clock(
    kafka: str, topics: Topics, tmp_path: Path
) -> None:
    now_ms = int(SystemClock().wall() * 1000)
    ahead, level = await topics(partitions=3), await topics(partitions=3)
    async with producing(kafka) as producer:
        for topic, at_ms in ((ahead, now_ms + 600_000), (level, now_ms)):
            await producer.send_and_wait(topic, b"x", partition=1, timestamp_ms=at_ms)

    found = await asyncio.to_thread(doctor, tmp_path, Names(kafka, ahead, level))

    assert "warn" == found["topic.clock", ahead]["verdict"]
    assert "ok" == found["topic.clock", level]["verdict"]


def scram(work: Path, user: str = USER, password: str = PASSWORD) -> dict[str, str]:
    replace(work / "password", password.encode())
    file = str(work / "password")
    return {"mechanism": "SCRAM-SHA-512", "username": user, "password_file": file}


def test_what_a_user_may_not_do_is_named(secured: Secured, tmp_path: Path) -> None:
    names = secured.topics()
    secured.allow(names.events, USER, DESCRIBE)
    secured.allow(names.dead_letters, ROTATED, DESCRIBE, WRITE)
    section = secured.kafka("SASL", names, sasl=scram(tmp_path))

    found = doctor(tmp_path, names, **section)

    assert "ok" == of_check(found, "kafka.sasl")["verdict"]
    assert "ok" == of_check(found, "kafka.tls")["verdict"]
    assert "TLSv1.3" in of_check(found, "kafka.tls")["found"]
    assert "ok" == found["acl.describe", names.events]["verdict"]
    assert "fail" == found["acl.write", names.events]["verdict"]
    assert "--operation Write" in found["acl.write", names.events]["advice"]
    assert "warn" == found["acl.describe_configs", names.events]["verdict"]
    assert "fail" == found["acl.describe", names.dead_letters]["verdict"]


def test_who_may_write_has_all_that_is_needed(secured: Secured, tmp_path: Path) -> None:
    names = secured.topics()
    for topic in (names.events, names.dead_letters):
        secured.allow(topic, USER, DESCRIBE, WRITE)
    section = secured.kafka("SASL", names, sasl=scram(tmp_path))

    found = doctor(tmp_path, names, **section)

    assert not [key for key, one in found.items() if one["verdict"] == "fail"]
    assert "ok" == found["acl.write", names.events]["verdict"]


@pytest.mark.parametrize(
    ("listener", "tls", "said"),
    [
        ("TLS", {"ca_file": "stranger.pem"}, "wrong CA"),
        ("EXPIRED", {}, "expired"),
        ("OTHER", {}, "wrong host name"),
        ("MTLS", {}, "the broker refused ours"),
        ("TLS", {"enabled": False}, "127.0.0.1"),
    ],
)
def test_each_way_in_which_tls_fails_is_told_apart(
    secured: Secured, tmp_path: Path, listener: str, tls: dict[str, Any], said: str
) -> None:
    check = "kafka.bootstrap" if tls.get("enabled") is False else "kafka.tls"
    names = Names(secured.plain, "events", "dead-letters")
    files = {key: str(secured.run / value) for key, value in tls.items() if key == "ca_file"}
    section = secured.kafka(listener, names, tls=tls | files)
    if section["tls"].get("enabled") is False:
        section["tls"].pop("ca_file")

    found = of_check(doctor(tmp_path, names, **section), check)

    assert "fail" == found["verdict"], found
    assert said in found["found"]
    assert found["advice"]


def test_a_wrong_password_is_no_fault_of_tls(secured: Secured, tmp_path: Path) -> None:
    names = Names(secured.plain, "events", "dead-letters")
    section = secured.kafka("SASL", names, sasl=scram(tmp_path, password=WRONG))

    found = doctor(tmp_path, names, **section)

    assert "ok" == of_check(found, "kafka.bootstrap")["verdict"]
    assert "ok" == of_check(found, "kafka.tls")["verdict"]
    assert "fail" == of_check(found, "kafka.sasl")["verdict"]
    assert WRONG not in json.dumps(list(found.values()))


def test_who_gets_no_producer_id_is_told(secured: Secured, tmp_path: Path) -> None:
    """Where nothing is granted, and idempotent writes are denied, no producer can be."""
    names = secured.topics()
    secured.shut_out(NOBODY)
    for topic in (names.events, names.dead_letters):
        secured.allow(topic, NOBODY, DESCRIBE)
    section = secured.kafka("SASL", names, sasl=scram(tmp_path, NOBODY))

    found = of_check(doctor(tmp_path, names, **section), "acl.idempotent_write")

    assert ("fail", True) == (found["verdict"], "ClusterAuthorizationFailed" in found["found"])
