"""The verdict, against one that is made line by line and in plain sets."""

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from agent.core.places import BEYOND, Coverage
from agent.core.proof import RANGES_SHOWN_MAX, Excuse, Found, Life, Line, Missing, lines_of, prove

BLANK = [b"", b" ", b"\t\r", b"\0\0", b"\0  ", b"\xef\xbb\xbf"]
BODIES = st.one_of(
    st.sampled_from([*BLANK, b"x", b"\0x", b"  y ", b" \0 ", b"\0 \0"]),
    st.binary(max_size=12).map(lambda body: body.replace(b"\n", b"")),
)


def plain(content: bytes) -> list[tuple[int, int]]:
    """Return the lines that the agent makes records of, as ``agent.chunk`` reads them."""
    found, start = [], 0
    for number, body in enumerate(content.split(b"\n")[:-1]):
        text = body.removeprefix(b"\xef\xbb\xbf") if number == 0 else body
        if text.lstrip(b"\0").strip():
            begin = start + len(body) - len(text.lstrip(b"\0"))
            found.append((begin, start + len(body) + 1))
        start += len(body) + 1
    return found


@given(st.lists(BODIES), st.binary(max_size=3), st.integers(3, 40))
def test_lines_are_those_of_the_agent_however_they_are_read(
    bodies: list[bytes], torn: bytes, length: int
) -> None:
    content = b"".join(body + b"\n" for body in bodies) + torn.replace(b"\n", b"")
    pieces = [content[at : at + length] for at in range(0, len(content), length)]
    assert plain(content) == [tuple(line) for line in lines_of(pieces)]


FATES = ("events", "dead_letters", "both", "skipped", "pending", "expired", "nothing")


@given(st.lists(st.tuples(st.sampled_from(FATES), st.integers(0, 2)), max_size=60))
def test_every_line_is_in_exactly_one_count(fates: list[tuple[str, int]]) -> None:
    """Nothing that has a record or an excuse is missing, nothing else is anything but missing."""
    found, excuses = Found(), {name: Coverage() for name in ("skipped", "pending", "expired")}
    lines, expected = [], []
    for number, (fate, copies) in enumerate(fates):
        line = Line(number * 10, number * 10 + 9 + number % 2)
        lines.append(line)
        for name in ("events", "dead_letters") if fate == "both" else (fate,):
            if name in {"events", "dead_letters"}:
                for _ in range(1 + copies):
                    getattr(found, name).add(*line)
            elif name in excuses:
                excuses[name].add(*line)
        expected.append({"events": "delivered", "both": "delivered", "nothing": "missing",
                         "dead_letters": "dead_lettered"}.get(fate, fate))  # fmt: skip
    named: dict[Excuse, Coverage] = {
        "skipped": excuses["skipped"],
        "pending": excuses["pending"],
        "expired": excuses["expired"],
    }

    proof = prove(lines, [Life(found)], named)

    counts = {name: expected.count(name) for name in {*expected}}
    assert counts == {name: getattr(proof, name) for name in counts}
    assert len(lines) == proof.lines == sum(counts.values())
    runs = [
        [line for _, line in run]
        for fate, run in groupby(zip(expected, lines, strict=True), key=lambda pair: pair[0])
        if fate == "missing"
    ]
    assert [Missing(run[0].start, run[-1].end, len(run)) for run in runs] == proof.missing_ranges
    sent = {"events": 1, "dead_letters": 1, "both": 2}
    assert sum(sent.get(fate, 0) * copies for fate, copies in fates) == proof.copies


def test_a_line_half_covered_is_missing() -> None:
    """A record that names other bytes is another line's."""
    found = Found()
    found.events.add(0, 9)
    assert 1 == prove([Line(0, 10)], [Life(found)], {}).missing


def test_of_an_original_only_what_is_alike_counts() -> None:
    """A copy that went on by itself is not its original any more."""
    original, own = Found(), Found()
    original.events.add(0, 30)
    own.events.add(20, 30)
    lines = [Line(0, 10), Line(10, 20), Line(20, 30), Line(30, 40)]

    proof = prove(lines, [Life(original, 10), Life(own)], {})

    assert (2, 2, 2) == (proof.delivered, proof.missing, proof.ranges)
    assert [Missing(10, 20, 1), Missing(30, 40, 1)] == proof.missing_ranges


def test_ranges_are_bounded_and_counted() -> None:
    found = Found()
    lines = [Line(n, n + 1) for n in range(3 * RANGES_SHOWN_MAX)]
    for line in lines[::2]:
        found.events.add(*line)

    proof = prove(lines, [Life(found)], {})

    assert RANGES_SHOWN_MAX == len(proof.missing_ranges) < proof.ranges == proof.missing


def test_what_is_beyond_the_watermark_is_pending() -> None:
    excuses: dict[Excuse, Coverage] = {"pending": Coverage([(10, BEYOND[0])])}
    proof = prove([Line(0, 10), Line(10, 20)], [], excuses)
    assert (1, 1) == (proof.missing, proof.pending)
