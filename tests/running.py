"""The agent as a process of its own: start it, ask it, stop it, read what it said.

Everything blocks and everything is bounded: what does not come true within its time raises
``AssertionError`` with the end of the log.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiokafka import ConsumerRecord

from agent.core.identity import source_id
from agent.demo.broker import EmbeddedKafka
from agent.demo.oracle import Arrival, Arrivals, Judge, Verdict, compare, sources_below
from agent.demo.scene import Topics, write_config
from agent.opener import birth_of
from tests import real_kafka
from tests.patience import WITHIN_S

LOG_TAIL_LINES = 15
NOWHERE = Topics("127.0.0.1:1", "feedback-events", "feedback-events-dlq")
"""Where no broker is: port 1 refuses at once."""

TIMESTAMP = "2026-01-01T00:00:00Z"
OBEDIENT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


class Answer(NamedTuple):
    status: int
    body: str


class Agent:
    """One agent over one root and one state directory below ``work``; in a ``with`` block.

    Several lives are possible, one at a time. ``sections`` go into its configuration. An
    ``obedient`` agent is held by the mode of files, even where root starts it.

    Attributes:
        root: The directory it watches; exists.
        took_s: How long the last life needed to end once it was told to.
    """

    def __init__(
        self,
        work: Path,
        topics: Topics,
        *,
        obedient: bool = False,
        **sections: Mapping[str, object],
    ) -> None:
        self.root = work / "feedback"
        self.state_dir = work / "state"
        self.config = work / "config.yaml"
        self.topics = topics
        self.took_s = 0.0
        self._log = work / "agent.log"
        self._log_begin = 0  # of this life
        self._prefix = OBEDIENT if obedient and os.geteuid() == 0 else []
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self.root.mkdir(parents=True, exist_ok=True)
        write_config(self.config, self.root, self.state_dir, topics, **sections)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    # ---- its life

    def start(self) -> Self:
        """Start it and return when it answers over HTTP."""
        self.launch()
        self.until(lambda: self._port_said() is not None, "agent.started")
        self._port = self._port_said()
        return self

    def launch(self) -> None:
        """Start it; it may end at once."""
        assert self._process is None, "one life at a time"
        self._log_begin = self._log.stat().st_size if self._log.exists() else 0
        self._port = None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "agent", "run", "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, within_s: float = WITHIN_S) -> int:
        """SIGTERM. Return the exit code; negative where a signal ended it."""
        self.signal(signal.SIGTERM)
        return self.ended(within_s)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.ended()

    def ended(self, within_s: float = WITHIN_S) -> int:
        """Wait for its end. Return the exit code."""
        assert self._process is not None
        began_s = time.monotonic()
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within_s} s\n{self.tail()}") from None
        self.took_s = time.monotonic() - began_s
        self._process = None
        return code

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    # ---- what it says

    def log_text(self) -> str:
        """Return what this life wrote to standard output and standard error."""
        if not self._log.exists():
            return ""
        return self._log.read_bytes()[self._log_begin :].decode()

    def log_entries(self, *events: str) -> list[dict[str, Any]]:
        """Return the log lines of this life, all or those of ``events``. Others are left out."""
        lines = [line for line in self.log_text().splitlines() if line.startswith("{")]
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
        return [e for e in entries if not events or e["event"] in events]

    def tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-LOG_TAIL_LINES:])

    def get(self, path: str) -> Answer:
        assert self._port is not None, "not started"
        connection = HTTPConnection("127.0.0.1", self._port, timeout=WITHIN_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())
        except OSError as error:
            raise AssertionError(f"GET {path}: {error}\n{self.tail()}") from None
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/status").body)
        return found

    def not_ready(self) -> list[str]:
        """Return why /readyz answers 503, nothing where it answers 200."""
        answer = self.get("/readyz")
        assert answer.status in {200, 503}, answer
        reasons: list[str] = json.loads(answer.body)["reasons"]
        assert reasons or answer.status == 200, answer
        return reasons if answer.status == 503 else []

    def reasons(self) -> list[str]:
        """Return what /readyz remarks, ready or not."""
        found: list[str] = json.loads(self.get("/readyz").body)["reasons"]
        return found

    def mode(self, sink: str = "events") -> str:
        """Return ``live``, ``spooling`` or ``replaying``."""
        return str(self.status()["sinks"][sink]["mode"])

    def metric(self, name: str, **labels: str) -> float:
        """Return ``feedback_agent_<name>``, summed over the series that have ``labels``."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        total, found = 0.0, False
        for line in self.get("/metrics").body.splitlines():
            series, _, value = line.rpartition(" ")
            family, _, of = series.partition("{")
            if family == f"feedback_agent_{name}" and all(label in of for label in wanted):
                total, found = total + float(value), True
        assert found, f"no metric {name} {labels}"
        return total

    def behind_bytes(self) -> int:
        """Return the bytes on disk above the watermarks of the open files."""
        rows = {file["path"]: file["watermark"] for file in self.status()["files"]}
        on_disk = [path for path in self.root.rglob("*") if path.is_file()]
        return sum(
            path.stat().st_size - rows.get(str(path.relative_to(self.root)), 0) for path in on_disk
        )

    def until(
        self,
        holds: Callable[[], bool],
        what: str,
        within_s: float = WITHIN_S,
        every_s: float = 0.05,
    ) -> None:
        """Wait until ``holds``; raises ``AssertionError`` when the agent ends or time is up."""
        deadline_s = time.monotonic() + within_s
        while not holds():
            code = None if self._process is None else self._process.poll()
            assert code is None, f"ended with {code} before: {what}\n{self.tail()}"
            assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}\n{self.tail()}"
            time.sleep(every_s)

    def until_delivered(
        self, events: int, dead_letters: int = 0, within_s: float = WITHIN_S
    ) -> None:
        """Wait until this life has delivered so many."""

        def holds() -> bool:
            return (
                self.metric("events_delivered_total") >= events
                and self.metric("dead_letters_delivered_total") >= dead_letters
            )

        self.until(holds, f"{events} events and {dead_letters} dead letters", within_s)

    def until_committed(self) -> None:
        """Wait until all that is on disk is settled, and a checkpoint says so: a kill costs none.

        A line is in the store or in Kafka before its checkpoint is.
        """
        self.until(lambda: not self.behind_bytes(), "settled")
        self.until(lambda: not self.status()["in_flight"]["events"], "a checkpoint of all")

    def _port_said(self) -> int | None:
        said = self.log_entries("agent.started")
        return said[0]["http_port"] if said else None


def append(path: Path, lines: Iterable[bytes]) -> None:
    """Append whole lines, given without their LF, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


def feedback(number: int, **more: object) -> bytes:
    """Return a good line with ``event_id(number)``, without its LF."""
    fields = {
        "type": "user_feedback",
        "event_id": event_id(number),
        "timestamp": TIMESTAMP,
        "session_id": f"s{number % 7}",
        "rating": 4,
        "metadata": {"seq": number},
    }
    return json.dumps({**fields, **more}).encode()


def event_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def source_of(path: Path) -> str:
    """Return the id by which the agent knows the file that is at ``path`` now."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return source_id(birth_of(fd))
    finally:
        os.close(fd)


def mock_topics(cluster: EmbeddedKafka) -> Topics:
    """Make the two topics on the embedded broker."""
    topics = Topics(cluster.bootstrap_servers, "feedback-events", "feedback-events-dlq")
    cluster.create_topic(topics.events, 12)
    cluster.create_topic(topics.dead_letters, 1)
    return topics


def records(topics: Topics, topic: str) -> list[ConsumerRecord]:
    """Return what ``topic`` holds, by partition and offset. Not from within an event loop."""
    return asyncio.run(real_kafka.read_all(topics.bootstrap_servers, topic))


def json_or_dead(fields: object) -> str | None:
    """Judge lines of which only those that are no object are bad."""
    return None if isinstance(fields, dict) else "invalid_json"


def verdict(agent: Agent, judge: Judge = json_or_dead) -> Verdict:
    """Hold both topics against the files below the agent's root."""
    topics, arrivals = agent.topics, Arrivals()
    for dead, topic in ((False, topics.events), (True, topics.dead_letters)):
        for r in records(topics, topic):
            arrivals.add(Arrival(dead, r.partition, r.key, r.value, r.headers, r.timestamp, 0))
    return compare(sources_below(agent.root), arrivals, judge)


def assert_each_once(agent: Agent, lines: int, judge: Judge = json_or_dead) -> None:
    """Assert that all ``lines`` on disk are in Kafka, once each, in order, as what they are."""
    found = verdict(agent, judge)
    assert found.ok, found.examples
    assert (lines, 0) == (found.lines, found.copies)
