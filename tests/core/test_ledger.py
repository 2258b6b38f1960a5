"""The ledger: in whatever order acknowledgements come, no unsettled byte is passed."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.batch import Batch
from agent.core.ledger import Chunk, Ledger, Row
from tests.fakes import chunks_of

PARTITIONS = 12


def holding(chunks: list[Chunk], partition: int = 0) -> Batch:
    """Return a batch that holds lines of ``chunks``; the ledger looks at nothing else of it."""
    for chunk in chunks:
        chunk.open_batches += 1
    return Batch(
        partition=partition, count=1, payload=b"", codec=0, first_ms=0, max_ms=0, raw_bytes=0,
        opened_at_s=0.0, chunks=chunks,
    )  # fmt: skip


def settle(batch: Batch) -> None:
    for chunk in batch.chunks:
        chunk.ledger.settle(chunk)


def safe_end(chunks: list[Chunk], unsettled: list[Batch]) -> int:
    """Say the obvious way where the watermark of the file of ``chunks`` may stand."""
    end = 0
    for chunk in chunks:
        if any(chunk in batch.chunks for batch in unsettled):
            return end
        end = chunk.end
    return end


def settle_in_order(files: list[list[Chunk]], batches: list[Batch], order: list[int]) -> None:
    """Settle ``batches`` in ``order`` and compare every file with the oracle after each."""
    for chunks in files:
        for chunk in chunks:
            chunk.ledger.reserve(chunk)
    settled: set[int] = set()
    for at in order:
        before = [chunks[0].ledger.watermark for chunks in files]
        settle(batches[at])
        settled.add(at)
        unsettled = [batch for i, batch in enumerate(batches) if i not in settled]
        after = [chunks[0].ledger.watermark for chunks in files]
        assert [safe_end(chunks, unsettled) for chunks in files] == after
        assert all(was <= now for was, now in zip(before, after, strict=True))
    for chunks in files:
        assert chunks[-1].end == chunks[0].ledger.watermark
        assert 0 == chunks[0].ledger.in_flight_bytes
        assert chunks == chunks[0].ledger.take_passed()


@given(st.data())
def test_watermark_is_the_end_of_the_settled_prefix(data: st.DataObject) -> None:
    """Whatever order acknowledgements arrive in, never pass an unsettled byte."""
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    ledger = Ledger(0, b"")
    chunks = chunks_of(ledger, *sizes)
    for chunk in chunks:
        holding([chunk])
        ledger.reserve(chunk)

    settled: set[Chunk] = set()
    for chunk in data.draw(st.permutations(chunks)):
        ledger.settle(chunk)
        settled.add(chunk)

        unsettled = next((c for c in chunks if c not in settled), None)
        expected = chunks[-1].end if unsettled is None else unsettled.start
        assert expected == ledger.watermark
        assert (b"%d" % expected if expected else b"") == ledger.mark[1]
        assert chunks[-1].end - expected == ledger.in_flight_bytes


# Which chunks, by file and position, have lines in which batch. Three files with two chunks each;
# every chunk but one is in more than one batch and every batch but one mixes files.
MIXED = (
    ((0, 0), (1, 0), (2, 0)),
    ((0, 0), (0, 1), (1, 0)),
    ((0, 1), (2, 0), (2, 1)),
    ((1, 0), (1, 1)),
    ((1, 1), (2, 1), (0, 0)),
    ((2, 1),),
)


def test_watermark_over_mixed_batches_in_every_order() -> None:
    """All 720 orders of six acknowledgements over three files, each step against the oracle."""
    for order in permutations(range(len(MIXED))):
        files = [chunks_of(Ledger(0, b""), 10 + n, 20 + n) for n in range(3)]
        batches = [holding([files[f][c] for f, c in held], p) for p, held in enumerate(MIXED)]
        settle_in_order(files, batches, list(order))


@given(st.data())
def test_watermark_over_twelve_partitions(data: st.DataObject) -> None:
    """A chunk's lines scatter over any of twelve batches; one of blank lines over none."""
    sizes = st.lists(st.integers(1, 50), min_size=1, max_size=4)
    files = [chunks_of(Ledger(0, b""), *data.draw(sizes)) for _ in range(3)]
    every = [chunk for chunks in files for chunk in chunks]
    scatter = st.lists(st.sets(st.sampled_from(range(PARTITIONS))), min_size=len(every),
                       max_size=len(every))  # fmt: skip
    scattered = list(zip(every, data.draw(scatter), strict=True))
    batches = [
        holding([chunk for chunk, partitions in scattered if p in partitions], p)
        for p in range(PARTITIONS)
    ]

    settle_in_order(files, batches, data.draw(st.permutations(range(PARTITIONS))))


def test_a_chunk_without_records_passes_at_once() -> None:
    """Blank lines are in no batch: nothing would ever settle them."""
    ledger = Ledger(100, b"before")
    blank = chunks_of(ledger, 5)[0]

    ledger.reserve(blank)

    assert (105, b"105") == (ledger.watermark, ledger.mark[1])


def test_a_chunk_without_records_waits_for_those_before_it() -> None:
    ledger = Ledger(0, b"")
    first, blank = chunks_of(ledger, 5, 5)
    holding([first])
    ledger.reserve(first)
    ledger.reserve(blank)
    assert 0 == ledger.watermark

    ledger.settle(first)

    assert 10 == ledger.watermark


def test_passed_chunks_are_handed_out_once() -> None:
    ledger = Ledger(0, b"")
    first, second = chunks_of(ledger, 5, 5)
    for chunk in (first, second):
        holding([chunk])
        ledger.reserve(chunk)

    ledger.settle(second)
    assert [] == ledger.take_passed()
    ledger.settle(first)

    assert [first, second] == ledger.take_passed()
    assert [] == ledger.take_passed()


def test_a_gap_is_a_bug_here_not_a_condition_to_survive() -> None:
    ledger = Ledger(0, b"")
    with pytest.raises(AssertionError, match="gap or overlap: expected 0, got 7"):
        ledger.reserve(Chunk(ledger, 7, 9, b"", 1))


def test_an_overlap_is_a_bug() -> None:
    ledger = Ledger(0, b"")
    ledger.reserve(Chunk(ledger, 0, 9, b"", 1))
    with pytest.raises(AssertionError, match="gap or overlap: expected 9, got 8"):
        ledger.reserve(Chunk(ledger, 8, 12, b"", 1))


def test_an_empty_chunk_is_a_bug() -> None:
    ledger = Ledger(3, b"")
    with pytest.raises(AssertionError, match="empty chunk at 3"):
        ledger.reserve(Chunk(ledger, 3, 3, b"", 1))


def test_settling_a_batch_twice_is_a_bug() -> None:
    ledger = Ledger(0, b"")
    (chunk,) = chunks_of(ledger, 5)
    batch = holding([chunk])
    ledger.reserve(chunk)
    settle(batch)

    with pytest.raises(AssertionError, match="chunk at 0 settled twice"):
        settle(batch)


@given(st.integers(0, 10_000), st.data())
def test_rows_of_the_spool_tile_by_records_whatever_their_bytes(
    head: int, data: st.DataObject
) -> None:
    """The watermark of a queue is the number of a record: what lies below it may be deleted."""
    sizes = st.tuples(st.integers(1, 500), st.integers(0, 300_000))
    ledger, rows, at = Ledger(head, b""), list[Row](), head
    for records, raw_bytes in data.draw(st.lists(sizes, min_size=1, max_size=12)):
        rows.append(Row(ledger, at, records, raw_bytes))
        assert (records, raw_bytes) == (rows[-1].lines, rows[-1].bytes)
        at += records
        holding([rows[-1]])
        ledger.reserve(rows[-1])

    unsettled = list(rows)
    for row in data.draw(st.permutations(rows)):
        ledger.settle(row)
        unsettled.remove(row)
        assert (unsettled[0].start if unsettled else at) == ledger.watermark

    assert rows == ledger.take_passed()


def test_a_chunk_of_a_file_weighs_its_bytes() -> None:
    ledger = Ledger(100, b"")

    assert 23 == Chunk(ledger, 100, 123, b"", lines=4).bytes


def test_a_row_without_records_is_a_bug() -> None:
    ledger = Ledger(3, b"")
    with pytest.raises(AssertionError, match="empty chunk at 3"):
        ledger.reserve(Row(ledger, 3, 0, 10))
