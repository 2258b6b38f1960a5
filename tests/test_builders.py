"""When an open batch is sealed: at once where nobody else comes, with others where others do."""

import pytest

from agent import wire
from agent.builders import Builders
from agent.core.batch import Pace
from agent.core.ledger import Ledger
from agent.core.policy import BatchPolicy
from tests.fakes import PLAIN, FakeTopic, chunks_of

WINDOW_S = BatchPolicy().age_min_s


def builders() -> Builders:
    topic = FakeTopic(partitions=12, message_bytes_max=1 << 20)
    pace = Pace(BatchPolicy())
    return Builders(lambda: topic, PLAIN, pace, bytes_max=1 << 18, partitioner="crc32")


def add(to: Builders, now_s: float) -> None:
    (chunk,) = chunks_of(Ledger(0, b""), 1)
    to.begin()
    (run,) = wire.runs([(0, b"key", b"{}", [])])
    to.add(chunk, run, now_s)


def left(of: Builders, now_s: float, *, quiet: bool = True) -> int:
    of.seal_due(now_s, quiet=quiet)
    return len(of.take())


def test_a_first_line_after_a_silence_leaves_at_once() -> None:
    under_test = builders()
    add(under_test, 5.0)

    assert 1 == left(under_test, 5.0)
    assert WINDOW_S == pytest.approx(under_test.rest_in_s(5.0))


def test_a_line_behind_it_waits_for_the_rest_of_the_window_and_others_leave_with_it() -> None:
    under_test = builders()
    add(under_test, 5.0)
    assert 1 == left(under_test, 5.0)
    add(under_test, 5.0 + 0.2 * WINDOW_S)
    add(under_test, 5.0 + 0.8 * WINDOW_S)

    assert 0 == left(under_test, 5.0 + 0.9 * WINDOW_S)
    assert 0.1 * WINDOW_S == pytest.approx(under_test.due_in_s(5.0 + 0.9 * WINDOW_S))
    assert 1 == left(under_test, 5.0 + 1.1 * WINDOW_S)


def test_while_more_is_there_to_be_read_a_batch_has_its_whole_window() -> None:
    """Under a backlog it would leave with a line."""
    under_test = builders()
    add(under_test, 5.0)

    assert 0 == left(under_test, 5.0, quiet=False)
    assert 0 == left(under_test, 5.0 + 0.9 * WINDOW_S, quiet=False)
    assert 1 == left(under_test, 5.0 + 1.1 * WINDOW_S, quiet=False)


def test_where_nothing_is_open_nothing_is_due() -> None:
    assert builders().due_in_s(5.0) is None
    assert 0.0 == builders().rest_in_s(5.0)
