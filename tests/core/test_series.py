"""Files of one log are known by their names."""

import time

import pytest

from agent.core.series import series_of


@pytest.mark.parametrize(
    "name",
    ["x.jsonl", "x.jsonl.1", "x.jsonl.12.gz", "x.jsonl-20260131", "x.jsonl-2026-01-31T10:00:00.zst",
     "x.jsonl.old", "x.jsonl~1"],
)  # fmt: skip
def test_what_rotation_appends_is_no_part_of_the_name(name: str) -> None:
    assert "a/x.jsonl" == series_of(f"a/{name}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/x.jsonl", "b/x.jsonl"),
        ("a/worker-1.jsonl", "a/worker-2.jsonl"),
        ("a.1/x.jsonl", "a.2/x.jsonl"),
        ("a/x.jsonl", "a/y.jsonl.1"),
    ],
)
def test_files_that_are_written_side_by_side_are_not_of_one_series(one: str, other: str) -> None:
    """Or one that is written without end would keep the other from being read."""
    assert series_of(one) != series_of(other)


def test_a_name_is_never_empty() -> None:
    assert "a/.1" == series_of("a/.1")


@pytest.mark.parametrize("part", [".1-", ".1", "1", "T", "-1T:1"])
def test_no_name_takes_long(part: str) -> None:
    """Names are the clients' to choose."""
    for end in ("x", "", "."):
        began_s = time.perf_counter()
        series_of("a/" + (part * 255)[:254] + end)
        assert time.perf_counter() - began_s < 0.05
