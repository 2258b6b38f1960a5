"""A reboot may give the same disk another device number: its files are the same all the same."""

from pathlib import Path

from agent.demo.broker import EmbeddedKafka
from tests import loop_device
from tests.running import Agent, append, assert_each_once, feedback, mock_topics


def test_nothing_goes_again_when_the_disk_has_another_device_number(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """Live, rotated and half-read files are read on where they were."""
    disk, other = (loop_device.made(tmp_path / name) for name in ("disk", "other"))
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        with loop_device.mounted(disk, agent.root):
            before = agent.root.stat().st_dev
            append(agent.root / "acme/a.jsonl.1", map(feedback, range(50)))
            append(agent.root / "acme/a.jsonl", map(feedback, range(50, 100)))
            agent.start()
            agent.until_delivered(100)
            assert 0 == agent.stop()
            append(agent.root / "acme/a.jsonl", map(feedback, range(100, 150)))
            (agent.root / "acme/a.jsonl").rename(agent.root / "acme/a.jsonl.0")
        with loop_device.attached(other), loop_device.mounted(disk, agent.root):
            assert before != agent.root.stat().st_dev
            append(agent.root / "acme/a.jsonl", map(feedback, range(150, 200)))
            agent.start()
            agent.until_delivered(100)
            assert 0 == agent.stop()
            assert [] == agent.log_entries("generation.begun")
            assert_each_once(agent, 200)
