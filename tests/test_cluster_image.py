"""The image is built, and run as the DaemonSet runs it, against a real Kafka."""

import asyncio
import os
import re
import shutil
import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from agent.demo.app import defect
from agent.demo.oracle import Arrival, Arrivals, Verdict, compare, sources_below
from tests import real_kafka
from tests.containers import Container, Engine, await_metric, await_settled, engine, metric

__all__ = ["engine"]

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"localhost/feedback-agent:{VERSION}"
AGENT, APP = 10001, 10002
LINES = int(os.environ.get("FEEDBACK_AGENT_IMAGE_LINES", "100000"))
KILLED_WITHIN_S = 30.0
CAUGHT_UP_WITHIN_S = 300.0

Say = Callable[[str, object], None]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def built(engine: Engine) -> str:
    """Return what the build said of the image's size. It fails where that is above 90 MB."""
    return engine.build()


def test_it_says_how_large_it_is(built: str, record_property: Say) -> None:
    record_property("image", built.removeprefix("image: "))
    assert re.search(r" \d+ MB compressed, \d+ MB unpacked$", built)


def test_it_is_what_a_cluster_expects(engine: Engine, built: str) -> None:
    config = engine.config(IMAGE)
    assert "10001:10001" == config["User"]
    assert (["feedback-agent"], ["run"]) == (config["Entrypoint"], config["Cmd"])
    assert "SIGTERM" == config["StopSignal"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    assert ("feedback-agent", "Apache-2.0", VERSION) == (
        labels["title"],
        labels["licenses"],
        labels["version"],
    )
    assert re.fullmatch("[0-9a-f]{40}|unknown", labels["revision"])
    variables = dict(entry.split("=", 1) for entry in config["Env"])
    assert "4000000" == variables["MALLOC_MMAP_THRESHOLD_"]
    assert "64000000" == variables["MALLOC_TRIM_THRESHOLD_"]


def test_there_is_no_compiler_and_nothing_that_installs(engine: Engine, built: str) -> None:
    script = "import pip"
    look = f"command -v cc gcc g++ clang make pip; python -c '{script}' 2>&1 | tail -1"
    said = engine.once(IMAGE, "sh", "-c", look)
    assert "ModuleNotFoundError: No module named 'pip'" == said.strip()


def test_every_key_of_the_configuration_works_in_it(engine: Engine, built: str) -> None:
    """An extra that is not there would end the agent with a message at its start."""
    packages = "cramjam, deflate, grpc, jsonschema_rs, opentelemetry.proto, re2"
    assert "" == engine.once(IMAGE, "python", "-c", f"import {packages}")


def test_its_memory_has_an_end(engine: Engine, built: str) -> None:
    """Else what it stays below here would say nothing of a node."""
    look = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null"
    assert str(256 << 20) in engine.once(IMAGE, "sh", "-c", f"{look}; true").split()


def test_it_has_no_right_at_all(engine: Engine, built: str) -> None:
    look = "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; touch /x 2>&1"
    said = engine.once(IMAGE, "sh", "-c", f"{look} || true").split()
    none = "0000000000000000"
    expected = ["10001", "CapEff:", none, "CapBnd:", none, "NoNewPrivs:", "1", "Seccomp:", "2"]
    assert expected == said[:9]
    assert "Read-only file system" in " ".join(said[9:])


# ---- on a node


class Node:
    """The directories of one, as node-setup makes them, and its containers."""

    def __init__(self, engine: Engine, work: Path, bootstrap: str, topics: tuple[str, str]) -> None:
        self.engine = engine
        self.feedback, self.state = work / "feedback", work / "state"
        self.bootstrap, self.topics = bootstrap, topics
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        for directory in (self.feedback, self.state):
            directory.mkdir()  # as the kubelet does (DirectoryOrCreate)
        # the parents of a temporary directory are root's alone
        for parent in (work, *work.parents[:-2]):
            parent.chmod(parent.stat().st_mode | 0o011)

    def volumes(self, mode: str = "ro") -> list[str]:
        return [
            f"--volume={self.feedback}:/var/lib/feedback:{mode}",
            f"--volume={self.state}:/var/lib/feedback-agent:rw",
        ]

    def set_up(self, *environment: str) -> None:
        """Run node-setup.sh as its DaemonSet does."""
        rights = ["--user=0:10001", "--cap-add=CHOWN", "--cap-add=FOWNER"]
        setup = f"--volume={ROOT}/k8s/node-setup:/setup:ro"
        options = [*rights, setup, *self.volumes("rw"), *environment]
        self.engine.once(IMAGE, "sh", "/setup/node-setup.sh", options=options)

    def agent(self, *options: str, user: str = "", config: str = "base") -> Container:
        events, dead_letters = self.topics
        of_user = [f"--user={user}"] if user else []
        base = f"--volume={ROOT}/k8s/{config}/config.yaml:/etc/feedback-agent/config.yaml:ro"
        return Container(
            self.engine,
            f"agent-{uuid4().hex}",
            IMAGE,
            options=[base, *self.volumes(), *of_user, *options],
            environment={
                "FEEDBACK_AGENT_AGENT__NODE": "node-1",
                "FEEDBACK_AGENT_AGENT__START_JITTER_S": "0",
                "FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
                "FEEDBACK_AGENT_KAFKA__TOPIC": events,
                "FEEDBACK_AGENT_DLQ__TOPIC": dead_letters,
                "FEEDBACK_AGENT_HTTP__PORT": str(self.port),
            },
        )

    def directory(self, namespace: str, pod: str) -> Path:
        """Make the directory of a pod as the kubelet does for ``subPathExpr``.

        Those above have its umask; the last one gets the mode of the volume (doSafeMakeDir in
        k8s.io/kubernetes/pkg/volume/util/subpath/subpath_linux.go).
        """
        made = self.feedback / namespace / pod
        made.parent.mkdir(mode=0o750, exist_ok=True)
        made.mkdir()
        made.chmod(self.feedback.stat().st_mode & 0o7777)
        return made

    def app(self, directory: Path, lines: int) -> Container:
        """An app of another user, whose group is the agent's; it sees its own directory alone."""
        arguments = ["--root=/var/lib/feedback", "--client=checkout", f"--lines={lines}"]
        return Container(
            self.engine,
            f"app-{uuid4().hex}",
            IMAGE,
            *["-m", "agent.demo.app", *arguments, "--rate=5000", "--ledger=/tmp/ledger"],
            options=[
                "--entrypoint=python",
                f"--user={APP}:{APP}",
                f"--group-add={AGENT}",
                f"--volume={directory}:/var/lib/feedback:rw",
            ],
        )

    def verdict(self) -> Verdict:
        arrivals = Arrivals()
        for dead, topic in enumerate(self.topics):
            for r in asyncio.run(real_kafka.read_all(self.bootstrap, topic, timeout_s=120)):
                row = (r.partition, r.key, r.value, r.headers, r.timestamp, 0)
                arrivals.add(Arrival(bool(dead), *row))
        return compare(sources_below(self.feedback), arrivals, defect)


@pytest.fixture
def node(engine: Engine, built: str, kafka: str, tmp_path: Path) -> Iterator[Node]:
    names = (f"test-{uuid4().hex}", f"test-{uuid4().hex}")
    for name in names:
        asyncio.run(real_kafka.create_topic(kafka, name, 12))
    yield Node(engine, tmp_path, kafka, names)
    shutil.rmtree(tmp_path / "feedback")


@pytest.mark.kafka
def test_killed_and_started_again_on_its_state_it_loses_nothing(
    node: Node, record_property: Say
) -> None:
    """And the next line is acknowledged within 30 s of the SIGKILL, most of it the new start."""
    node.set_up()
    app, agent = node.app(node.directory("shop", "checkout-7d9f"), LINES), node.agent()
    try:
        agent.start()
        app.start()
        await_metric(node.port, "events_delivered_total", LINES / 10, CAUGHT_UP_WITHIN_S)
        killed_s = time.monotonic()
        agent.kill()
        # counters begin at 0: the first one above is of the new life
        agent.start()
        await_metric(node.port, "events_delivered_total", 0, KILLED_WITHIN_S)
        took_s = time.monotonic() - killed_s
        assert 0 == app.ended(CAUGHT_UP_WITHIN_S)
        # a stop may leave some to the next start, in the spool
        await_settled(node.port, CAUGHT_UP_WITHIN_S)
        resident = metric(node.port, "process_resident_memory_bytes") or 0
        assert "" == agent.execute(*node.engine.config(IMAGE)["Healthcheck"]["Test"][1:])
        assert 0 == agent.stop(), agent.logs()
    finally:
        agent.remove()
        app.remove()
    verdict = node.verdict()
    record_property(
        "image",
        f"{verdict.lines} lines, {verdict.lost} lost, {verdict.copies} twice, "
        f"{resident / 1e6:.0f} MB resident, "
        f"{took_s:.1f} s from SIGKILL to the next acknowledged line",
    )
    assert verdict.ok, verdict.examples
    assert LINES == verdict.lines
    assert took_s < KILLED_WITHIN_S


@pytest.mark.kafka
def test_a_sidecar_reads_to_the_end_of_what_the_app_wrote_last(node: Node) -> None:
    """It is told to stop as soon as the app ended; what it leaves goes with the pod."""
    node.set_up()
    directory = node.directory("", "pod")
    app, agent = node.app(directory, LINES // 10), node.agent(config="overlays/sidecar")
    try:
        agent.start()
        await_metric(node.port, "process_start_time_seconds", 0, KILLED_WITHIN_S)
        app.start()
        assert 0 == app.ended(CAUGHT_UP_WITHIN_S)
        assert 0 == agent.stop(), agent.logs()
        log = agent.logs()
    finally:
        agent.remove()
        app.remove()
    verdict = node.verdict()
    assert verdict.ok, (verdict.examples, log[-2000:])
    assert LINES // 10 == verdict.lines


@pytest.mark.kafka
def test_root_with_one_capability_reads_what_the_group_may_not(node: Node) -> None:
    """The component read-any: where files of apps cannot have the agent's group."""
    node.set_up("--env=STATE_OWNER=0:0")
    private = node.directory("shop", "checkout-1")
    os.chown(private, APP, APP)
    private.chmod(0o700)
    (private / "a.jsonl").write_text(
        '{"type":"system_health","service_name":"a","status":"healthy"}\n'
    )
    os.chown(private / "a.jsonl", APP, APP)
    (private / "a.jsonl").chmod(0o600)
    agent = node.agent("--cap-add=DAC_READ_SEARCH", user="0:0")
    try:
        agent.start()
        await_metric(node.port, "events_delivered_total", 0, KILLED_WITHIN_S)
        assert 0 == agent.stop(), agent.logs()
    finally:
        agent.remove()


@pytest.mark.kafka
def test_directories_that_nobody_set_up_are_said_and_not_passed_over(node: Node) -> None:
    """What the kubelet makes is root's: a metric, the log and ``doctor`` say so."""
    node.set_up()
    directory = node.feedback / "shop"
    directory.mkdir(mode=0o700)
    os.chown(directory, 0, 0)
    agent = node.agent()
    try:
        agent.start()
        await_metric(node.port, "unreadable", 0, KILLED_WITHIN_S)
        assert '"directory.unreadable"' in agent.logs()
        said = agent.execute("sh", "-c", "feedback-agent doctor || true")
        assert re.search(r"^fail source\.permissions .* 1 directory", said, re.MULTILINE)
        assert re.search(r"^ok +state\.directory ", said, re.MULTILINE)
    finally:
        agent.remove()
