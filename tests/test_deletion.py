"""Deleting shipped files: only what Kafka has, only what was meant, only where it is told to."""

import gzip
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.deletion import childless, deletable, rotated
from agent.core.discovery import Seen
from agent.core.identity import Birth
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from agent.harvester import first_generation
from agent.opener import birth_of
from agent.removal import SUFFIX, remove_directory, remove_file
from tests.running import Agent, append, assert_each_once, feedback, mock_topics

INCLUDE = ("*.jsonl", "*.jsonl.*", "*.jsonl-*")
LINES = [feedback(n) for n in range(50)]


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def born(path: Path) -> Birth:
    fd = os.open(path, os.O_RDONLY)
    try:
        return birth_of(fd)
    finally:
        os.close(fd)


def aged(path: Path, age_s: float = 100.0) -> None:
    os.utime(path, (time.time() - age_s,) * 2)  # noqa: TID251  a file's time is the wall clock's


# ---- which


@pytest.mark.parametrize(
    ("name", "is_rotated"),
    [
        ("a.jsonl", False),
        ("a-20260101.jsonl", False),
        ("a.b.jsonl", False),
        ("a.jsonl.1", True),
        ("a.jsonl-20260101", True),
        ("a.jsonl.1.gz", True),
    ],
)
def test_a_rotated_file_is_known_by_its_name(name: str, is_rotated: bool) -> None:
    """A file under the name that apps write to is never deleted, however long it rests."""
    assert is_rotated == rotated(name, INCLUDE)


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0, 1e6), st.floats(1, 1e6))
def test_only_what_is_settled_to_its_end_and_old_enough_is_deletable(
    watermark: int, size: int, age_s: float, after_s: float
) -> None:
    row = first_generation(Birth(1, 1, 0, 1), "a.jsonl.1", "acme")
    row = type(row)(
        **{
            **{name: getattr(row, name) for name in row.__struct_fields__},
            "watermark": watermark,
            "anchor": type(row.anchor)(watermark, b""),
        }
    )
    seen = Seen("acme/a.jsonl.1", "acme", 1, size, int((1e9 - age_s) * 1e9))

    may = deletable(seen, row, INCLUDE, wall_s=1e9, after_s=after_s)

    assert not may or (watermark == size and age_s >= after_s * 0.999)
    assert may or watermark != size or age_s <= after_s * 1.001


def test_only_a_directory_in_which_nothing_was_met_is_childless() -> None:
    assert {"b", "a/c"} == childless(["", "a", "b", "a/c", "d"], ["d/x.jsonl", "y.jsonl"])


# ---- how


def test_what_lies_at_the_name_by_now_is_not_deleted(tmp_path: Path, root_fd: int) -> None:
    """Rotation renames files at any moment: the name alone says nothing."""
    meant, other = tmp_path / "a.jsonl.1", tmp_path / "a.jsonl"
    meant.write_bytes(b"shipped\n")
    other.write_bytes(b"newer!!\n")
    birth = born(meant)
    meant.rename(tmp_path / "a.jsonl.2")
    other.rename(meant)

    assert remove_file(root_fd, "a.jsonl.1", birth, 8) is not None

    assert b"newer!!\n" == meant.read_bytes()
    assert ["a.jsonl.1", "a.jsonl.2"] == sorted(p.name for p in tmp_path.iterdir())


def test_a_file_that_grew_is_not_deleted(tmp_path: Path, root_fd: int) -> None:
    path = tmp_path / "a.jsonl.1"
    path.write_bytes(b"shipped\nnot shipped\n")

    assert remove_file(root_fd, "a.jsonl.1", born(path), 8) is not None
    assert path.exists()


def test_a_file_with_another_name_is_not_deleted(tmp_path: Path, root_fd: int) -> None:
    """The space would not come back, and the other name may be somebody's."""
    path = tmp_path / "a.jsonl.1"
    path.write_bytes(b"shipped\n")
    (tmp_path / "b").hardlink_to(path)

    assert remove_file(root_fd, "a.jsonl.1", born(path), 8) is not None
    assert path.exists()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, root_fd: int, kind: str) -> None:
    path, target = tmp_path / "x.jsonl.1", tmp_path / "target"
    target.write_bytes(b"shipped\n")
    birth = born(target)
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    assert remove_file(root_fd, "x.jsonl.1", birth, 8) is not None

    assert {"target", "x.jsonl.1"} == {p.name for p in tmp_path.iterdir()}
    assert b"shipped\n" == target.read_bytes()


def test_a_linked_directory_leads_nowhere(tmp_path: Path, root_fd: int) -> None:
    """A client that swaps its directory for a link must not have files elsewhere deleted."""
    outside = tmp_path / "outside"
    outside.mkdir()
    path = outside / "a.jsonl.1"
    path.write_bytes(b"shipped\n")
    (tmp_path / "acme").symlink_to(outside)

    assert remove_file(root_fd, "acme/a.jsonl.1", born(path), 8) is not None
    assert path.exists()


def test_a_directory_goes_only_when_it_is_empty_and_old(tmp_path: Path, root_fd: int) -> None:
    for name in ("full", "young", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/x").touch()
    aged(tmp_path / "full")
    aged(tmp_path / "old")
    before_s = time.time() - 50  # noqa: TID251

    gone = [remove_directory(root_fd, name, before_s) for name in ("full", "young", "old", "never")]

    assert [False, False, True, False] == gone
    assert {"full", "young"} == {p.name for p in tmp_path.iterdir()}


SWAP = """
import os
for n in range(10**9):
    with open("live", "wb") as file:
        file.write(b"newer %d" % n)
    os.rename("live", "a.jsonl.1")
    if n == 100:
        open("begun", "w")
"""


def test_no_race_with_a_rotation_deletes_a_newer_file(tmp_path: Path, root_fd: int) -> None:
    """An app renames newer files over the name all the while. One that came between stays aside,
    where the next scan meets it."""
    meant = tmp_path / "meant"
    meant.write_bytes(b"shipped\n")
    birth = born(meant)
    with Popen([sys.executable, "-c", SWAP], cwd=tmp_path) as racer:
        try:
            while not (tmp_path / "begun").exists():
                time.sleep(0.01)
            refused = []
            for _ in range(3000):
                refused.append(remove_file(root_fd, "a.jsonl.1", birth, 8))
                aside = tmp_path / f".a.jsonl.1{SUFFIX}"
                if aside.exists():
                    assert aside.read_bytes().startswith(b"newer ")
                    aside.unlink()
        finally:
            racer.kill()

    assert None not in refused


# ---- when, in a running agent


def shipping(work: Path, topics: Topics, **sections: Any) -> Agent:
    source = {"scan_s": 0.1, "delete_after_s": 50}
    return Agent(work, topics, source=source, **sections)


def test_a_rotated_file_goes_once_kafka_has_all_of_it(mock: Topics, tmp_path: Path) -> None:
    """The live one stays, a young one and a torn one too; a compressed one and the empty directory
    go. All that goes stands in the audit log, with who wanted it."""
    with shipping(tmp_path, mock) as agent:
        names = ("acme/a.jsonl", "acme/a.jsonl.1", "acme/young.jsonl.1", "torn/t.jsonl.1")
        for number, name in enumerate((*names, "gone/g.jsonl.1")):
            append(agent.root / name, [feedback(1000 * number + n) for n in range(50)])
        with (agent.root / "torn/t.jsonl.1").open("ab") as torn:
            torn.write(b"{")
        packed = "acme/a.jsonl.2.gz"
        (agent.root / packed).write_bytes(gzip.compress(feedback(9000) + b"\n"))
        for name in ("acme/a.jsonl", "acme/a.jsonl.1", packed, "torn/t.jsonl.1", "gone/g.jsonl.1"):
            aged(agent.root / name)
        gone = [agent.root / name for name in ("acme/a.jsonl.1", packed, "gone/g.jsonl.1")]
        gone_bytes = sum(path.stat().st_size for path in gone)
        agent.start()
        agent.until(lambda: agent.metric("deleted_files_total") == 3, "three files deleted")
        agent.until(lambda: agent.metric("deleted_bytes_total") == gone_bytes, "their bytes")
        aged(agent.root / "gone")
        agent.until(lambda: not (agent.root / "gone").exists(), "an empty directory deleted")

        left = {str(p.relative_to(agent.root)) for p in agent.root.rglob("*") if p.is_file()}
        assert {"acme/a.jsonl", "acme/young.jsonl.1", "torn/t.jsonl.1"} == left
        assert 251 == agent.metric("events_delivered_total")
        deleted = {("acme/a.jsonl.1", "acme"), (packed, "acme"), ("gone/g.jsonl.1", "gone")}
        assert deleted == {(e["path"], e["client"]) for e in agent.log_entries("file.deleted")}
        assert ["gone"] == [e["path"] for e in agent.log_entries("directory.deleted")]
        assert 0 == agent.stop()
        audited = [
            json.loads(line) for line in (agent.state_dir / "audit.jsonl").read_text().splitlines()
        ]
        files = [e for e in audited if e["event"] == "file.deleted"]
        assert deleted == {(e["path"], e["client"]) for e in files}
        assert {("source.delete_after_s", "agent")} == {(e["why"], e["by"]) for e in files}
        assert [("gone", "agent")] == [
            (e["path"], e["by"]) for e in audited if e["event"] == "directory.deleted"
        ]


def test_what_is_only_spooled_is_not_deleted(
    mock: Topics, embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """The node's disk may die with the spool on it: the file is the other copy."""
    breaker, kafka = {"ack_age_max_s": 1, "cooldown_s": 1}, {"start_s": 1}
    with shipping(tmp_path, mock, breaker=breaker, kafka=kafka) as agent:
        embedded.broker_down()
        path = agent.root / "acme/a.jsonl.1"
        append(path, LINES)
        aged(path)
        agent.start()
        agent.until(lambda: agent.metric("spool_records") == len(LINES), "lines in the spool")
        time.sleep(1.0)
        assert path.exists()

        embedded.broker_up()
        agent.until(lambda: not path.exists(), "deleted")

        assert len(LINES) <= agent.metric("events_delivered_total")
        assert 0 == agent.stop()


def test_by_default_nothing_is_deleted(mock: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, mock, source={"scan_s": 0.1}) as agent:
        append(agent.root / "acme/a.jsonl.1", LINES)
        aged(agent.root / "acme/a.jsonl.1", 1e8)
        agent.start()
        agent.until_delivered(len(LINES))
        time.sleep(1.0)
        assert 0 == agent.stop()
        assert_each_once(agent, len(LINES))


def test_a_directory_that_may_not_be_written_to_is_said_once(mock: Topics, tmp_path: Path) -> None:
    """The mount is read-only in the manifests: whoever turns this on has to change that too."""
    source = {"scan_s": 0.1, "delete_after_s": 50}
    with Agent(tmp_path, mock, obedient=True, source=source) as agent:
        path = agent.root / "acme/a.jsonl.1"
        append(path, LINES)
        aged(path)
        path.parent.chmod(0o555)
        agent.start()
        agent.until_delivered(len(LINES))
        agent.until(lambda: bool(agent.log_entries("file.not_deleted")), "said")
        time.sleep(1.0)
        assert ["permission"] == [e["reason"] for e in agent.log_entries("file.not_deleted")]
        path.parent.chmod(0o755)
        assert 0 == agent.stop()
