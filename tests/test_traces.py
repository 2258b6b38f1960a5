"""Traces, as the rooms make them and as a collector gets them: links that hold, and no payload."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.core.batch import Batch
from agent.core.identity import Birth
from agent.core.lanes import Lanes
from agent.core.ledger import Ledger
from agent.core.reshaping import fitted
from agent.core.tracing import BatchSpan
from agent.demo.broker import EmbeddedKafka
from agent.demo.scene import Topics
from agent.harvester import first_generation
from agent.otlp_messages import Ended, of_spans, resource
from agent.wire import Builder, PlainRecord
from tests.collector import Collector, attributes, collecting
from tests.fakes import PLAIN, chunks_of, moved
from tests.running import NOWHERE, Agent, append, assert_each_once, feedback, mock_topics, records
from tests.tracing import Traced

DOCS = Path(__file__).parent.parent / "docs" / "traces.md"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STEPS = ["read", "decode", "redact", "encode"]
ROOM = 1 << 20


def sealed_batch(traced: Traced, *values: bytes, partition: int = 0) -> Batch:
    """Return a traced batch, with a record of each value."""
    builder = Builder(partition, ROOM, 0.0, traced.batch())
    builder.hold(chunks_of(Ledger(0, b""), 1)[0])
    builder.extend([(0, None, value, []) for value in values])
    return builder.seal(PLAIN)


def sealed(span: BatchSpan | None, given: list[PlainRecord], bytes_max: int = ROOM) -> Batch:
    builder = Builder(0, bytes_max, 0.0, span)
    for record in given:
        builder.extend([record])
    return builder.seal(PLAIN)


# ---- the header of a record

OWN = ("traceparent", TRACE.encode())
HEADERS = st.lists(st.sampled_from([("source", b"s"), ("event_type", b"x")]), unique=True)
RECORDS = st.lists(
    st.tuples(
        st.integers(0, 1 << 40),
        st.none() | st.binary(max_size=8),
        st.binary(max_size=50),
        st.builds(lambda headers, own: headers + own, HEADERS, st.sampled_from([[], [OWN]])),
    ),
    min_size=1,
    max_size=20,
)


@given(RECORDS)
def test_a_record_of_a_traced_batch_has_one_trace_context_and_is_else_the_same(
    given_records: list[PlainRecord],
) -> None:
    span = Traced().batch()
    plain = wire.records(sealed(None, given_records))
    traced = wire.records(sealed(span, given_records))

    for before, after in zip(plain, traced, strict=True):
        brought = OWN in before.headers
        context = [] if brought else [("traceparent", span.context.traceparent)]
        assert before._replace(headers=[*before.headers, *context]) == after


def test_what_does_not_fit_any_more_gets_the_context_of_the_next_batch() -> None:
    first, second = Traced().batch(), Traced().batch()
    record: PlainRecord = (0, None, b"x" * 100, [])
    builder = Builder(0, 400, 0.0, first)
    assert builder.extend([record])
    assert not builder.extend([record, record])
    (left,) = wire.records(sealed(second, [record]))
    assert [("traceparent", second.context.traceparent)] == left.headers
    assert [] == record[3]


def test_no_record_is_too_large_for_its_header_alone() -> None:
    """It would be a dead letter, or not, as the dice fell."""
    long: PlainRecord = (0, None, b"x" * 300, [])
    traced = sealed(Traced().batch(), [long], bytes_max=400)
    assert sealed(None, [long], bytes_max=400).payload == traced.payload


# ---- what becomes of a batch


def test_a_batch_says_what_is_in_it() -> None:
    traced = Traced()
    batch = sealed_batch(traced, b"a", b"b")
    assert batch.span is not None
    said = batch.span.attributes
    assert (2, len(batch.payload), batch.raw_bytes) == (
        said["messaging.batch.message_count"],
        said["feedback_agent.batch.size"],
        said["feedback_agent.batch.raw_size"],
    )


def test_a_batch_that_is_cut_has_one_span_that_ends_with_both_halves() -> None:
    traced = Traced()
    for half in wire.split(sealed_batch(traced, b"a", b"b"), PLAIN):
        assert [] == traced.ended
        half.end_span("acknowledged")
        half.end_span("acknowledged")  # it is over: a half counts once
    assert 1 == len(traced.ended)


def test_a_span_ends_where_a_topic_with_fewer_partitions_takes_its_batch_apart() -> None:
    traced, lanes = Traced(), Lanes()
    lanes.add(sealed_batch(traced, b"a", partition=3))
    (fresh,) = fitted(lanes, 2, moved).batches()
    (ended,) = traced.ended
    assert "resealed" == ended.attributes["feedback_agent.batch.outcome"]
    assert fresh.span is None


def test_names_of_files_and_clients_are_redacted_when_they_leave() -> None:
    traced = Traced()
    span = traced.chunk()
    birth = Birth(inode=1, born_ns=2, inode_generation=3, device=4)
    base = first_generation(birth, "jo@example.com/a\x1b.jsonl", "jo@example.com")
    span.read(base)
    span.filled(0, 1, 1)
    request = of_spans(resource("n"), [Ended(span, 0.0)], lambda name: name.replace("jo@", "X"))
    said = attributes(request.resource_spans[0].scope_spans[0].spans[0])
    assert "Xexample.com" == said["feedback_agent.client"]
    assert r"Xexample.com/a\x1b.jsonl" == said["file.path"]
    assert "jo@" not in str(request)


# ---- the whole agent


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


def traced(
    work: Path, topics: Topics, collector: Collector, share: float = 1, **more: Any
) -> Agent:
    otlp = {"endpoint": collector.endpoint, "export_s": 1, "traces_sampled": share}
    return Agent(work, topics, otlp=otlp, **more)


def named(spans: list[Any], *names: str) -> list[Any]:
    return [span for span in spans if span.name in names]


def documented() -> set[str]:
    return set(re.findall(r"^\| `([a-z_.]+)` \|", DOCS.read_text(), re.MULTILINE))


def said(spans: list[Any]) -> set[str]:
    """Return the names of the attributes of spans and their events."""
    return {key for span in spans for one in (span, *span.events) for key in attributes(one)}


def test_a_line_can_be_followed_from_its_file_to_its_consumer(mock: Topics, tmp_path: Path) -> None:
    """Links and headers that lead nowhere are worse than none."""
    own = feedback(1000, traceparent=TRACE)
    with collecting() as collector, traced(tmp_path, mock, collector) as agent:
        append(agent.root / "jo@example.com/a.jsonl", [*map(feedback, range(300)), own, b"bad"])
        agent.start().until_delivered(301, 1)
        assert 0 == agent.stop()
        spans = collector.spans()
        assert_each_once(agent, 302)

    (chunk,) = named(spans, "read chunk")
    assert STEPS == [event.name for event in chunk.events]
    about = attributes(chunk)
    assert (302, 1) == (about["feedback_agent.chunk.lines"], about["feedback_agent.chunk.rejected"])
    assert ("[EMAIL]", "[EMAIL]/a.jsonl") == (about["feedback_agent.client"], about["file.path"])
    batches = named(spans, "send feedback-events")
    for batch in batches:
        assert [(chunk.trace_id, chunk.span_id)] == [(x.trace_id, x.span_id) for x in batch.links]
        assert ["build", "send", "ack", "settle"] == [event.name for event in batch.events]
        times = [batch.start_time_unix_nano, *(event.time_unix_nano for event in batch.events)]
        assert sorted(times) == times
        assert times[-1] <= batch.end_time_unix_nano
        assert 4 == batch.kind  # PRODUCER
    assert documented() - said(spans) <= {"error.type"}
    assert said(spans) <= documented()

    held = {context(batch): attributes(batch)["messaging.batch.message_count"] for batch in batches}
    found = Counter(dict(r.headers)["traceparent"] for r in records(mock, mock.events))
    assert 1 == found.pop(TRACE.encode())
    assert sum(held.values()) - 1 == found.total()  # one had brought its own
    assert all(count - found[parent] in {0, 1} for parent, count in held.items())
    (dead,) = records(mock, mock.dead_letters)
    sent = {context(span) for span in named(spans, "send feedback-events-dlq")}
    assert dict(dead.headers)["traceparent"] in sent


def context(span: Any) -> bytes:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01".encode()


def test_nothing_is_traced_where_nothing_is_to_be(mock: Topics, tmp_path: Path) -> None:
    with collecting() as collector, traced(tmp_path, mock, collector, share=0) as agent:
        append(agent.root / "a.jsonl", map(feedback, range(100)))
        agent.start().until_delivered(100)
        assert 0 == agent.stop()
        assert collector.metrics
        assert [] == collector.traces
    assert all("traceparent" not in dict(r.headers) for r in records(mock, mock.events))


def test_what_waits_in_the_spool_ends_a_trace_and_its_replay_begins_one(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    impatient: dict[str, Any] = {"retry": {"backoff_s": 0.2}, "kafka": {"start_s": 0.2}}
    with collecting() as collector:
        with traced(tmp_path, NOWHERE, collector, **impatient) as agent:
            append(agent.root / "a.jsonl", map(feedback, range(100)))
            agent.start()
            agent.until(lambda: agent.metric("spool_records", sink="events") == 100, "spooled")
            assert 0 == agent.stop()
        batches = named(collector.spans(), "send feedback-events")
        outcomes = {attributes(batch)["feedback_agent.batch.outcome"] for batch in batches}
        assert {"spooled"} == outcomes
        spooled = {context(batch) for batch in batches}
        collector.traces.clear()

        topics = mock_topics(embedded)
        with traced(tmp_path, topics, collector) as agent:
            agent.start().until_delivered(100)
            assert 0 == agent.stop()
            assert_each_once(agent, 100)
        replays = {span.span_id for span in named(collector.spans(), "replay chunk")}
        again = named(collector.spans(), "send feedback-events")
        assert replays
        assert all({link.span_id for link in batch.links} <= replays for batch in again)
        assert spooled == {dict(r.headers)["traceparent"] for r in records(topics, topics.events)}
