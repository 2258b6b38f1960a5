"""Files that give no lines are said once, counted by reason, and named."""

import logging
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from agent import opener
from agent.core.discovery import Scan, Seen, Skipped, SkipReason
from agent.refusals import Refusals
from agent.telemetry import UNREADABLE, Metrics

GONE = {"gone"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def refusals(metrics: Metrics) -> Refusals:
    return Refusals(metrics)


def seen(path: str) -> Seen:
    return Seen(path, "acme", 1, 1, 10, 0)


def count(metrics: Metrics, reason: str) -> float:
    return float(metrics.unreadable.labels(reason)._value.get())


def test_every_reason_has_its_series() -> None:
    """Or a reason would appear in the metrics only once it is too late to see its beginning."""
    reasons = {*get_args(SkipReason), *get_args(opener.Reason)}
    assert reasons - GONE == set(UNREADABLE)


def test_one_file_is_said_once_for_one_reason(
    refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    scan = Scan(files=(seen("acme/a.jsonl"),), skipped=(Skipped("acme/x.jsonl", "symlink"),))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            refusals.note("acme/a.jsonl", "permission", "EACCES")
            refusals.scanned(scan)
        refusals.note("acme/a.jsonl", "links", "2 names")

    said = [(r.fields["path"], r.fields["reason"]) for r in caplog.records]  # type: ignore[attr-defined]
    assert [
        ("acme/a.jsonl", "permission"),
        ("acme/x.jsonl", "symlink"),
        ("acme/a.jsonl", "links"),
    ] == said


def test_what_is_readable_again_or_gone_counts_no_more(
    refusals: Refusals, metrics: Metrics
) -> None:
    both = Scan(files=(seen("a"), seen("b")), unreadable=(Skipped("d", "permission"),))
    refusals.note("a", "permission")
    refusals.note("b", "permission")
    refusals.scanned(both)
    assert (3, 3) == (refusals.count, count(metrics, "permission"))

    refusals.clear("a")
    refusals.scanned(Scan(files=(seen("a"),)))

    assert (0, 0) == (refusals.count, count(metrics, "permission"))


def test_a_file_that_vanished_before_it_was_opened_is_no_problem(refusals: Refusals) -> None:
    refusals.note("a", "gone", "ENOENT")

    assert (0, []) == (refusals.count, refusals.named())


def test_names_are_shown_so_that_they_break_no_terminal(refusals: Refusals) -> None:
    refusals.note("acme/\x1b[2J\n.jsonl", "permission")

    assert [{"path": r"acme/\x1b[2J\n.jsonl", "reason": "permission", "detail": ""}] == (
        refusals.named()
    )
