"""The table of docs/metrics.md, held against an agent that runs, and what its figures mean.

Names are an interface: alerts and dashboards are written by them.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from agent.clock import SystemClock
from agent.core.batch import Batch
from agent.core.redaction_rules import KINDS
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from agent.redaction import RULES_MAX
from agent.telemetry import OWN_RULES_MAX, SEND_FAILURES, Metrics
from tests.running import NOWHERE, Agent, append, feedback, mock_topics

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"
SERIES_MAX = 400
FAR_S = 120.0
CLIENTS = 40  # more than have series of their own
IMPATIENT: dict[str, Any] = {
    "kafka": {"start_s": 0.2},
    "retry": {"backoff_s": 0.2, "backoff_max_s": 0.5},
    "breaker": {"cooldown_s": 1, "failures_max": 2},
}


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def row(name: str, kind: str, labels: set[str], meaning: str) -> str:
    said = ", ".join(f"`{label}`" for label in sorted(labels - {"le"}))
    return f"| `{name}` | {kind} | {said} | {meaning} |"


def rows(page: str) -> Iterator[str]:
    """Yield a row of the table for each metric of ours on ``page``, which is of /metrics."""
    for family in text_string_to_metric_families(page):
        if family.name.startswith("process_"):
            continue
        labels = {label for sample in family.samples for label in sample.labels}
        name = family.name + "_total" * (family.type == "counter")
        yield row(name, family.type, labels, family.documentation)


def busy(agent: Agent) -> None:
    """Have many clients, each with good and bad lines."""
    for client in range(CLIENTS):
        numbers = range(client * 10, client * 10 + 10)
        append(agent.root / f"client-{client}/a.jsonl", [*map(feedback, numbers), b"bad", b""])


def test_the_table_is_what_a_running_agent_exports_and_that_is_bounded(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Where it fails, put ``rows(page)`` into the document. Both ways: nothing is left unsaid."""
    embedded.create_topic("audit", 1)
    with Agent(tmp_path, mock, audit={"topic": "audit"}, source={"scan_s": 0.2}) as agent:
        busy(agent)
        agent.start().until_delivered(10 * CLIENTS, CLIENTS)
        agent.until(lambda: agent.metric("client_lag_seconds", client="other") == 0, "a scan")
        page = agent.get("/metrics").body

    _, _, table = DOCS.read_text().partition("## All of them")
    written = re.findall(r"^\| `feedback_agent_.*\|$", table, re.MULTILINE)
    assert sorted(rows(page)) == sorted(written)
    assert 33 == len(series(page, "client_lag_seconds"))


def test_the_worst_of_configurations_has_so_many_series_and_no_more(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """More clients and more rules of redact.custom than have series of their own, a third sink,
    which can fail for each reason."""
    embedded.create_topic("audit", 1)
    names = [f"rule_{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    assert RULES_MAX == len(names)
    custom = tmp_path / "rules.yaml"
    custom.write_text("".join(f"- {{name: {n}, pattern: {n.upper()}}}\n" for n in names))
    said = feedback(1, comment=" ".join(names).upper())
    sections: dict[str, Any] = {
        "audit": {"topic": "audit"},
        "redact": {"custom": str(custom)},
        "source": {"scan_s": 0.2},
    }
    with Agent(tmp_path, mock, **sections) as agent:
        append(agent.root / "client-0/b.jsonl", [said])
        busy(agent)
        agent.start().until_delivered(10 * CLIENTS + 1, CLIENTS)
        agent.until(lambda: agent.metric("client_lag_seconds", client="other") == 0, "a scan")
        agent.until(lambda: agent.metric("sink_up", sink="audit") == 1, "a third sink")
        page = agent.get("/metrics").body
        assert RULES_MAX - OWN_RULES_MAX == agent.metric("redactions_total", kind="other")

    own = {f'kind="{name}"' for name in names[:OWN_RULES_MAX]}
    assert own <= {line.partition("{")[2].partition("}")[0] for line in series(page)}
    assert len(KINDS) + OWN_RULES_MAX + 1 == len(series(page, "redactions_total"))
    assert 3 * len(SEND_FAILURES) == len(series(page, "send_failures_total"))
    for name in (
        "sink_up",
        "producer_retirements_total",
        "retries_total",
        "throttled_seconds_total",
    ):
        assert 3 == len(series(page, name)), "each of three sinks, before anything happened"
    assert len(series(page)) <= SERIES_MAX


def series(page: str, name: str = "") -> list[str]:
    """Return the lines of the series on ``page``, all or those of one metric of ours."""
    head = f"feedback_agent_{name}{{" if name else ""
    return [line for line in page.splitlines() if line[:1] != "#" and line.startswith(head)]


def test_a_rule_that_is_gone_leaves_its_series_to_another() -> None:
    """Rules are reloaded while the agent runs: names that come and go must not pile up."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def kinds() -> set[str]:
        (family,) = metrics.redactions.collect()
        return {sample.labels["kind"] for sample in family.samples}

    before = kinds()
    for number in range(100):
        metrics.name_rules([f"rule-{number}", "stays", "other"])
        metrics.redacted(f"rule-{number}", 1)
        metrics.redacted("stays", 1)
    assert before | {"rule-99", "stays"} == kinds()
    assert 100 == registry.get_sample_value("feedback_agent_redactions_total", {"kind": "stays"})


def test_every_series_with_known_labels_is_there_before_anything_happened(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """``rate()`` of a series that begins with its first failure does not see that one."""
    embedded.create_topic("audit", 1)
    with Agent(tmp_path, mock, audit={"topic": "audit"}) as agent:
        agent.start().until(lambda: agent.metric("sink_up", sink="audit") == 1, "all sinks")
        idle = agent.get("/metrics").body
        assert 0 == agent.stop()
        busy(agent)
        agent.start().until_delivered(10 * CLIENTS, CLIENTS)
        after = agent.get("/metrics").body

    def names(page: str) -> set[str]:
        return {line.rpartition(" ")[0] for line in page.splitlines() if line[:1] != "#"}

    assert {name for name in names(after) - names(idle) if 'client="' not in name} == set()


def test_a_line_is_blank_rejected_or_accepted(mock: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, mock, source={"line_bytes_max": 1024}) as agent:
        append(agent.root / "a.jsonl", [*map(feedback, range(7)), b"", b"{", b"x" * 5000, b""])
        agent.start().until_delivered(7, 2)

        assert 11 == agent.metric("lines_read_total")
        counted = "lines_accepted_total", "lines_rejected_total", "lines_blank_total"
        assert [7, 2, 2] == [agent.metric(name) for name in counted]


def test_an_accepted_line_is_never_taken_back() -> None:
    """A scrape may come between two counts of a chunk; one that falls looks restarted."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def accepted() -> float | None:
        return registry.get_sample_value("feedback_agent_lines_accepted_total")

    metrics.lines_read.inc(10)
    assert 10 == accepted()
    metrics.lines_rejected.labels("schema").inc(4)
    assert 10 == accepted()
    metrics.lines_read.inc(5)
    assert 11 == accepted()
    metrics.lines_rejected.labels("refused_invalid").inc()  # that line had been accepted
    assert 11 == accepted()


def test_what_a_batch_took_is_told_apart() -> None:
    registry = CollectorRegistry()
    batch = Batch(
        partition=0, count=7, payload=b"x" * 2000, codec=1, first_ms=0, max_ms=0,
        raw_bytes=9000, opened_at_s=100.0, chunks=[],
    )  # fmt: skip
    Metrics(registry).acked("events", batch, 0.25, 101.0)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"feedback_agent_{name}", labels)

    assert 0.25 == value("ack_seconds_sum", sink="events")
    assert 0.75 == value("batch_age_seconds_sum")
    assert 1.0 == value("append_to_ack_seconds_sum")
    assert (9000, 2000) == (
        value("raw_bytes_total", sink="events"),
        value("sent_bytes_total", sink="events"),
    )
    assert 7 == value("events_delivered_total")
    assert (2000, 7) == (value("batch_bytes_sum"), value("batch_records_sum"))


def test_a_line_without_its_end_is_lag_in_bytes_and_never_late(
    mock: Topics, tmp_path: Path
) -> None:
    """An app that died within a line would raise an alarm that nobody can end."""
    with Agent(tmp_path, mock, source={"scan_s": 0.2}) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(1)])
        with path.open("ab") as file:
            file.write(b'{"type":')
        os.utime(path, (1_000_000, 1_000_000))
        agent.start().until_delivered(1)
        agent.until(lambda: agent.metric("lag_bytes") == 8, "a scan that saw the watermark")
        agent.until(lambda: agent.metric("client_lag_seconds", client="acme") == 0, "not late")


def test_what_nobody_could_open_so_far_waits_as_well(tmp_path: Path) -> None:
    """Kafka was never there, and no file was opened: just then it must be seen what piles up."""
    config = {**IMPATIENT, "spool": {"enabled": False}, "source": {"scan_s": 0.2}}
    with Agent(tmp_path, NOWHERE, **config) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(1)])
        os.utime(path, (1_000_000, 1_000_000))
        age_s = SystemClock().wall() - 1_000_000
        agent.start()
        agent.until(lambda: "acme" in agent.get("/metrics").body, "a scan")
        found_s = agent.metric("client_lag_seconds", client="acme")
        assert age_s - 60 < found_s < age_s + 60
        assert path.stat().st_size == agent.metric("unsent_bytes")


def test_what_waits_for_an_answer_is_in_flight_and_behind_until_it_came(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """Neither spooled nor given up: only these say that something is under way."""
    waits: dict[str, Any] = {
        "breaker": {"ack_age_max_s": FAR_S},
        "kafka": {"request_timeout_s": FAR_S},
    }
    with Agent(tmp_path, mock, **waits, source={"scan_s": 0.2}) as agent:
        path = agent.root / "acme/a.jsonl"
        append(path, [feedback(0)])
        agent.start().until_delivered(1)
        agent.until_committed()
        assert [0, 0] == [agent.metric(f"in_flight_{what}") for what in ("events", "bytes")]
        commits = agent.metric("checkpoint_commits_total")
        assert 0 < commits <= agent.metric("checkpoint_seconds_count")

        embedded.broker_down()
        before = path.stat().st_size
        append(path, map(feedback, range(1, 101)))
        behind = path.stat().st_size - before
        agent.until(lambda: agent.metric("in_flight_events") == 100, "in flight")
        assert behind == agent.metric("in_flight_bytes")
        assert 0 < agent.metric("buffer_use_ratio", buffer="in_flight") < 1
        agent.until(lambda: agent.metric("client_lag_bytes", client="acme") == behind, "behind")

        embedded.broker_up()
        agent.until_delivered(101)
        agent.until_committed()
        agent.until(lambda: agent.metric("client_lag_bytes", client="acme") == 0, "not behind")
        assert [0, 0] == [agent.metric(f"in_flight_{what}") for what in ("events", "bytes")]
        assert commits < agent.metric("checkpoint_commits_total")


def test_what_markers_cut_and_what_is_beyond_a_limit_is_counted(
    mock: Topics, tmp_path: Path
) -> None:
    with Agent(tmp_path, mock, source={"client_files_max": 2, "scan_s": 0.2}) as agent:
        append(agent.root / "acme/a.jsonl", [feedback(1, comment="a@b.co " * 1428)])
        for name in "bcd":
            append(agent.root / f"globex/{name}.jsonl", [feedback(ord(name))])
        agent.start().until_delivered(3)
        agent.until(lambda: agent.metric("files_over_limit") == 1, "one of three is left out")
        assert 1 == agent.metric("events_cut_total")


def test_an_outage_shows_in_the_breaker_the_buffers_and_the_bytes_at_risk(tmp_path: Path) -> None:
    with Agent(tmp_path, NOWHERE, **IMPATIENT, spool={"bytes_max": 64 << 20}) as agent:
        append(agent.root / "a.jsonl", map(feedback, range(500)))
        agent.start()
        agent.until(lambda: agent.metric("spool_records", sink="events") == 500, "spooled")
        agent.until(lambda: agent.metric("breaker_state", sink="events", state="closed") == 0, "")

        assert 1 == agent.metric("breaker_state", sink="events"), "of all states, at one time"
        spooled = agent.metric("spool_bytes", sink="events")
        assert 0 < spooled
        agent.until(lambda: agent.metric("lag_bytes") == 0, "a scan that saw the watermark")
        assert spooled == agent.metric("unsent_bytes")
        assert pytest.approx(spooled / (64 << 20)) == agent.metric(
            "buffer_use_ratio", buffer="spool"
        )
        assert 0 <= agent.metric("buffer_use_ratio", buffer="in_flight") < 1
