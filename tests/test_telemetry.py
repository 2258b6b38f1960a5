import logging

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from agent import __version__, answers, telemetry
from agent.core.reasons import REASONS
from agent.telemetry import ACK_BUCKETS_S, Metrics, event


def test_every_label_is_exported_as_zero_before_it_happens() -> None:
    registry = CollectorRegistry()
    Metrics(registry)

    for reason in REASONS:
        sample = registry.get_sample_value(
            "feedback_agent_lines_rejected_total", {"reason": reason}
        )
        assert 0.0 == sample
    assert 0.0 == registry.get_sample_value(
        "feedback_agent_send_failures_total", {"sink": "dead_letters", "reason": "timeout"}
    )
    assert 0.0 == registry.get_sample_value("feedback_agent_ack_seconds_count", {"sink": "events"})
    assert 1.0 == registry.get_sample_value("feedback_agent_build_info", {"version": __version__})


def test_names_begin_with_the_agents_and_no_series_stands_beside_another() -> None:
    registry = CollectorRegistry()
    Metrics(registry)

    for family in registry.collect():
        assert family.name.startswith(("feedback_agent_", "process_")), family.name
        assert family.documentation
    assert b"_created" not in generate_latest(registry)


def test_two_agents_in_one_process_do_not_share_a_count() -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    Metrics(other)

    Metrics(one).lines_read.inc(5)

    assert 0.0 == other.get_sample_value("feedback_agent_lines_read_total")


def test_every_reason_of_the_sink_is_in_the_closed_list() -> None:
    """Else the first such failure would begin a series that no alert has seen at 0."""
    assert set(answers.REASONS) <= set(telemetry.SEND_FAILURES)


def test_a_field_cannot_pass_for_a_part_of_the_line() -> None:
    with pytest.raises(AssertionError, match="reserved"):
        event(logging.getLogger("agent.tests"), logging.INFO, "a.name", at="yesterday")


def test_a_value_is_counted_in_the_bucket_that_it_is_the_bound_of() -> None:
    """As prometheus_client does it, which looks through all the buckets."""
    registry, plain = CollectorRegistry(), CollectorRegistry()
    ours = Metrics(registry).ack_seconds.labels("events")
    theirs = Histogram(
        "feedback_agent_ack_seconds", "", ["sink"], registry=plain, buckets=ACK_BUCKETS_S
    ).labels("events")
    for value in (0.0, *ACK_BUCKETS_S, *(bound * 1.01 for bound in ACK_BUCKETS_S)):
        ours.observe(value)
        theirs.observe(value)

    for bound in (*ACK_BUCKETS_S, "+Inf"):
        labels = {"sink": "events", "le": str(bound)}
        name = "feedback_agent_ack_seconds_bucket"
        assert plain.get_sample_value(name, labels) == registry.get_sample_value(name, labels)
