"""Metrics, spans and log lines by OTLP, to a collector that is well, and to those that are not.

Whatever a collector does, lines are shipped, memory stays and the log is quiet.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from agent import __version__, otlp, otlp_messages
from agent.clock import SystemClock
from agent.config import load
from agent.core.batch import Batch
from agent.demo.broker import EmbeddedKafka
from agent.errors import ConfigError
from agent.otlp import LINES_MAX, SPANS_MAX, Exporter
from agent.otlp_collector import Collector, Failure, Message, Signal, require
from agent.telemetry import Metrics
from tests.collector import REJECTED, attributes, collecting, until
from tests.patience import WITHIN_S
from tests.running import Agent, append, assert_each_once, feedback, mock_topics
from tests.tracing import Traced

FAR = 3600.0
GROWTH_BYTES_MAX = 16 << 20
"""Of an agent that ships another thousand lines; noise, where nothing piles up."""


class Wanted(NamedTuple):
    endpoint: str | None
    export_s: float = 0.05
    traces_sampled: float = 1.0
    logs: bool = True


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a call its time where an export each 50 ms would cut it short, and the last ones too:
    no slow machine is taken for a collector that does not answer."""
    export = Collector.export

    def patiently(own: Collector, signal: Signal, request: Message, _: float) -> Failure | None:
        return export(own, signal, request, otlp.TIMEOUT_S)

    monkeypatch.setattr(Collector, "export", patiently)
    monkeypatch.setattr(otlp, "CLOSE_S", WITHIN_S)


class Node:
    """What an exporter reads, without an agent."""

    def __init__(self, wanted: Wanted) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.exporter = Exporter(
            wanted, "node-1", self.registry, clock=SystemClock(), metrics=self.metrics
        )

    def value(self, name: str, **labels: str) -> float:
        """Return one sample; no other metric is read for it."""
        name = f"feedback_agent_{name}"
        return sum(
            sample.value
            for family in self.registry.restricted_registry([name]).collect()
            for sample in family.samples
            if sample.labels == labels
        )

    def log(self, name: str = "file.opened", logger: str = "agent.tests", **fields: object) -> None:
        record = logging.LogRecord(logger, logging.WARNING, "", 0, name, (), None)
        self.exporter.take(record, {"at": "", "level": "warning", "event": name, **fields})

    def trace(self, spans: int) -> None:
        """Let so many spans of chunks end."""
        for _ in range(spans):
            traced = Traced()
            traced.chunk().filled(0, 1, 1)
            self.exporter.take_span(*traced.ended)


def acked_batch() -> Batch:
    return Batch(
        partition=0, count=7, payload=b"x" * 3000, codec=1, first_ms=0, max_ms=0,
        raw_bytes=9000, opened_at_s=99.0, chunks=[],
    )  # fmt: skip


# ---- what arrives


def test_the_samples_of_the_registry_arrive_as_what_they_are() -> None:
    with collecting() as collector:
        node = Node(Wanted(collector.endpoint))
        node.metrics.lines_rejected.labels("oversize").inc(3)
        node.metrics.lag_bytes.set(17)
        node.metrics.acked("events", acked_batch(), 0.03, 100.0)
        with node.exporter:
            until(lambda: bool(collector.metrics))

    found = collector.latest()
    rejected = found["feedback_agent_lines_rejected_total"].sum
    assert rejected.is_monotonic
    assert 2 == rejected.aggregation_temporality  # cumulative
    by_reason = {attributes(p)["reason"]: p.as_double for p in rejected.data_points}
    assert (3, 0) == (by_reason["oversize"], by_reason["schema"])
    begun = {p.start_time_unix_nano for p in rejected.data_points}
    assert all(0 < b <= rejected.data_points[0].time_unix_nano for b in begun)

    lag = found["feedback_agent_lag_bytes"]
    assert ("By", 17) == (lag.unit, lag.gauge.data_points[0].as_double)
    assert found["feedback_agent_batch_records"].description


def test_a_histogram_arrives_with_its_bounds_and_what_each_bucket_alone_counts() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for latency_s in (0.03, 0.03, 0.2, 999.0):
        metrics.acked("events", acked_batch(), latency_s, 1100.0)

    request = otlp_messages.of_metrics(otlp_messages.resource("n"), registry, 1, 2)
    (scope,) = request.resource_metrics[0].scope_metrics
    (metric,) = [m for m in scope.metrics if m.name == "feedback_agent_ack_seconds"]
    points = {attributes(p)["sink"]: p for p in metric.histogram.data_points}
    events = points["events"]

    assert 4 == events.count == sum(events.bucket_counts)
    assert len(events.explicit_bounds) + 1 == len(events.bucket_counts)
    counted = dict(zip(events.explicit_bounds, events.bucket_counts, strict=False))
    assert (2, 1) == (counted[0.05], counted[0.25])
    assert 1 == events.bucket_counts[-1]
    assert pytest.approx(999.26) == events.sum
    assert 0 == points["dead_letters"].count
    assert "le" not in attributes(events)


def test_every_series_of_the_registry_is_exported_under_its_name() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    request = otlp_messages.of_metrics(otlp_messages.resource("n"), registry, 1, 2)
    (scope,) = request.resource_metrics[0].scope_metrics

    wanted = {
        sample.name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum")
        for family in registry.collect()
        for sample in family.samples
    }
    names = {metric.name for metric in scope.metrics}
    assert wanted <= names
    assert {"feedback_agent_config_info"} >= names - wanted  # known only to a running agent


def test_who_says_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    said = attributes(otlp_messages.resource("node-1"))
    assert ("feedback-agent", __version__) == (said["service.name"], said["service.version"])
    assert "node-1" == said["host.name"] == said["service.instance.id"]
    assert "k8s.node.name" not in said

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "node-1" == attributes(otlp_messages.resource("node-1"))["k8s.node.name"]


def test_log_lines_arrive_with_their_fields_and_never_those_about_exports() -> None:
    with collecting() as collector:
        node = Node(Wanted(collector.endpoint))
        node.log("file.refused", path="a/b", bytes=3, all=[1, {"x": None}], good=True, share=0.5)
        node.log("otlp.failed", logger="agent.otlp")
        node.log("Failed", logger="opentelemetry.exporter")
        node.log("Failed", logger="grpc._channel")
        with node.exporter:
            until(lambda: bool(collector.logs))

    (record,) = collector.records()
    assert "file.refused" == record.event_name == record.body.string_value
    assert (13, "WARNING") == (record.severity_number, record.severity_text)
    fields = {"path": "a/b", "bytes": 3, "all": [1, {"x": None}], "good": True, "share": 0.5}
    assert fields == attributes(record)


def test_the_end_exports_once_more() -> None:
    """What was counted since the last export would be missing for good."""
    with collecting() as collector:
        node = Node(Wanted(collector.endpoint, export_s=FAR))
        with node.exporter:
            node.trace(3)
            node.metrics.lines_read.inc(5)
            node.log("agent.stopped")

    assert 5 == collector.latest()["feedback_agent_lines_read_total"].sum.data_points[0].as_double
    assert ["agent.stopped"] == [record.event_name for record in collector.records()]
    assert 3 == len(collector.spans())


def test_what_is_not_wanted_is_not_exported() -> None:
    with collecting() as collector:
        node = Node(Wanted(collector.endpoint, traces_sampled=0.0, logs=False))
        with node.exporter:
            until(lambda: len(collector.metrics) >= 3)

    assert ([], []) == (collector.traces, collector.logs)
    assert len(collector.metrics) == collector.calls


# ---- a collector in trouble


def test_log_lines_beyond_the_queue_are_dropped_and_counted() -> None:
    node = Node(Wanted("http://127.0.0.1:1", export_s=FAR))
    for _ in range(LINES_MAX + 5):
        node.log()

    assert LINES_MAX == len(node.exporter._lines)
    assert 5 == node.value("otlp_logs_dropped_total")


def test_spans_beyond_the_queue_are_dropped_and_counted() -> None:
    node = Node(Wanted("http://127.0.0.1:1", export_s=FAR))
    node.trace(SPANS_MAX + 5)

    assert SPANS_MAX == len(node.exporter._spans)
    assert 5 == node.value("otlp_spans_dropped_total")


def test_spans_wait_for_a_collector_that_comes_back() -> None:
    with collecting("busy") as collector:
        node = Node(Wanted(collector.endpoint, logs=False))
        node.trace(450)
        with node.exporter:
            until(lambda: node.value("otlp_failures_total", signal="traces") >= 2)
            collector.mood = "well"
            until(lambda: len(collector.spans()) >= 450)

    assert (450, 0) == (len(collector.spans()), node.value("otlp_spans_dropped_total"))


def test_what_a_collector_takes_in_part_is_counted_and_never_sent_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It must not be (OTLP 1.x, partial success): it would be the same part again."""
    with collecting("partial") as collector:
        node = Node(Wanted(collector.endpoint))
        node.trace(10)
        node.log()
        with node.exporter:
            until(lambda: node.value("otlp_failures_total", signal="metrics") >= 3)

    assert (10, 1) == (len(collector.spans()), len(collector.records()))
    dropped = node.value("otlp_spans_dropped_total"), node.value("otlp_logs_dropped_total")
    assert (REJECTED, REJECTED) == dropped
    failed: list[Any] = [r for r in caplog.records if r.message == "otlp.failed"]
    assert ["logs", "metrics", "traces"] == sorted(r.fields["signal"] for r in failed)
    assert {("partial_success", "too old")} == {
        (r.fields["reason"], r.fields["detail"]) for r in failed
    }


def test_log_lines_wait_for_a_collector_that_comes_back_in_their_order() -> None:
    with collecting("busy") as collector:
        node = Node(Wanted(collector.endpoint))
        for number in range(450):
            node.log(f"a.{number}")
        with node.exporter:
            until(lambda: node.value("otlp_failures_total", signal="logs") >= 2)
            collector.mood = "well"
            until(lambda: len(collector.records()) >= 450)

    assert [f"a.{n}" for n in range(450)] == [record.event_name for record in collector.records()]
    assert 0 == node.value("otlp_logs_dropped_total")


def test_log_lines_that_a_collector_will_never_take_are_dropped() -> None:
    """Else the first ones would stand in the way of all others."""
    with collecting("refusing") as collector:
        node = Node(Wanted(collector.endpoint))
        for _ in range(300):
            node.log()
        with node.exporter:
            until(lambda: node.value("otlp_logs_dropped_total") >= 300)

    assert not node.exporter._lines


def test_trouble_is_said_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent.otlp")
    with collecting("refusing") as collector:
        node = Node(Wanted(collector.endpoint, logs=False))
        with node.exporter:
            until(lambda: node.value("otlp_failures_total", signal="metrics") >= 5)
            collector.mood = "well"
            until(lambda: "otlp.restored" in caplog.messages)

    assert ["otlp.failed", "otlp.restored"] == caplog.messages
    said: Any = caplog.records[0]
    assert "unimplemented" == said.fields["reason"]


def test_a_collector_that_never_answers_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "CLOSE_S", 0.2)
    with collecting("hanging") as collector:
        node = Node(Wanted(collector.endpoint, export_s=FAR))
        monkeypatch.setattr("random.uniform", lambda _low, _high: 0.0)
        with node.exporter:
            until(lambda: collector.calls > 0)
        node.exporter._thread.join(WITHIN_S)

        assert not node.exporter._thread.is_alive()


def test_a_metric_that_cannot_be_read_ends_no_export_for_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> float:
        raise RuntimeError("planted")

    with collecting() as collector:
        node = Node(Wanted(collector.endpoint, logs=False))
        node.metrics.lag_bytes.set_function(broken)
        with node.exporter:
            until(lambda: node.value("otlp_failures_total", signal="metrics") >= 2)
            node.metrics.lag_bytes.set_function(lambda: 3.0)
            until(lambda: bool(collector.metrics))

    assert {"otlp.broken"} == set(caplog.messages)


# ---- the whole agent


@pytest.fixture
def agent(embedded: EmbeddedKafka, tmp_path: Path) -> Callable[..., Agent]:
    topics = mock_topics(embedded)

    def make(endpoint: str, *, logs: bool = True) -> Agent:
        wanted = {"endpoint": endpoint, "export_s": 1, "logs": logs, "traces_sampled": 1}
        return Agent(tmp_path, topics, otlp=wanted)

    return make


def test_a_running_agent_exports_what_its_metrics_page_says(agent: Callable[..., Agent]) -> None:
    with collecting() as collector, agent(collector.endpoint) as running:
        append(running.root / "a.jsonl", [*map(feedback, range(50)), b"bad"])
        running.start().until_delivered(50, 1)

        def exported() -> bool:
            delivered = collector.latest()["feedback_agent_events_delivered_total"]
            return bool(delivered.sum.data_points[0].as_double == 50)

        running.until(lambda: bool(collector.metrics) and exported(), "exported")
        families = {
            line.split()[2]
            for line in running.get("/metrics").body.splitlines()
            if line.startswith("# TYPE")
        }
        assert families == set(collector.latest())

        def names() -> set[str]:
            return {record.event_name for record in collector.records()}

        running.until(lambda: "agent.started" in names(), "log lines")
        assert 0 == running.stop()


@pytest.mark.parametrize("trouble", ["absent", "slow", "refusing", "partial", "busy", "hanging"])
def test_trouble_of_a_collector_costs_no_line_no_memory_and_no_log(
    agent: Callable[..., Agent], trouble: Any
) -> None:
    """Neither a line that is late or lost, nor a log that grows with each failed export."""
    absent = trouble == "absent"
    with collecting("well" if absent else trouble) as collector:
        endpoint = "http://127.0.0.1:1" if absent else collector.endpoint
        with agent(endpoint) as running:
            append(running.root / "a.jsonl", map(feedback, range(1000)))
            running.start().until_delivered(1000)
            if trouble == "slow":
                running.until(lambda: collector.calls >= 2, "called again")
            else:
                running.until(lambda: failures(running) >= 3, "failed three times")
            before = running.metric("otlp_failures_total"), resident_bytes(running)
            append(running.root / "a.jsonl", map(feedback, range(1000, 2000)))
            running.until_delivered(2000)
            running.until(
                lambda: trouble == "slow" or failures(running) >= before[0] + 3, "failed again"
            )
            assert resident_bytes(running) < before[1] + GROWTH_BYTES_MAX

            assert 0 == running.stop()
            about = running.log_entries("otlp.failed", "otlp.restored")
            assert len(about) <= 6, about
            foreign = [line for line in running.log_text().splitlines() if line[:1] != "{"]
            assert not foreign
            loggers = {entry["logger"].partition(".")[0] for entry in running.log_entries()}
            assert {"agent"} == loggers
            assert_each_once(running, 2000)


def resident_bytes(running: Agent) -> int:
    pages = Path(f"/proc/{running.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def failures(running: Agent) -> float:
    return running.metric("otlp_failures_total")


# ---- the configuration


def test_without_the_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.otlp_collector.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r'otlp\.endpoint: needs .*extra "otlp"'):
        require()


def test_log_lines_need_an_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("kafka: {bootstrap_servers: [k:9092]}\notlp: {logs: true}\n")
    with pytest.raises(ConfigError, match=r"otlp\.logs: .*only with otlp\.endpoint"):
        load(path, {})


@pytest.mark.parametrize(
    "endpoint",
    ["collector:4317", "ftp://c:1", "http://user@c:1", "http://c:1/v1/metrics", "http://"],
)
def test_an_endpoint_is_an_address_without_a_path(tmp_path: Path, endpoint: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f'kafka: {{bootstrap_servers: [k:9092]}}\notlp: {{endpoint: "{endpoint}"}}\n')
    with pytest.raises(ConfigError, match=r"otlp\.endpoint"):
        load(path, {})
