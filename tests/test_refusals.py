"""Files that give no lines are said once, counted by reason, and named."""

import logging
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from agent import opener
from agent.core.discovery import Scan, Seen, Skipped, SkipReason
from agent.refusals import QUIET, Refusals
from agent.telemetry import UNREADABLE, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def refusals(metrics: Metrics) -> Refusals:
    return Refusals(metrics)


def seen(path: str) -> Seen:
    return Seen(path, "acme", 1, 10, 0)


def count(metrics: Metrics, reason: str) -> float:
    return float(metrics.unreadable.labels(reason)._value.get())


def test_every_reason_has_its_series() -> None:
    """Or a reason would appear in the metrics only once it is too late to see its beginning."""
    reasons = {*get_args(SkipReason), *get_args(opener.Reason)}
    assert reasons - QUIET == set(UNREADABLE)


def test_one_file_is_said_once_for_one_reason(
    refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    scan = Scan(
        files=(seen("acme/a.jsonl"),),
        skipped=(Skipped("acme/x.jsonl", "symlink"),),
        unreadable=(Skipped("acme/d", "too_many"),),
        over_limit={"acme": 3},
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            refusals.refuse("acme/a.jsonl", "permission", "EACCES")
            refusals.scanned(scan)
        refusals.refuse("acme/a.jsonl", "links", "2 names")

    said = [(r.getMessage(), *r.fields.values()) for r in caplog.records]  # type: ignore[attr-defined]
    assert [
        ("file.refused", "acme/a.jsonl", "permission", "EACCES"),
        ("file.skipped", "acme/x.jsonl", "symlink"),
        ("directory.unreadable", "acme/d", "too_many"),
        ("client.crowded", "acme", 3),
        ("file.refused", "acme/a.jsonl", "links", "2 names"),
    ] == said


def test_what_is_readable_again_or_gone_counts_no_more(
    refusals: Refusals, metrics: Metrics
) -> None:
    both = Scan(files=(seen("a"), seen("b")), unreadable=(Skipped("d", "permission"),))
    refusals.refuse("a", "permission")
    refusals.refuse("b", "permission")
    refusals.scanned(both)
    assert (3, 3) == (refusals.count, count(metrics, "permission"))

    refusals.clear("a")
    refusals.scanned(Scan(files=(seen("a"),)))

    assert (0, 0) == (refusals.count, count(metrics, "permission"))


def test_a_file_that_vanished_before_it_was_opened_is_no_problem(refusals: Refusals) -> None:
    refusals.refuse("a", "gone", "ENOENT")

    assert (0, []) == (refusals.count, refusals.named())


def test_names_are_shown_so_that_they_break_no_terminal(refusals: Refusals) -> None:
    refusals.refuse("acme/\x1b[2J\n.jsonl", "permission")

    assert [{"path": r"acme/\x1b[2J\n.jsonl", "reason": "permission"}] == (refusals.named())


def test_what_comes_back_is_said_again(
    refusals: Refusals, caplog: pytest.LogCaptureFixture
) -> None:
    """But not what is left out as configured, or went a moment too early."""
    quiet = tuple(Skipped(f"acme/{why}", why) for why in get_args(SkipReason) if why in QUIET)
    linked = Scan(skipped=(Skipped("acme/x.jsonl", "symlink"), *quiet))
    with caplog.at_level(logging.WARNING):
        for scan in (linked, linked, Scan(), linked):
            refusals.scanned(scan)

    assert ["file.skipped"] * 2 == [r.getMessage() for r in caplog.records]
