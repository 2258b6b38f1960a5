import logging

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from agent import __version__, answers, telemetry
from agent.core.reasons import REASONS
from agent.telemetry import Metrics, event


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
