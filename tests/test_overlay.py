"""Files on an overlayfs, as a container's own file system is one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.demo.broker import EmbeddedKafka
from tests.overlay import Overlay, mounted
from tests.running import Agent, append, event_id, feedback, mock_topics, records

ROOT = Path(__file__).parent.parent
OPEN_ACROSS_A_COPY_UP = """
import os, sys
from agent.opener import Descriptor, open_beneath

root = os.open(sys.argv[1], os.O_RDONLY)
before = open_beneath(root, "acme/a.jsonl")
with open(sys.argv[1] + "/acme/a.jsonl", "ab") as file:
    file.write(b"more\\n")
after = open_beneath(root, "acme/a.jsonl")
assert isinstance(before, Descriptor) and isinstance(after, Descriptor)
print(before.birth.inode == after.birth.inode, before.birth == after.birth)
print(before.size(), before.pread(100, 0), after.size())
"""


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    with mounted(tmp_path / "overlay") as overlay:
        yield overlay


def agent_on(overlay: Overlay, tmp_path: Path, cluster: EmbeddedKafka) -> Agent:
    source = {"root": str(overlay.merged), "scan_s": 0.2}
    agent = Agent(tmp_path, mock_topics(cluster), source=source)
    agent._prefix = overlay.prefix
    return agent


def delivered(agent: Agent) -> list[bytes]:
    return sorted(record.key for record in records(agent.topics, agent.topics.events))


def ids(count: int) -> list[bytes]:
    return [event_id(n).encode() for n in range(count)]


def test_a_copy_up_changes_the_birth_and_an_open_descriptor_follows_it(overlay: Overlay) -> None:
    """What the kernel does (Linux 4.19 and later): read(2) on the old descriptor goes to the copy.
    The inode number stays, the birth time is the copy's: one that is opened anew is another."""
    append(overlay.lower / "acme/a.jsonl", [b"mine"])

    said = overlay.run(
        "env", f"PYTHONPATH={ROOT}", sys.executable, "-c", OPEN_ACROSS_A_COPY_UP,
        str(overlay.merged),
    )  # fmt: skip

    assert [b"True False", b"10 b'mine\\nmore\\n' 10"] == said.splitlines()


def test_files_on_an_overlay_are_followed_across_a_copy_up(
    overlay: Overlay, embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """A file of the lower layer is open, then written to through the overlay, again and again;
    a new file comes in the upper layer."""
    append(overlay.lower / "acme/a.jsonl", [feedback(0), feedback(1)])
    with agent_on(overlay, tmp_path, embedded) as agent:
        agent.start()
        agent.until_delivered(2)
        for n in range(2, 6):
            overlay.append("acme/a.jsonl", feedback(n) + b"\n")
            agent.until_delivered(n + 1)
        overlay.append("acme/b.jsonl", feedback(6) + b"\n")
        agent.until_delivered(7)
        assert 0 == agent.stop()

        assert ids(7) == delivered(agent)


def test_a_copy_up_while_the_agent_is_down_loses_nothing(
    overlay: Overlay, embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """It looks like a new file where the old one was, with the old one's content: a copy of what
    is gone, read on where that was settled."""
    append(overlay.lower / "acme/a.jsonl", [feedback(0), feedback(1)])
    with agent_on(overlay, tmp_path, embedded) as agent:
        agent.start()
        agent.until_delivered(2)
        assert 0 == agent.stop()
        overlay.append("acme/a.jsonl", feedback(2) + b"\n")
        agent.start()
        agent.until_delivered(1)
        assert 0 == agent.stop()

        assert ids(3) == sorted(set(delivered(agent)))
