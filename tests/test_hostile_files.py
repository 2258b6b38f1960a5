"""Whatever pods put below the root: nothing foreign is read, nothing is forged, nobody is silenced.

The directory is written by apps that the agent must not trust; each of these is something one of
them could do.
"""

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiokafka import ConsumerRecord
from prometheus_client.parser import text_string_to_metric_families

from agent.core.discovery import printable
from agent.core.places import parse_place
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from tests.running import Agent, append, event_id, feedback, mock_topics, records

NAMES = [
    b"line\nbreak",
    b'{"event":"agent.stopped"}\n{"event":"forged"}',
    b"\x1b[2J\x1b]0;title\x07",
    b"\xc2\x9b31m",  # CSI as one character
    b"\xff\xfe\xc3",
    "\u202etxet\u200f\u2028\u2029\u0085".encode(),
    b"..",
    b"...",
    b"%s%n%(path)s",
    b"{0}{path!r}{",
    b"$(reboot)`'\"",
    b" -rf ",
    b"\\x0a\\",
    b"\r\t\x7f",
    b"n" * 240,
]
"""Of directories, so of clients, and with a suffix of files."""
DEEP_BYTES = 4096
"""PATH_MAX: longer paths exist, but no call takes them whole."""
MARKER = "of-somebody-else"
SCAN_S = 0.1


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


@contextmanager
def below(root: Path, *directories: bytes) -> Iterator[int]:
    """Make ``directories`` in each other and open the last; no path is ever too long for it."""
    fd = os.open(root, os.O_RDONLY)
    try:
        for name in directories:
            if name not in (os.fsencode(entry) for entry in os.listdir(fd)):  # noqa: PTH208
                os.mkdir(name, dir_fd=fd)
            deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


def write(directory: int, name: bytes, *lines: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644, dir_fd=directory)
    with os.fdopen(fd, "ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


def hostile_tree(root: Path) -> list[bytes]:
    """Make a client and a file of every name, and one at the end of a very long path. Return the
    clients, number n of whom wrote the event n, and a link that is worth a word in the log."""
    clients = []
    for number, name in enumerate(NAMES):
        client = name if name not in {b".", b".."} else name + b"."
        with below(root, client + b"%d" % number) as directory:
            write(directory, name + b".jsonl", feedback(number))
            os.symlink("/etc/shadow", b"l" + name[:200] + b".jsonl", dir_fd=directory)
        clients.append(client + b"%d" % number)
    long = [b"d" * 255] * 16
    assert len(b"/".join(long)) + 255 > DEEP_BYTES
    with below(root, *long) as directory:
        write(directory, b"x" * 249 + b".jsonl", feedback(len(NAMES)))
    return [*clients, long[0]]


def client_of(record: ConsumerRecord) -> str:
    return str(json.loads(record.value)["metadata"]["client"])


def assert_nothing_forged(agent: Agent) -> None:
    lines = agent.log_text().split("\n")
    assert "" == lines.pop()
    assert all(line.isprintable() for line in lines)
    assert not any("forged" == json.loads(line)["event"] for line in lines)


def test_no_name_forges_a_line_or_a_client_or_goes_unread(mock: Topics, tmp_path: Path) -> None:
    """Logs, metrics, status and headers; every file is read, whatever it is called."""
    with Agent(tmp_path, mock, source={"scan_s": SCAN_S}) as agent:
        clients = hostile_tree(agent.root)
        agent.start()
        agent.until_delivered(len(clients))
        status, metrics = agent.get("/status"), agent.get("/metrics")
        assert 0 == agent.stop()
        assert_nothing_forged(agent)
        assert agent.log_entries("file.skipped")

    assert all(family.name for family in text_string_to_metric_families(metrics.body))
    assert metrics.body.replace("\n", "").isprintable()
    paths = {file["path"] for file in json.loads(status.body)["files"]}
    assert len(clients) == len(paths)
    assert status.body.isascii() or status.body.isprintable()
    arrived = {record.key: record for record in records(mock, mock.events)}
    assert len(clients) == len(arrived)
    for number, client in enumerate(clients):
        record = arrived[event_id(number).encode()]
        assert printable(os.fsdecode(client)) == client_of(record)
        assert all(value.decode().isprintable() for _, value in record.headers)
        assert parse_place(dict(record.headers)["source"]) is not None


def test_no_name_reaches_a_terminal_as_it_is(mock: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, mock, log={"format": "console"}, http={"port": 0}) as agent:
        clients = hostile_tree(agent.root)
        agent.launch()
        agent.until(lambda: "file.skipped" in agent.log_text(), "file.skipped")
        agent.until(
            lambda: len(clients) == len(records(mock, mock.events)), "all of them", every_s=0.2
        )
        assert 0 == agent.stop()
        said = agent.log_text()

    assert said.replace("\n", "").isprintable()
    assert all(line[:2].isdigit() for line in said.split("\n")[:-1]), "a line that is not ours"


def make_kinds(directory: Path, outside: Path) -> set[str]:
    """Put everything that is no file of one's own into ``directory``; return the names."""
    directory.mkdir()
    os.mkfifo(directory / "fifo.jsonl")
    here = os.open(".", os.O_RDONLY)
    os.chdir(directory)  # the address of a Unix socket is 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket.jsonl")
    finally:
        os.fchdir(here)
        os.close(here)
    (directory / "directory.jsonl").mkdir()
    (directory / "shadow.jsonl").symlink_to("/etc/shadow")
    (directory / "linked").symlink_to(outside, target_is_directory=True)
    (directory / "hard.jsonl").hardlink_to(outside / "secret.jsonl")
    names = {"fifo.jsonl", "socket.jsonl", "shadow.jsonl", "linked", "hard.jsonl"}
    try:
        os.mknod(directory / "device.jsonl", 0o20644, os.makedev(1, 5))  # /dev/zero never ends
    except PermissionError:
        return names
    return names | {"device.jsonl"}


def test_no_foreign_byte_is_sent_and_nobody_is_silenced(mock: Topics, tmp_path: Path) -> None:
    """A link that is made to a file already followed changes nothing for its writer; each of them
    is said once, however often it is scanned."""
    outside = tmp_path / "outside"
    append(outside / "secret.jsonl", [feedback(900, comment=MARKER)])
    with Agent(tmp_path, mock, source={"scan_s": SCAN_S}) as agent:
        append(agent.root / "victim/a.jsonl", [feedback(0)])
        names = make_kinds(agent.root / "aggressor", outside)
        agent.start()
        agent.until_delivered(1)
        (agent.root / "aggressor/later.jsonl").hardlink_to(agent.root / "victim/a.jsonl")
        names |= {"later.jsonl"}
        agent.until(lambda: "later.jsonl" in agent.log_text(), "later.jsonl is said")
        for n in range(1, 4):
            append(agent.root / "victim/a.jsonl", [feedback(n)])
            agent.until_delivered(n + 1)
        append(agent.root / "aggressor/own.jsonl", [feedback(4)])
        agent.until_delivered(5)
        assert 0 == agent.stop()
        said = agent.log_entries("file.skipped", "file.refused")
        assert MARKER not in agent.log_text()

    assert dict.fromkeys((f"aggressor/{name}" for name in names), 1) == Counter(
        entry["path"] for entry in said
    )
    arrived = records(mock, mock.events)
    assert [] == records(mock, mock.dead_letters)
    assert {event_id(n).encode() for n in range(5)} == {record.key for record in arrived}
    assert 5 == len(arrived)
    clients = {record.key: client_of(record) for record in arrived}
    assert "aggressor" == clients.pop(event_id(4).encode())
    assert {"victim"} == {*clients.values()}


def test_who_is_slowed_with_many_files_leaves_descriptors_for_others(
    mock: Topics, tmp_path: Path
) -> None:
    """Its backlog lasts for hours, and none of its files is ever read to its end."""
    limits = {
        "source": {"scan_s": SCAN_S, "descriptors_max": 8},
        "quota": {"client": {"bytes_per_s": 1024}},
    }
    with Agent(tmp_path, mock, **limits) as agent:  # type: ignore[arg-type]  # of all sections
        for n in range(20):
            many = (feedback(1000 + n, comment="x" * 1000),) * 500
            append(agent.root / f"aggressor/{n}.jsonl", many)
        agent.start()
        agent.until(lambda: bool(agent.log_entries("client.slowed")), "client.slowed")
        for n in range(3):
            append(agent.root / f"victim{n}/a.jsonl", [feedback(n)])
        expected = {event_id(n).encode() for n in range(3)}
        agent.until(
            lambda: expected <= {record.key for record in records(mock, mock.events)},
            "the victims' lines",
            every_s=0.2,
        )
        assert 0 == agent.stop()
