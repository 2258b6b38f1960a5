"""What went wrong lately: the last of each name, bounded, and shown as names may be."""

import json
import logging
from collections.abc import Iterator

import pytest

from agent.lately import NAMES_MAX, Lately
from agent.telemetry import event

log = logging.getLogger("agent.test")


@pytest.fixture
def lately() -> Iterator[Lately]:
    lately = Lately(lambda text: text.replace("secret", "[x]"))
    with lately.listening():
        yield lately


def test_the_last_of_each_name_is_told_with_its_reason_time_and_count(lately: Lately) -> None:
    event(log, logging.WARNING, "sink.down", reason="tls")
    event(log, logging.ERROR, "spool.dropped", records=3)
    event(log, logging.WARNING, "sink.down", reason="unreachable")

    last, before = lately.problems()

    assert ("sink.down", "warning", 2) == (last["event"], last["level"], last["count"])
    assert {"reason": "unreachable"} == last["fields"]
    assert str(last["at"]).endswith("Z")
    assert ("spool.dropped", {"records": 3}) == (before["event"], before["fields"])


def test_a_flood_of_one_hides_no_other_and_names_are_bounded(lately: Lately) -> None:
    event(log, logging.WARNING, "first")
    for _ in range(10_000):
        event(log, logging.WARNING, "flood")
    assert ["flood", "first"] == [problem["event"] for problem in lately.problems()]

    for number in range(2 * NAMES_MAX):
        log.warning(f"name-{number}")  # noqa: G004  names beyond the bound
    assert NAMES_MAX == len(lately.problems())


def test_what_is_well_is_no_problem_and_what_others_log_is_not_ours(
    lately: Lately, caplog: pytest.LogCaptureFixture
) -> None:
    """A library may quote keys and values in what it logs."""
    caplog.set_level(logging.INFO, log.name)
    event(log, logging.INFO, "sink.up")
    logging.getLogger("aiokafka").error("a value")

    assert [] == lately.problems()


def test_texts_are_shown_as_they_may_be(lately: Lately) -> None:
    try:
        int("secret")
    except ValueError:
        log.warning("odd", extra={"fields": {"path": "secret/\u202ea\n", "long": "x" * 10_000}},
                    exc_info=True)  # fmt: skip

    (problem,) = lately.problems()

    said = json.dumps(problem)
    assert "secret" not in said
    assert "[x]" in said
    assert "Traceback" not in said
    assert len(said) < 5_000


def test_nothing_is_heard_after_the_end() -> None:
    lately = Lately()
    with lately.listening():
        pass
    event(log, logging.WARNING, "sink.down")
    assert [] == lately.problems()
