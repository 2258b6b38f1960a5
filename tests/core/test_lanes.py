"""Lanes: batches of a partition leave and stay in order, and partitions take turns."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.core.batch import Batch
from agent.core.lanes import WINDOW, Lanes
from tests.fakes import batch_of

PARTITIONS = 4


class LanesProgram(RuleBasedStateMachine):
    """Any program of additions, turns, answers and ends of producers, against plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.partitions = PARTITIONS
        self.now_s = 0.0
        self.queues: defaultdict[int, list[Batch]] = defaultdict(list)
        self.taken: set[Batch] = set()  # by the living producer, and not acked
        self.out: dict[Batch, float] = {}
        self.proven: set[int] = set()
        self.attempts: defaultdict[int, int] = defaultdict(int)
        self.overtook: defaultdict[int, set[int]] = defaultdict(set)  # who went since one could go

    def next_of(self, partition: int) -> Batch | None:
        """Say the obvious way which batch of ``partition`` may go."""
        waiting = [b for b in self.queues[partition] if b not in self.taken]
        taken = len(self.queues[partition]) - len(waiting)
        allowed = WINDOW if partition in self.proven else 1
        return waiting[0] if waiting and taken < allowed else None

    def ready(self) -> dict[int, Batch]:
        found = {p: self.next_of(p) for p in list(self.queues)}
        return {p: batch for p, batch in found.items() if batch is not None}

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def add(self, partition: int) -> None:
        batch = batch_of(b"x", partition=partition % self.partitions)
        self.queues[batch.partition].append(batch)
        self.lanes.add(batch)

    @rule()
    def take(self) -> None:
        self.now_s += 1.0
        ready = self.ready()
        batch = self.lanes.take(self.now_s)
        if batch is None:
            assert not ready
            return
        assert ready[batch.partition] is batch
        for partition in ready.keys() - {batch.partition}:
            overtook = self.overtook[partition]
            assert batch.partition not in overtook, "it went twice while another one waited"
            overtook.add(batch.partition)
        self.overtook[batch.partition].clear()
        self.taken.add(batch)
        self.out[batch] = self.now_s

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(list(self.out)))
        assert self.out.pop(batch) == self.lanes.acked(batch)
        self.queues[batch.partition].remove(batch)
        self.taken.remove(batch)
        self.proven.add(batch.partition)
        self.attempts[batch.partition] = 0

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """It keeps its place, and is not taken again by the same producer."""
        batch = data.draw(st.sampled_from(list(self.out)))
        del self.out[batch]
        self.lanes.failed(batch)

    @rule()
    def end_producer(self) -> None:
        for partition in {batch.partition for batch in self.taken} - self.proven:
            self.attempts[partition] += 1
        self.taken.clear()
        self.out.clear()
        self.proven.clear()
        self.lanes.producer_gone()

    @precondition(lambda self: not self.taken and any(self.queues.values()))
    @rule(data=st.data(), parts=st.integers(0, 2))
    def replace(self, data: st.DataObject, parts: int) -> None:
        """Nothing, one or two in place of one: a refused record is let go, a batch is halved."""
        batch = data.draw(st.sampled_from([b for queue in self.queues.values() for b in queue]))
        others = [batch_of(b"y", partition=batch.partition) for _ in range(parts)]
        queue = self.queues[batch.partition]
        at = queue.index(batch)
        queue[at : at + 1] = others
        self.lanes.replace(batch, *others)

    @precondition(lambda self: not self.taken)
    @invariant()
    def who_cannot_go_waits_for_nobody(self) -> None:
        for partition in self.overtook.keys() - self.ready().keys():
            self.overtook[partition].clear()

    @invariant()
    def every_batch_is_there_in_order(self) -> None:
        batches = self.lanes.batches()
        for partition, queue in self.queues.items():
            assert queue == [batch for batch in batches if batch.partition == partition]
        assert len(batches) == self.lanes.queued == sum(map(len, self.queues.values()))

    @invariant()
    def what_is_out_is_counted_with_its_age(self) -> None:
        assert len(self.out) == self.lanes.out
        assert min(self.out.values(), default=None) == self.lanes.oldest_out_s

    @invariant()
    def at_most_the_window_is_out_and_unproven_partitions_send_one(self) -> None:
        for partition in range(PARTITIONS):
            out = sum(batch.partition == partition for batch in self.out)
            assert out <= (WINDOW if partition in self.proven else 1)

    @invariant()
    def the_most_unlucky_partition_says_how_many_lives_were_in_vain(self) -> None:
        assert max(self.attempts.values(), default=0) == self.lanes.attempts


LanesProgram.TestCase.settings = settings(max_examples=120, stateful_step_count=50)
TestLanesProgram = LanesProgram.TestCase


# ---- one rule a test


def lanes_of(*batches: Batch) -> Lanes:
    lanes = Lanes()
    for batch in batches:
        lanes.add(batch)
    return lanes


def take_all(lanes: Lanes) -> list[Batch]:
    taken = []
    while (batch := lanes.take(0.0)) is not None:
        taken.append(batch)
    return taken


def test_the_first_batch_goes_alone_until_its_partition_is_proven() -> None:
    """A broker that knows nothing of a producer takes any sequence, also that of the second."""
    batches = [batch_of(b"%d" % n) for n in range(4)]
    lanes = lanes_of(*batches)

    assert batches[:1] == take_all(lanes)
    lanes.acked(batches[0])
    assert batches[1:3] == take_all(lanes)
    lanes.producer_gone()
    assert batches[1:2] == take_all(lanes)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_partitions_that_have_enough_take_strict_turns(partitions: list[int]) -> None:
    """Nobody gets ahead by having more to send."""
    lanes = lanes_of(*(batch_of(b"x", partition=p) for p in partitions))
    taken: list[int] = []
    while (batch := lanes.take(0.0)) is not None:
        taken.append(batch.partition)
        lanes.acked(batch)

    assert sorted(partitions) == sorted(taken)
    left = {p: partitions.count(p) for p in partitions}
    while taken:
        turn, taken = taken[: len(left)], taken[len(left) :]
        assert set(left) == set(turn)
        left = {p: n - 1 for p, n in left.items() if n > 1}


def test_a_failed_batch_keeps_its_place_for_the_next_producer() -> None:
    first, second = batch_of(b"1"), batch_of(b"2")
    lanes = lanes_of(first, second)
    lanes.take(0.0)

    lanes.failed(first)

    assert (0, 2, None) == (lanes.out, lanes.queued, lanes.take(1.0))
    lanes.producer_gone()
    assert first is lanes.take(2.0)


def test_an_acknowledgement_out_of_turn_leaves_the_others_in_order() -> None:
    """The first of two has failed; the second was on the wire and has arrived."""
    batches = [batch_of(b"%d" % n) for n in range(4)]
    lanes = lanes_of(*batches)
    lanes.acked(take_all(lanes)[0])
    take_all(lanes)

    lanes.failed(batches[1])
    lanes.acked(batches[2])

    assert [batches[1], batches[3]] == lanes.batches()


@pytest.mark.parametrize(
    ("sent", "acked", "attempts"), [(False, False, 0), (True, False, 1), (True, True, 0)]
)
def test_a_life_counts_when_something_was_sent_and_nothing_acked(
    sent: bool, acked: bool, attempts: int
) -> None:
    batch, after = batch_of(b"1"), batch_of(b"2")
    lanes = lanes_of(batch, after)
    if sent:
        lanes.take(0.0)
    if acked:
        lanes.acked(batch)
        lanes.take(0.0)

    lanes.producer_gone()

    assert attempts == lanes.attempts


def test_a_partition_that_fails_life_after_life_counts_though_others_are_acked() -> None:
    unlucky = batch_of(b"x", partition=0)
    lanes = lanes_of(unlucky)
    for life in range(1, 4):
        lucky = batch_of(b"y", partition=1)
        lanes.add(lucky)
        take_all(lanes)
        lanes.acked(lucky)
        lanes.failed(unlucky)
        lanes.producer_gone()
        assert life == lanes.attempts

    lanes.take(0.0)
    lanes.acked(unlucky)

    assert 0 == lanes.attempts


def test_what_was_never_sent_cannot_come_back() -> None:
    batch = batch_of(b"1")
    lanes = lanes_of(batch)

    with pytest.raises(KeyError):
        lanes.acked(batch)


def test_to_replace_while_something_is_out_is_a_bug() -> None:
    """The living producer would send what comes after before what was put in."""
    batch = batch_of(b"1")
    lanes = lanes_of(batch)
    lanes.take(0.0)

    with pytest.raises(AssertionError):
        lanes.replace(batch)
