from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from agent.core.explaining import Doing, Known, Named, explain
from agent.core.findings import FINDINGS, State

CODES = st.sampled_from(sorted(FINDINGS))
PAUSES = ("no_kafka", "spooling", "spool_full", "catching_up", "in_flight", "stopping")
SIZES = st.integers(0, 1 << 40)
NAMED = st.builds(
    Named, path=st.text(), why_not=st.none() | CODES, detail=st.text(), size=st.none() | SIZES
)
KNOWN = st.builds(
    Known, source=st.text(), generation=SIZES, watermark=SIZES, read_to=SIZES, torn=st.booleans(),
    packed=st.booleans(), packed_size=st.none() | SIZES, change=st.none() | st.text(min_size=1),
    resume_at=SIZES,
)  # fmt: skip
DOING = st.builds(
    Doing, running=st.booleans(), waits=st.none() | CODES, refused=st.none() | CODES,
    pauses=st.lists(st.tuples(st.sampled_from(PAUSES), st.text())).map(tuple),
)  # fmt: skip

NAME = Named(path="a/b.jsonl", client="a", size=100)
RUNNING = Doing(running=True)


def known(watermark: int = 100, **more: object) -> Known:
    fields = {"source": "s", "generation": 0, "watermark": watermark, "read_to": watermark, **more}
    return Known(**fields)  # type: ignore[arg-type]


@given(NAMED, st.none() | KNOWN, DOING)
def test_there_is_a_verdict_whatever_the_facts(
    named: Named, content: Known | None, doing: Doing
) -> None:
    """Whoever asks has a riddle already."""
    verdict = explain(named, content, doing)
    assert verdict.state in get_args(State)
    assert verdict.lag_bytes >= 0
    assert all(finding.what for finding in verdict.findings)
    if verdict.state in {"not_read", "gone"} or (verdict.state == "waiting" and doing.running):
        states = {FINDINGS[finding.code].state for finding in verdict.findings}
        assert verdict.state in states, "it says why"


@given(NAMED, KNOWN, DOING)
def test_a_file_with_whole_lines_that_wait_is_never_called_up_to_date(
    named: Named, content: Known, doing: Doing
) -> None:
    verdict = explain(named, content, doing)
    torn = any(finding.code == "torn" for finding in verdict.findings)
    assert verdict.state != "current" or verdict.lag_bytes == 0 or torn


def codes(named: Named, content: Known | None, doing: Doing) -> tuple[str, list[str]]:
    verdict = explain(named, content, doing)
    return verdict.state, [finding.code for finding in verdict.findings]


def test_a_settled_file_needs_no_word() -> None:
    assert ("current", []) == codes(NAME, known(), RUNNING)


def test_a_line_without_its_end_is_no_lag() -> None:
    assert ("current", ["torn"]) == codes(NAME, known(90, torn=True), RUNNING)


def test_a_number_is_said_as_everywhere_else() -> None:
    (behind,) = explain(Named(path="a/b.jsonl", size=1_000_000), known(100), RUNNING).findings
    assert "999,900 bytes wait to be settled" == behind.what


def test_what_holds_up_everything_is_said_of_a_file_with_something_to_read() -> None:
    """And of no other: backpressure is not why a settled file is at rest."""
    full = Doing(running=True, pauses=(("in_flight", "9 lines"),))
    assert ("waiting", ["behind", "in_flight"]) == codes(NAME, known(50), full)
    assert ("current", []) == codes(NAME, known(), full)


def test_age_and_names_matter_to_unknown_files_only() -> None:
    """The agent goes on with what it follows, however old it gets."""
    for why in ("old", "links"):
        named = Named(path="a/b.jsonl", size=100, why_not=why)
        assert ("current", []) == codes(named, known(), RUNNING)
        assert ("not_read", [why]) == codes(named, None, RUNNING)


def test_what_the_agent_found_itself_outweighs_what_a_look_from_outside_finds() -> None:
    """It may not read what root may."""
    denied = Doing(running=True, refused="permission")
    assert ("not_read", ["permission"]) == codes(NAME, None, denied)


def test_a_rule_that_both_see_is_said_once_and_with_its_detail() -> None:
    named = Named(path="a/b.jsonl", why_not="symlink", detail="a")
    verdict = explain(named, None, Doing(running=True, refused="symlink"))
    assert ["a is a symbolic link"] == [finding.what for finding in verdict.findings]


def test_with_the_agent_down_nothing_is_being_read() -> None:
    assert ("waiting", ["behind", "down"]) == codes(NAME, known(50), Doing(running=False))


def test_what_nobody_has_taken_yet_waits_for_a_scan() -> None:
    assert ("waiting", ["scan"]) == codes(NAME, None, RUNNING)


def test_of_other_content_all_is_left_to_read() -> None:
    verdict = explain(NAME, known(70, change="truncated"), RUNNING)
    assert ("behind", 100) == (verdict.state, verdict.lag_bytes)
