"""Which chunks are traced, and what is said of them: so many, so much, and links that hold."""

import re
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.tracing import (
    LINKS_MAX,
    NOTES_MAX,
    SPANS_PER_S_MAX,
    ChunkSpan,
    Step,
    Tracer,
)
from tests.tracing import Traced

TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01")
STEPS: tuple[Step, ...] = ("read", "decode", "redact", "encode")


def drawn(traced: Traced, chunks: int) -> list[int]:
    """Return which of so many chunks, a second apart, are traced."""
    found = []
    for number in range(chunks):
        traced.clock.advance(1.0)
        if traced.tracer.chunk() is not None:
            found.append(number)
    return found


@given(st.integers(0, 1 << 32))
def test_the_same_seed_draws_the_same_chunks(seed: int) -> None:
    assert drawn(Traced(0.3, seed), 200) == drawn(Traced(0.3, seed), 200)


@pytest.mark.parametrize(
    ("share", "least", "most"), [(0, 0, 0), (0.1, 800, 1200), (1, 10**4, 10**4)]
)
def test_the_share_is_what_was_asked_for(share: float, least: int, most: int) -> None:
    assert least <= len(drawn(Traced(share), 10_000)) <= most


@example([(0.0, 12)] * 50)
@example([(0.001, 0)] * 1000)
@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 12)), max_size=300))
def test_spans_are_capped_a_second_whatever_the_load(chunks: list[tuple[float, int]]) -> None:
    """What a chunk opens is traced with it: one chunk may overshoot, and the next ones pay."""
    traced, spans = Traced(), 0
    for wait_s, opened in chunks:
        traced.clock.advance(wait_s)
        chunk = traced.tracer.chunk()
        if chunk is not None:
            spans += 1 + len([chunk.opened("t") for _ in range(opened)])
    assert spans <= SPANS_PER_S_MAX * (1.0 + traced.clock.now) + 13


@given(st.integers(0, 1 << 32))
def test_a_traceparent_is_one_of_w3c_and_a_batch_id_a_uuid(seed: int) -> None:
    batch = Traced(seed=seed).batch()
    assert TRACEPARENT.fullmatch(batch.context.traceparent)
    batch_id = UUID(str(batch.attributes["feedback_agent.batch.id"]))
    assert (4, batch.context.trace_id) == (batch_id.version, batch_id.bytes)


def test_no_random_bits_make_an_id_of_zeros() -> None:
    """A collector refuses it, and a consumer would start a trace of its own."""
    tracer = Tracer(
        1.0, "c", clock=lambda: 0.0, draw=lambda: 0.0, bits=lambda _: 0, ended=lambda _: None
    )
    assert TRACEPARENT.fullmatch(tracer.context().traceparent)


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.floats(0, 10)), min_size=1))
def test_the_steps_of_a_chunk_share_all_of_its_time(laps: list[tuple[Step, float]]) -> None:
    traced = Traced()
    span = traced.chunk()
    for step, took_s in laps:
        traced.clock.advance(took_s)
        span.lap(step)
    span.filled(0, 10, 1)

    assert [span] == traced.ended
    took = [float(note.attributes["feedback_agent.took_s"]) for note in span.notes]
    assert sum(took) == pytest.approx(span.ended_s - span.began_s)
    assert {step for step, _ in laps} == {note.name for note in span.notes}


def test_a_batch_has_a_link_to_each_chunk_once_and_to_so_many_at_most() -> None:
    traced = Traced()
    chunks = [ChunkSpan(traced.tracer) for _ in range(LINKS_MAX + 5)]
    batch = chunks[0].opened("t")
    for chunk in chunks:
        batch.link(chunk)
        batch.link(chunk)
    assert [chunk.context for chunk in chunks[:LINKS_MAX]] == batch.links
    assert 5 == batch.dropped_links


def test_a_batch_that_is_sent_for_ever_does_not_grow() -> None:
    batch = Traced().batch()
    for _ in range(NOTES_MAX + 7):
        batch.sent(3)
    assert (NOTES_MAX, 7) == (len(batch.notes), batch.dropped_notes)


def test_a_batch_that_was_cut_ends_with_its_last_part() -> None:
    traced = Traced()
    batch = traced.batch()
    batch.cut()
    batch.settled("acknowledged")
    assert [] == traced.ended
    batch.settled("refused", "refused_invalid")
    assert [batch] == traced.ended
    assert "refused_invalid" == batch.error == batch.attributes["error.type"]
