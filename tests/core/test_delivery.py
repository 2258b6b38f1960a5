"""Delivery against a broker that behaves as Kafka does with an idempotent producer."""

from collections import defaultdict, deque
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent import wire
from agent.core.batch import Batch
from agent.core.breaker import Breaker, State
from agent.core.delivery import (
    STALE_S,
    WINDOW,
    Action,
    Close,
    Connect,
    Delivery,
    Phase,
    Refuse,
    Send,
)
from agent.core.ledger import Chunk, Ledger
from agent.core.policy import BreakerPolicy, RetryPolicy
from tests.fakes import PLAIN, FakeClock, batch_of, chunks_of

RETRY = RetryPolicy(backoff_s=1.0, backoff_max_s=20.0)
BREAKER = BreakerPolicy(failures_max=3, cooldown_s=30.0)
RETIRE_S = 10.0
BAD = b"bad"


def new_delivery(clock: FakeClock) -> Delivery:
    return Delivery(
        RETRY,
        Breaker(BREAKER, clock.monotonic),
        split=partial(wire.split, codec=PLAIN),
        retire_s=RETIRE_S,
        clock=clock.monotonic,
        jitter=lambda: 0.5,
    )


# ---- against a model of Kafka


class Out(NamedTuple):
    """A batch on its way, with what its producer stamped on it."""

    batch: Batch
    producer: int
    sequence: int
    partition: int


class Kafka:
    """Partitions that remember, of each producer they have a batch of, its next sequence."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.logs: defaultdict[int, list[bytes]] = defaultdict(list)
        self._next: dict[tuple[int, int], int] = {}

    def answer(self, out: Out) -> str:
        """Append ``out`` or say why not."""
        if out.partition >= self.partitions:
            return "topic_changed"
        known = self._next.get((out.producer, out.partition))
        if known is not None and known != out.sequence:
            return "sequence"
        values = [record.value for record in wire.records(out.batch)]
        if any(value.startswith(BAD) for value in values):
            return "refused_invalid"
        self._next[out.producer, out.partition] = out.sequence + len(values)
        self.logs[out.partition] += values
        return "acked"


PARTITIONS = st.integers(0, 3)


class DeliveryProgram(RuleBasedStateMachine):
    """Any program of admissions, answers, failures and time; then Kafka becomes friendly."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.delivery = new_delivery(self.clock)
        self.kafka = Kafka(partitions=4)
        self.producer = 0
        self.sequences: defaultdict[int, int] = defaultdict(int)
        self.pending: defaultdict[int, deque[Out]] = defaultdict(deque)
        self.late: defaultdict[int, deque[Out]] = defaultdict(deque)  # of producers closed since
        self.proven: set[int] = set()
        self.sent: set[Batch] = set()  # by the living producer
        self.ledger = Ledger(0, b"")
        self.chunks: list[Chunk] = []
        self.admitted: defaultdict[int, list[bytes]] = defaultdict(list)
        self.fates: dict[bytes, str] = {}

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect():
                    assert Phase.CONNECTING is self.delivery.phase
                case Close():
                    assert Phase.CLOSING is self.delivery.phase
                case Send(batch):
                    self.send(batch)
                case Refuse(batch, reason):
                    assert 1 == batch.count, "a whole batch was refused for one record"
                    self.settle(batch, reason)

    def send(self, batch: Batch) -> None:
        assert Phase.LIVE is self.delivery.phase
        assert batch not in self.sent, "sent twice while its producer lives (invariant 5)"
        self.sent.add(batch)
        partition = batch.partition
        sequence = self.sequences[partition]
        self.sequences[partition] += batch.count
        self.pending[partition].append(Out(batch, self.producer, sequence, partition))
        allowed = WINDOW if partition in self.proven else 1
        assert len(self.pending[partition]) <= allowed

    def settle(self, batch: Batch, fate: str) -> None:
        for record in wire.records(batch):
            assert record.value not in self.fates, "settled twice"
            self.fates[record.value] = fate
        batch.settle()

    def report(self, out: Out, answer: str) -> None:
        if answer == "acked":
            self.proven.add(out.partition)
            actions = self.delivery.acked(out.batch)
            self.settle(out.batch, answer)
            self.carry_out(actions)
        elif answer.startswith("refused"):
            self.carry_out(self.delivery.refused(out.batch, answer))
        else:
            self.carry_out(self.delivery.failed(out.batch, answer))

    def tick(self) -> None:
        self.carry_out(self.delivery.tick())

    @rule(partition=PARTITIONS, bad=st.lists(st.sampled_from([False] * 4 + [True]), min_size=1,
                                             max_size=5))  # fmt: skip
    def admit(self, partition: int, bad: list[bool]) -> None:
        first = sum(len(values) for values in self.admitted.values())
        values = [b"%s%d" % (BAD if b else b"ok", first + n) for n, b in enumerate(bad)]
        start = self.chunks[-1].end if self.chunks else 0
        chunk = Chunk(self.ledger, start, start + len(bad), b"", len(bad))
        batch = batch_of(*values, partition=partition, chunks=[chunk])
        self.ledger.reserve(chunk)
        self.chunks.append(chunk)
        self.admitted[partition] += values
        self.carry_out(self.delivery.admit(batch))

    @rule(partition=PARTITIONS)
    def serve(self, partition: int) -> None:
        if self.pending[partition]:
            out = self.pending[partition].popleft()
            self.report(out, self.kafka.answer(out))

    @rule(partition=PARTITIONS, appended=st.booleans())
    def fail(self, partition: int, appended: bool) -> None:
        """The broker could not, or only its answer was lost."""
        if self.pending[partition]:
            out = self.pending[partition].popleft()
            if appended:
                self.kafka.answer(out)
            self.report(out, "timeout")

    @rule(partition=PARTITIONS)
    def serve_late(self, partition: int) -> None:
        """What a closed producer had on the wire arrives; nobody is told."""
        if self.late[partition]:
            self.kafka.answer(self.late[partition].popleft())

    @rule(seconds=st.sampled_from([0.125, 1.0, 9.5, 30.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.tick()

    @precondition(lambda self: self.delivery.phase is Phase.DOWN)
    @rule()
    def advance_until_due(self) -> None:
        assert self.delivery.due_s is not None
        self.clock.now = max(self.clock.now, self.delivery.due_s)
        self.tick()

    @precondition(lambda self: self.delivery.phase is Phase.CONNECTING)
    @rule()
    def connect(self) -> None:
        self.producer += 1
        self.sequences.clear()
        self.proven.clear()
        self.sent.clear()
        self.carry_out(self.delivery.connected(self.kafka.partitions))

    @precondition(lambda self: self.delivery.phase is Phase.CONNECTING)
    @rule()
    def fail_to_connect(self) -> None:
        self.carry_out(self.delivery.connect_failed("unreachable"))

    @precondition(lambda self: self.delivery.phase is Phase.CLOSING)
    @rule()
    def close(self) -> None:
        for partition, outs in self.pending.items():
            self.late[partition].extend(outs)
        self.pending.clear()
        self.carry_out(self.delivery.closed())

    @precondition(lambda self: self.kafka.partitions > 1)
    @rule(data=st.data())
    def make_topic_again_smaller(self, data: st.DataObject) -> None:
        self.kafka.partitions = data.draw(st.integers(1, self.kafka.partitions - 1))

    @invariant()
    def waits_are_bounded(self) -> None:
        due_s = self.delivery.due_s
        if self.delivery.phase is Phase.DOWN:
            assert due_s is not None
            bound_s = max(RETRY.backoff_max_s, BREAKER.cooldown_s)
            assert due_s - self.clock.now <= bound_s
        elif self.delivery.phase is Phase.RETIRING:
            assert due_s is not None
            assert due_s - self.clock.now <= RETIRE_S
        else:
            assert due_s is None

    @invariant()
    def no_byte_of_unknown_fate_is_passed(self) -> None:
        """Invariant 1, with the real ledger: the records below the watermark have a fate."""
        open_at = next((c.start for c in self.chunks if c.open_batches), None)
        assert self.ledger.watermark == (
            open_at if open_at is not None else (self.chunks[-1].end if self.chunks else 0)
        )
        assert self.ledger.watermark <= len(self.fates)

    @invariant()
    def first_deliveries_keep_the_order_of_admission(self) -> None:
        """Also where a smaller topic moved them: what was bound for one partition stays sorted."""
        bound_for = {v: p for p, values in self.admitted.items() for v in values}
        for log in self.kafka.logs.values():
            firsts: defaultdict[int, list[bytes]] = defaultdict(list)
            for value in dict.fromkeys(log):
                firsts[bound_for[value]].append(value)
            for partition, values in firsts.items():
                arrived = set(values)
                assert [v for v in self.admitted[partition] if v in arrived] == values

    def teardown(self) -> None:
        """Kafka becomes friendly: everything has one fate, after boundedly many steps."""
        for _ in range(2000):
            if not self.delivery.queued:
                break
            self.step_friendly()
            self.waits_are_bounded()
            self.first_deliveries_keep_the_order_of_admission()
        assert 0 == self.delivery.queued
        expected = {
            value: "refused_invalid" if value.startswith(BAD) else "acked"
            for values in self.admitted.values()
            for value in values
        }
        assert expected == self.fates
        delivered = {value for log in self.kafka.logs.values() for value in log}
        assert {value for value, fate in expected.items() if fate == "acked"} == delivered
        assert {0} >= {chunk.open_batches for chunk in self.chunks}
        assert 0 == self.ledger.in_flight_bytes

    def step_friendly(self) -> None:
        match self.delivery.phase:
            case Phase.DOWN:
                self.advance_until_due()
            case Phase.CONNECTING:
                self.connect()
            case Phase.CLOSING:
                self.close()
            case Phase.LIVE | Phase.RETIRING:
                waiting = [partition for partition, outs in self.pending.items() if outs]
                assert waiting, "something is queued and nothing is under way"
                self.serve(waiting[0])


DeliveryProgram.TestCase.settings = settings(max_examples=120, stateful_step_count=40)
TestDeliveryProgram = DeliveryProgram.TestCase


# ---- one transition a test


def live(clock: FakeClock | None = None, partitions: int = 4) -> Delivery:
    delivery = new_delivery(clock or FakeClock())
    assert [Connect()] == delivery.tick()
    assert [] == delivery.connected(partitions)
    return delivery


def proven(delivery: Delivery) -> None:
    first = batch_of(b"first")
    delivery.admit(first)
    delivery.acked(first)


def test_connects_at_once_and_only_once() -> None:
    delivery = new_delivery(FakeClock())

    assert [[Connect()], []] == [delivery.tick(), delivery.tick()]
    assert Phase.CONNECTING is delivery.phase


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.LIVE])
def test_nothing_is_sent_but_while_live(phase: Phase) -> None:
    delivery = live()
    delivery.phase = phase

    assert [] == delivery.admit(batch_of(b"a"))
    assert 1 == delivery.queued


def test_what_waited_is_sent_when_connected() -> None:
    delivery = new_delivery(FakeClock())
    here, there = batch_of(b"a", partition=0), batch_of(b"b", partition=1)
    delivery.admit(here)
    delivery.admit(there)
    delivery.tick()

    assert [Send(here), Send(there)] == delivery.connected(4)


def test_the_first_batch_of_a_partition_goes_alone() -> None:
    """A broker that knows nothing of a producer takes any sequence, also that of the second."""
    delivery = live()
    batches = [batch_of(b"%d" % n) for n in range(4)]

    assert [Send(batches[0])] == delivery.admit(batches[0])
    assert [] == [action for batch in batches[1:] for action in delivery.admit(batch)]
    assert [Send(batches[1]), Send(batches[2])] == delivery.acked(batches[0])
    assert [Send(batches[3])] == delivery.acked(batches[1])


def test_partitions_do_not_wait_for_each_other() -> None:
    delivery = live()
    batches = [batch_of(b"a", partition=partition) for partition in range(4)]

    assert [[Send(batch)] for batch in batches] == [delivery.admit(batch) for batch in batches]


def test_a_new_producer_proves_itself_again() -> None:
    clock = FakeClock()
    delivery = live(clock)
    proven(delivery)
    second, third = batch_of(b"2"), batch_of(b"3")
    assert [Send(second)] == delivery.admit(second)
    assert [Send(third)] == delivery.admit(third)
    delivery.failed(second, "timeout")
    delivery.failed(third, "sequence")
    delivery.closed()
    clock.advance(1.0)
    delivery.tick()

    assert [Send(second)] == delivery.connected(4)


def test_a_failure_waits_for_what_else_is_pending_and_closes() -> None:
    clock = FakeClock()
    delivery = live(clock)
    failing, slow, late = (batch_of(b"%d" % p, partition=p) for p in range(3))
    delivery.admit(failing)
    delivery.admit(slow)

    assert [] == delivery.failed(failing, "timeout")
    assert (Phase.RETIRING, RETIRE_S) == (delivery.phase, delivery.due_s)
    assert [] == delivery.admit(late)

    assert [Close()] == delivery.acked(slow)
    assert Phase.CLOSING is delivery.phase


def test_an_overdue_retirement_closes_hard() -> None:
    clock = FakeClock()
    delivery = live(clock)
    failing, stuck = batch_of(b"0", partition=0), batch_of(b"1", partition=1)
    delivery.admit(failing)
    delivery.admit(stuck)
    delivery.failed(failing, "timeout")

    clock.advance(RETIRE_S - 0.1)
    assert [] == delivery.tick()
    clock.advance(0.1)
    assert [Close()] == delivery.tick()
    assert [] == delivery.tick()

    delivery.closed()
    clock.advance(1.0)
    delivery.tick()
    assert [Send(failing), Send(stuck)] == delivery.connected(4)


def test_a_producer_that_nobody_answers_is_given_up_in_the_end() -> None:
    """With every broker away nothing ever fails, and aiokafka asks no address but those it knew."""
    clock = FakeClock()
    delivery = live(clock)
    batch = batch_of(b"a")
    delivery.admit(batch)

    clock.advance(STALE_S)
    assert [] == delivery.tick()
    clock.advance(0.1)
    assert [Close()] == delivery.tick()

    delivery.closed()
    assert "unanswered" == delivery.reason
    clock.advance(1.0)
    assert [Connect()] == delivery.tick()
    assert [Send(batch)] == delivery.connected(4)


def test_a_second_failure_does_not_stretch_the_retirement() -> None:
    clock = FakeClock()
    delivery = live(clock)
    batches = [batch_of(b"a", partition=partition) for partition in range(3)]
    for batch in batches:
        delivery.admit(batch)
    delivery.failed(batches[0], "timeout")
    clock.advance(4.0)
    delivery.failed(batches[1], "sequence")

    assert (RETIRE_S, "timeout") == (delivery.due_s, delivery.reason)


def test_an_answer_between_close_and_closed_still_counts() -> None:
    """Overdue, and acknowledged before the caller got around to closing: it is not sent again."""
    clock = FakeClock()
    delivery = live(clock)
    failing, slow, refused = (batch_of(b"%d" % p, partition=p) for p in range(3))
    for batch in (failing, slow, refused):
        delivery.admit(batch)
    delivery.failed(failing, "timeout")
    clock.advance(RETIRE_S)
    assert [Close()] == delivery.tick()

    assert [] == delivery.acked(slow)
    assert [] == delivery.refused(refused, "refused_invalid")

    assert [Refuse(refused, "refused_invalid")] == delivery.closed()
    assert 1 == delivery.queued


def test_a_late_answer_after_closed_is_the_callers_matter() -> None:
    """The future of a closed producer means nothing: to report it is a bug of the caller."""
    clock = FakeClock()
    delivery = live(clock)
    failing, stuck = batch_of(b"0", partition=0), batch_of(b"1", partition=1)
    delivery.admit(failing)
    delivery.admit(stuck)
    delivery.failed(failing, "timeout")
    clock.advance(RETIRE_S)
    delivery.tick()
    delivery.closed()

    with pytest.raises(KeyError):
        delivery.acked(stuck)
    assert 2 == delivery.queued


def test_a_refused_record_alone_is_refused_and_the_next_try_is_at_once() -> None:
    """Kafka answered, so there is nothing to wait for and nothing to count as a failure."""
    clock = FakeClock()
    delivery = live(clock)
    bad = batch_of(b"bad")
    delivery.admit(bad)

    assert [Close()] == delivery.refused(bad, "refused_too_large")
    assert [Refuse(bad, "refused_too_large")] == delivery.closed()
    assert (0, clock.now) == (delivery.queued, delivery.due_s)
    assert State.CLOSED is delivery.breaker.state
    assert [Connect()] == delivery.tick()


def test_a_refused_batch_is_halved_in_place() -> None:
    delivery = live()
    proven(delivery)
    ledger = Ledger(0, b"")
    (chunk,) = chunks_of(ledger, 5)
    whole = batch_of(b"1", b"2", b"3", b"4", b"5", chunks=[chunk])
    ledger.reserve(chunk)
    after = batch_of(b"6")
    delivery.admit(whole)
    delivery.admit(after)
    delivery.refused(whole, "refused_invalid")
    delivery.failed(after, "sequence")

    assert [] == delivery.closed()
    assert 2 == chunk.open_batches

    assert [Connect()] == delivery.tick()
    arrived: list[list[bytes]] = []
    sends = delivery.connected(4)
    while sends:
        sent = sends.pop(0)
        assert isinstance(sent, Send)
        arrived.append([record.value for record in wire.records(sent.batch)])
        sent.batch.settle()
        sends += delivery.acked(sent.batch)
    assert [[b"1", b"2"], [b"3", b"4", b"5"], [b"6"]] == arrived
    assert (5, 0) == (ledger.watermark, chunk.open_batches)


def test_a_smaller_topic_takes_over_what_was_bound_beyond_its_end() -> None:
    delivery = new_delivery(FakeClock())
    batches = [batch_of(b"%d" % p, partition=p) for p in (1, 5, 3, 5)]
    for batch in batches:
        delivery.admit(batch)
    delivery.tick()

    assert [Send(batches[0])] == delivery.connected(2)
    assert [1, 1, 1, 1] == [batch.partition for batch in batches]
    assert [Send(batches[2]), Send(batches[1])] == delivery.acked(batches[0])
    assert [Send(batches[3])] == delivery.acked(batches[2])


def test_a_failed_try_to_connect_backs_off_and_says_why() -> None:
    clock = FakeClock()
    delivery = new_delivery(clock)
    delivery.tick()

    assert [] == delivery.connect_failed("unreachable")
    assert (Phase.DOWN, 0.75, "unreachable") == (delivery.phase, delivery.due_s, delivery.reason)
    clock.advance(0.7)
    assert [] == delivery.tick()
    clock.advance(0.05)
    assert [Connect()] == delivery.tick()


@given(st.integers(4, 200), st.floats(0, 1, exclude_max=True))
def test_waits_of_a_long_outage_are_a_cooldown(failures: int, jitter: float) -> None:
    """The breaker opens and each probe that fails costs a cooldown; nothing grows beyond it."""
    clock = FakeClock()
    delivery = new_delivery(clock)
    delivery._jitter = lambda: jitter
    for n in range(1, failures + 1):
        assert [Connect()] == delivery.tick()
        delivery.connect_failed("unreachable")
        assert delivery.due_s is not None
        wait_s = delivery.due_s - clock.now
        if n < BREAKER.failures_max:
            assert wait_s <= 2.0 ** (n - 1)
        else:
            assert pytest.approx(BREAKER.cooldown_s) == wait_s
        clock.now = delivery.due_s


def test_an_acknowledgement_forgets_the_failures() -> None:
    clock = FakeClock()
    delivery = new_delivery(clock)
    for _ in range(BREAKER.failures_max):
        delivery.tick()
        delivery.connect_failed("unreachable")
        assert delivery.due_s is not None
        clock.now = delivery.due_s
    delivery.tick()
    delivery.connected(4)
    assert delivery.breaker.wait_s() > 0, "the probe is out"

    proven(delivery)

    assert State.CLOSED is delivery.breaker.state
    assert delivery.reason is None
    failing = batch_of(b"x")
    delivery.admit(failing)
    delivery.failed(failing, "timeout")
    delivery.closed()
    assert delivery.due_s == clock.now + 0.75


def test_a_failed_life_counts_once_however_many_batches_failed() -> None:
    clock = FakeClock()
    delivery = live(clock)
    batches = [batch_of(b"a", partition=partition) for partition in range(4)]
    for batch in batches:
        delivery.admit(batch)
    for batch in batches:
        delivery.failed(batch, "no_leader")
    delivery.closed()

    assert State.CLOSED is delivery.breaker.state
    assert 0.75 == delivery.due_s


def test_the_oldest_pending_batch_is_what_is_waited_for() -> None:
    clock = FakeClock()
    delivery = live(clock)
    assert 0.0 == delivery.oldest_pending_s()
    first, second = batch_of(b"0", partition=0), batch_of(b"1", partition=1)
    delivery.admit(first)
    clock.advance(3.0)
    delivery.admit(second)
    clock.advance(1.0)
    assert 4.0 == delivery.oldest_pending_s()

    delivery.acked(first)

    assert 1.0 == delivery.oldest_pending_s()


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.CONNECTING])
def test_connected_when_nobody_asked_is_a_bug(phase: Phase) -> None:
    delivery = live()
    delivery.phase = phase

    with pytest.raises(AssertionError):
        delivery.connected(4)
    with pytest.raises(AssertionError):
        delivery.connect_failed("unreachable")


def test_closed_when_nobody_asked_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        live().closed()


def test_an_answer_to_what_was_never_sent_is_a_bug() -> None:
    delivery = live()
    waiting = batch_of(b"2")
    delivery.admit(batch_of(b"1"))
    delivery.admit(waiting)

    with pytest.raises(KeyError):
        delivery.acked(waiting)


def test_a_batch_sealed_for_a_partition_that_is_gone_takes_the_place_it_has_now() -> None:
    """Sealed, or put by, before the topic was made again with fewer."""
    delivery = live(partitions=4)
    (action,) = delivery.admit(batch := batch_of(b"a", partition=7))

    assert Send(batch) == action
    assert 3 == batch.partition
