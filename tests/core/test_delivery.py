"""Delivery against a broker that behaves as Kafka does with an idempotent producer."""

from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from agent import wire
from agent.core import delivery as delivery_room
from agent.core.batch import Batch
from agent.core.breaker import Breaker, State
from agent.core.congestion import START
from agent.core.delivery import (
    ISOLATIONS_BURST,
    ISOLATIONS_PER_S,
    RATE_BURST_S,
    STALE_S,
    UNANSWERED,
    Action,
    Close,
    Connect,
    Delivery,
    Phase,
    Refuse,
    Send,
)
from agent.core.lanes import WINDOW
from agent.core.ledger import Chunk, Ledger
from agent.core.policy import BreakerPolicy, RetryPolicy
from tests.fakes import PLAIN, FakeClock, batch_of, chunks_of, moved

RETRY = RetryPolicy(attempts_max=2, backoff_s=1.0, backoff_max_s=20.0)
BREAKER = BreakerPolicy(failures_max=3, cooldown_s=30.0, ack_age_max_s=30.0)
RETIRE_S = 10.0
ABSENT_S = 15.0
GRAIN_S = 1e-4
"""More than a bucket adds so that a debt is surely paid, and than rounding makes of a date."""
TICK_S = 2 * delivery_room.GRAIN_S
BAD = b"bad"


def new_delivery(
    clock: FakeClock,
    *,
    retry: RetryPolicy = RETRY,
    breaker: BreakerPolicy = BREAKER,
    bytes_per_s_max: float | None = None,
    start_s: float = 0.0,
    absent_s: float = ABSENT_S,
    jitter: Callable[[], float] = lambda: 0.5,
) -> Delivery:
    return Delivery(
        retry,
        Breaker(breaker, clock.monotonic, jitter),
        split=partial(wire.split, codec=PLAIN),
        repartition=moved,
        retire_s=RETIRE_S,
        bytes_per_s_max=bytes_per_s_max,
        start_s=start_s,
        absent_s=absent_s,
        clock=clock.monotonic,
        jitter=jitter,
    )


def settle(batch: Batch) -> None:
    for chunk in batch.chunks:
        chunk.ledger.settle(chunk)


def within_rate(taken: list[tuple[float, float]], burst: float, per_s: float) -> bool:
    """Whether over each interval up to the last taking only the burst, the rate and that left."""
    (end_s, last), before = taken[-1], 0.0
    for begin_s, amount in reversed(taken[:-1]):
        before += amount
        if before > burst + per_s * (end_s - begin_s + GRAIN_S):
            return False
    return last >= 0


# ---- against a model of Kafka


class Out(NamedTuple):
    """A batch on its way, with what its producer stamped on it."""

    batch: Batch
    producer: int
    sequence: int
    partition: int
    sent_s: float


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


class Vain:
    """Lives of producers in a row without an answer, in all and of the worst partition."""

    def __init__(self) -> None:
        self.lives = 0
        self._of: defaultdict[int, int] = defaultdict(int)

    def answered(self, partition: int) -> None:
        self.lives = self._of[partition] = 0

    def closed(self, sent: set[int], answered: set[int], *, isolating: bool) -> None:
        self.lives += not isolating
        for partition in sent - answered:
            self._of[partition] += 1

    def sealed_anew(self) -> None:
        """Other batches than before: nobody has tried those."""
        self._of.clear()

    def reaches(self, attempts_max: int) -> bool:
        return max(self.lives, *self._of.values(), 0) >= attempts_max


class DeliveryProgram(RuleBasedStateMachine):
    """Any program of admissions, answers, failures and time; then Kafka becomes friendly."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.jitter = 0.5
        self.rate: float | None = None
        self.absent_at_s = ABSENT_S
        self.delivery = self.start()
        self.kafka = Kafka(partitions=4)
        self.producer = 0
        self.sequences: defaultdict[int, int] = defaultdict(int)
        self.pending: defaultdict[int, deque[Out]] = defaultdict(deque)
        self.late: defaultdict[int, deque[Out]] = defaultdict(deque)  # of producers closed since
        self.proven: set[int] = set()
        self.refused: set[int] = set()  # partitions, in this life
        self.sent: set[Batch] = set()  # by the living producer
        self.acked_s = 0.0
        self.stale_s = STALE_S  # of the living producer
        self.vain = Vain()
        self.bytes_sent: list[tuple[float, float]] = []
        self.isolations: list[tuple[float, float]] = []
        self.ledger = Ledger(0, b"")
        self.chunks: list[Chunk] = []
        self.admitted: defaultdict[int, list[bytes]] = defaultdict(list)
        self.fates: dict[bytes, str] = {}

    def start(self, start_s: float = 0.0) -> Delivery:
        self.absent_at_s = start_s + ABSENT_S
        return new_delivery(
            self.clock,
            bytes_per_s_max=self.rate,
            start_s=start_s,
            jitter=lambda: self.jitter,
        )

    @initialize(rate=st.sampled_from([None, 40.0, 400.0]), start_s=st.sampled_from([0.0, 5.0]))
    def configure(self, rate: float | None, start_s: float) -> None:
        self.rate = rate
        self.delivery = self.start(start_s)

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
        state = self.delivery.breaker.state
        assert state is not State.OPEN, "sent while nobody answers"
        assert state is State.CLOSED or not any(self.pending.values()), "a second probe"
        self.sent.add(batch)
        partition, now = batch.partition, self.clock.now
        sequence = self.sequences[partition]
        self.sequences[partition] += batch.count
        self.pending[partition].append(Out(batch, self.producer, sequence, partition, now))
        allowed = WINDOW if partition in self.proven else 1
        assert len(self.pending[partition]) <= allowed
        self.bytes_sent.append((now, len(batch.payload)))
        if self.rate is not None:
            assert within_rate(self.bytes_sent, self.rate * RATE_BURST_S, self.rate)

    def oldest_sent_s(self) -> float | None:
        return min((o.sent_s for outs in self.pending.values() for o in outs), default=None)

    def silence_s(self) -> float:
        """Return how long nothing was acked while something was out, the obvious way."""
        oldest_s = self.oldest_sent_s()
        return 0.0 if oldest_s is None else self.clock.now - max(oldest_s, self.acked_s)

    def settle(self, batch: Batch, fate: str) -> None:
        for record in wire.records(batch):
            assert record.value not in self.fates, "settled twice"
            self.fates[record.value] = fate
        settle(batch)

    def report(self, out: Out, answer: str, *, throttled: bool = False) -> None:
        if answer == "acked":
            self.proven.add(out.partition)
            self.vain.answered(out.partition)
            self.acked_s = self.clock.now
            actions = self.delivery.acked(out.batch, throttled=throttled)
            assert State.CLOSED is self.delivery.breaker.state
            self.settle(out.batch, answer)
            self.carry_out(actions)
        elif answer.startswith("refused"):
            self.refused.add(out.partition)
            self.vain.answered(out.partition)
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

    @rule(partition=PARTITIONS, throttled=st.booleans())
    def serve(self, partition: int, throttled: bool = False) -> None:
        if self.pending[partition]:
            out = self.pending[partition].popleft()
            self.report(out, self.kafka.answer(out), throttled=throttled)

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

    @precondition(lambda self: self.delivery.due_s is not None)
    @rule()
    def advance_until_due(self) -> None:
        assert self.delivery.due_s is not None
        self.clock.now = max(self.clock.now, self.delivery.due_s)
        self.tick()

    @precondition(lambda self: self.delivery.phase is not Phase.CLOSING)
    @rule(share=st.floats(0, 1))
    def advance_while_nothing_is_due(self, share: float) -> None:
        """To call ``tick`` early does no harm: it finds nothing to do."""
        due_s, before = self.delivery.due_s, (self.delivery.phase, self.delivery.breaker.state)
        span_s = 3600.0 if due_s is None else due_s - self.clock.now - TICK_S
        self.clock.now += max(0.0, share * span_s)
        assert due_s is None or due_s - TICK_S / 2 <= self.clock.now or not self.delivery.tick()
        assert before == (self.delivery.phase, self.delivery.breaker.state)

    @rule(jitter=st.floats(0, 1, exclude_max=True))
    def chance(self, jitter: float) -> None:
        self.jitter = jitter

    @precondition(lambda self: self.delivery.phase is Phase.CONNECTING)
    @rule()
    def connect(self) -> None:
        self.producer += 1
        self.sequences.clear()
        self.proven.clear()
        self.refused.clear()
        self.sent.clear()
        if any(b.partition >= self.kafka.partitions for b in self.delivery.batches()):
            self.vain.sealed_anew()
        self.stale_s = STALE_S * (1 + self.jitter)
        self.carry_out(self.delivery.connected(self.kafka.partitions))

    @precondition(lambda self: self.delivery.phase is Phase.CONNECTING)
    @rule()
    def fail_to_connect(self) -> None:
        self.vain.lives += 1
        self.carry_out(self.delivery.connect_failed("unreachable"))

    @precondition(lambda self: self.delivery.well)
    @rule()
    def renew(self) -> None:
        self.carry_out(self.delivery.renew())

    @precondition(lambda self: self.delivery.phase is Phase.CLOSING)
    @rule()
    def close(self) -> None:
        if self.delivery.renewing:
            assert not any(self.pending.values()), "what is out would go twice (invariant 5)"
            self.carry_out(self.delivery.closed())
            return
        for partition, outs in self.pending.items():
            self.late[partition].extend(outs)
        self.pending.clear()
        sent = {b.partition for b in self.sent}
        self.vain.closed(sent, self.proven | self.refused, isolating=bool(self.refused))
        if self.refused:
            self.isolations.append((self.clock.now, 1))
            assert within_rate(self.isolations, ISOLATIONS_BURST, ISOLATIONS_PER_S)
        self.carry_out(self.delivery.closed())

    @precondition(lambda self: self.kafka.partitions > 1)
    @rule(data=st.data())
    def make_topic_again_smaller(self, data: st.DataObject) -> None:
        self.kafka.partitions = data.draw(st.integers(1, self.kafka.partitions - 1))

    @invariant()
    def what_can_become_due_has_a_date_that_is_not_past_and_not_far(self) -> None:
        due_s, now = self.delivery.due_s, self.clock.now
        assert due_s is None or due_s >= now
        match self.delivery.phase:
            case Phase.DOWN:
                assert due_s is not None
                assert due_s - now <= max(RETRY.backoff_max_s, 2 * BREAKER.cooldown_s) + GRAIN_S
            case Phase.RETIRING:
                assert due_s is not None
                assert due_s - now <= RETIRE_S + GRAIN_S
            case Phase.LIVE:
                assert (due_s is not None) == (self.delivery.queued > 0)
                oldest_s = self.oldest_sent_s()
                if oldest_s is not None and due_s is not None:
                    assert now - oldest_s < self.stale_s
                    assert due_s - oldest_s <= self.stale_s + TICK_S
                    if self.delivery.breaker.state is not State.OPEN:
                        assert due_s - now <= BREAKER.ack_age_max_s - self.silence_s() + TICK_S
            case Phase.CONNECTING | Phase.CLOSING:
                assert due_s is None

    @invariant()
    def a_living_producer_finds_the_breaker_open_exactly_in_silence(self) -> None:
        assert self.silence_s() == self.delivery.silence_s()
        if self.delivery.phase is Phase.LIVE:
            silent = self.silence_s() >= BREAKER.ack_age_max_s
            assert silent == (self.delivery.breaker.state is State.OPEN)
            assert not silent or self.delivery.reason == UNANSWERED

    @invariant()
    def an_outage_is_lives_in_vain_a_kafka_never_seen_or_an_open_breaker(self) -> None:
        """The lives of all partitions, or of one; and only while there is no living producer."""
        live = self.delivery.phase is Phase.LIVE or self.delivery.renewing
        absent = not self.producer
        absent &= self.clock.now >= self.absent_at_s
        expected = self.delivery.breaker.state is State.OPEN
        if not live and not expected:
            expected = absent or self.vain.reaches(RETRY.attempts_max)
        assert expected == (self.delivery.outage is not None)

    @invariant()
    def the_client_waits_at_most_the_longest_backoff_and_a_half(self) -> None:
        assert 0.5 <= self.delivery.client_backoff_s() <= 0.5 + RETRY.backoff_max_s

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
            self.what_can_become_due_has_a_date_that_is_not_past_and_not_far()
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
                if waiting:
                    self.serve(waiting[0])
                else:
                    assert self.rate is not None, "something is queued and nothing is under way"
                    self.advance_until_due()


DeliveryProgram.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None
)
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

    clock.advance(STALE_S * 1.5 - 0.1)
    assert [] == delivery.tick()
    assert pytest.approx(STALE_S * 1.5) == delivery.due_s
    clock.advance(0.1)
    assert [Close()] == delivery.tick()

    delivery.closed()
    assert UNANSWERED == delivery.reason
    assert delivery.due_s is not None
    clock.now = delivery.due_s
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


def test_a_renewal_sends_nothing_until_all_is_answered_and_is_no_failure() -> None:
    """What is out when a producer ends goes again: so nothing is."""
    clock = FakeClock()
    delivery = live(clock)
    first, second = batch_of(b"a"), batch_of(b"b")
    assert [Send(first)] == delivery.admit(first)
    assert [] == delivery.renew()
    assert [] == delivery.admit(second)
    assert [Close()] == delivery.acked(first)
    assert [] == delivery.closed()
    assert clock.now == delivery.due_s
    assert [Connect()] == delivery.tick()
    assert delivery.renewing
    assert [Send(second)] == delivery.connected(4)
    assert not delivery.renewing
    assert delivery.outage is None


def test_a_renewal_that_finds_nobody_is_a_failure() -> None:
    delivery = live()
    assert [Close()] == delivery.renew()
    delivery.closed()
    delivery.tick()
    assert [] == delivery.connect_failed("unreachable")
    assert ("unreachable", False) == (delivery.reason, delivery.renewing)


def test_a_renewal_that_a_failure_overtakes_is_a_retirement() -> None:
    delivery = live()
    batch = batch_of(b"a")
    delivery.admit(batch)
    delivery.renew()
    assert [Close()] == delivery.failed(batch, "timeout")
    assert [] == delivery.closed()
    assert (Phase.DOWN, "timeout", False) == (delivery.phase, delivery.reason, delivery.renewing)
    assert [] == delivery.tick()


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
        settle(sent.batch)
        sends += delivery.acked(sent.batch)
    assert [[b"1", b"2"], [b"3", b"4", b"5"], [b"6"]] == arrived
    assert (5, 0) == (ledger.watermark, chunk.open_batches)


def test_a_smaller_topic_takes_over_what_was_bound_beyond_its_end() -> None:
    delivery = new_delivery(FakeClock())
    ledger = Ledger(0, b"")
    chunks = chunks_of(ledger, 10, 10, 10, 10)
    for chunk, partition in zip(chunks, (1, 5, 3, 5), strict=True):
        delivery.admit(batch_of(b"%d" % partition, partition=partition, chunks=[chunk]))
        ledger.reserve(chunk)
    delivery.tick()

    sends = delivery.connected(2)
    arrived = []
    while sends:
        (send, *sends) = sends
        assert isinstance(send, Send)
        arrived += [record.value for record in wire.records(send.batch)]
        assert 1 == send.batch.partition
        assert 0 == ledger.watermark, "nobody knows any more which batch holds which line"
        settle(send.batch)
        sends += delivery.acked(send.batch)

    assert [b"1", b"5", b"5", b"3"] == arrived
    assert 40 == ledger.watermark


def test_a_failed_try_to_connect_backs_off_and_says_why() -> None:
    clock = FakeClock()
    delivery = new_delivery(clock)
    delivery.tick()

    assert [] == delivery.connect_failed("unreachable")
    assert (Phase.DOWN, 0.5, "unreachable") == (delivery.phase, delivery.due_s, delivery.reason)
    clock.advance(0.45)
    assert [] == delivery.tick()
    clock.advance(0.05)
    assert [Connect()] == delivery.tick()


@given(st.integers(4, 200), st.floats(0, 1, exclude_max=True))
def test_waits_of_a_long_outage_are_a_cooldown(failures: int, jitter: float) -> None:
    """The breaker opens and each probe that fails costs a cooldown; nothing grows beyond it."""
    clock = FakeClock()
    delivery = new_delivery(clock, jitter=lambda: jitter)
    for n in range(1, failures + 1):
        assert [Connect()] == delivery.tick()
        delivery.connect_failed("unreachable")
        assert delivery.due_s is not None
        wait_s = delivery.due_s - clock.now
        if n < BREAKER.failures_max:
            assert wait_s < 2.0 ** (n - 1)
        else:
            assert pytest.approx(BREAKER.cooldown_s * (1 + jitter)) == wait_s
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
    assert delivery.due_s == clock.now + 0.5


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
    assert 0.5 == delivery.due_s


def test_silence_lasts_from_the_last_answer_or_from_the_oldest_batch_that_is_out() -> None:
    clock = FakeClock()
    delivery = live(clock)
    clock.advance(100.0)
    assert 0.0 == delivery.silence_s()
    first, second = batch_of(b"0", partition=0), batch_of(b"1", partition=1)
    delivery.admit(first)
    clock.advance(3.0)
    delivery.admit(second)
    clock.advance(1.0)
    assert 4.0 == delivery.silence_s()

    delivery.acked(first)
    assert 0.0 == delivery.silence_s()
    clock.advance(2.0)
    assert 2.0 == delivery.silence_s()
    delivery.acked(second)
    assert 0.0 == delivery.silence_s()


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
    """Sealed before the topic was made again with fewer."""
    delivery = live(partitions=4)
    (action,) = delivery.admit(batch := batch_of(b"a", partition=7))

    assert Send(batch) == action
    assert 3 == batch.partition


def wait_until_due(delivery: Delivery, clock: FakeClock) -> list[Action]:
    assert delivery.due_s is not None
    clock.now = max(clock.now, delivery.due_s)
    return delivery.tick()


# ---- silence, and a broker that is slow


SLOW_PARTITIONS = 2
SLOW_S = 0.999 * min(BREAKER.ack_age_max_s, STALE_S / (SLOW_PARTITIONS * WINDOW))
"""Between two answers: so each of all that can be out has one within ``STALE_S``."""


def test_silence_opens_the_breaker_and_leaves_what_is_out_to_its_producer() -> None:
    """It may deliver it yet, and then nothing goes twice."""
    clock = FakeClock()
    delivery = live(clock)
    pending, waiting, other = batch_of(b"1"), batch_of(b"2"), batch_of(b"3", partition=1)
    delivery.admit(pending)
    delivery.admit(waiting)
    assert BREAKER.ack_age_max_s == delivery.due_s

    clock.advance(BREAKER.ack_age_max_s)
    assert [] == delivery.tick()

    assert (Phase.LIVE, State.OPEN) == (delivery.phase, delivery.breaker.state)
    assert (UNANSWERED, STALE_S * 1.5) == (delivery.outage, delivery.due_s)
    assert [] == delivery.admit(other)
    clock.advance(BREAKER.cooldown_s * 1.5)
    assert [] == delivery.tick()


def test_the_first_answer_after_a_silence_lets_everything_go_on() -> None:
    clock = FakeClock()
    delivery = live(clock)
    pending, waiting, other = batch_of(b"1"), batch_of(b"2"), batch_of(b"3", partition=1)
    delivery.admit(pending)
    clock.advance(BREAKER.ack_age_max_s)
    delivery.tick()
    delivery.admit(waiting)
    delivery.admit(other)

    assert UNANSWERED == delivery.reason

    actions = delivery.acked(pending)

    assert State.CLOSED is delivery.breaker.state
    assert delivery.outage is delivery.reason is None
    left = {waiting, other}
    while actions:
        action = actions.pop(0)
        assert isinstance(action, Send)
        left.remove(action.batch)
        actions += delivery.acked(action.batch)
    assert not left


def probing(clock: FakeClock, *batches: Batch) -> tuple[Delivery, list[Action]]:
    """Return a delivery whose breaker is half open, and what it did when connected."""
    delivery = new_delivery(clock)
    for batch in batches:
        delivery.admit(batch)
    for _ in range(BREAKER.failures_max):
        delivery.tick()
        delivery.connect_failed("unreachable")
        assert delivery.due_s is not None
        clock.now = delivery.due_s
    assert [Connect()] == delivery.tick()
    assert State.HALF_OPEN is delivery.breaker.state
    return delivery, delivery.connected(4)


def test_a_probe_is_one_batch_and_its_answer_lets_the_rest_go() -> None:
    batches = [batch_of(b"a", partition=partition) for partition in range(4)]
    delivery, actions = probing(FakeClock(), *batches[:3])

    assert [Send(batches[0])] == actions
    assert [] == delivery.admit(batches[3])
    assert [Send(batch) for batch in batches[1:]] == delivery.acked(batches[0])


def test_a_probe_that_nobody_answers_opens_the_breaker_again() -> None:
    clock = FakeClock()
    delivery, _ = probing(clock, batch_of(b"a"))
    before = delivery.outage
    assert before is None, "the probe decides"

    clock.advance(BREAKER.ack_age_max_s)
    delivery.tick()

    assert (State.OPEN, UNANSWERED) == (delivery.breaker.state, delivery.outage)


def test_nothing_to_send_is_no_silence() -> None:
    clock = FakeClock()
    delivery = live(clock)
    proven(delivery)

    clock.advance(10 * STALE_S)

    assert [] == delivery.tick()
    assert (Phase.LIVE, None, None) == (delivery.phase, delivery.outage, delivery.due_s)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_a_batch_that_is_never_answered_ends_its_producer_though_others_are(
    jitter: float,
) -> None:
    """Its broker alone may be away. Nodes give up at different times, or they come as a herd."""
    clock = FakeClock()
    delivery = new_delivery(clock, jitter=lambda: jitter)
    delivery.tick()
    delivery.connected(4)
    delivery.admit(batch_of(b"stuck", partition=0))
    stale_s = STALE_S * (1 + jitter)
    while clock.now + 10.0 < stale_s:
        clock.advance(10.0)
        delivery.admit(other := batch_of(b"x", partition=1))
        delivery.acked(other)
        assert [] == delivery.tick()
    assert pytest.approx(stale_s) == delivery.due_s

    assert [Close()] == wait_until_due(delivery, clock)


@settings(max_examples=60)
@given(
    st.sampled_from([None, 60.0, 600.0]),
    st.lists(
        st.tuples(st.floats(0, SLOW_S), st.booleans(), st.integers(0, SLOW_PARTITIONS - 1)),
        min_size=1,
        max_size=60,
    ),
)
def test_a_slow_or_throttled_broker_is_never_a_failure(
    rate: float | None, answers: list[tuple[float, bool, int]]
) -> None:
    """No retirement, no open breaker, no outage, while each batch is answered in ``STALE_S``."""
    clock = FakeClock()
    delivery = new_delivery(clock, bytes_per_s_max=rate, jitter=lambda: 0.0)
    out: deque[Batch] = deque()

    def carry_out(actions: list[Action]) -> None:
        out.extend(action.batch for action in actions if isinstance(action, Send))
        assert Phase.LIVE is delivery.phase
        assert State.CLOSED is delivery.breaker.state
        assert delivery.outage is None

    def wait_until(end_s: float) -> None:
        while delivery.due_s is not None and delivery.due_s < end_s:
            clock.now = delivery.due_s
            carry_out(delivery.tick())
        clock.now = end_s
        carry_out(delivery.tick())

    delivery.tick()
    carry_out(delivery.connected(SLOW_PARTITIONS))
    for gap_s, throttled, first in answers:
        for n in range(SLOW_PARTITIONS):
            partition = (first + n) % SLOW_PARTITIONS
            carry_out(delivery.admit(batch_of(b"x" * 50, partition=partition)))
        if not out:
            assert delivery.due_s is not None, "nothing is out and nothing will be"
            wait_until(delivery.due_s)
        wait_until(clock.now + gap_s)
        carry_out(delivery.acked(out.popleft(), throttled=throttled))


def test_throttled_acknowledgements_shrink_what_may_be_out() -> None:
    """Down to one batch on all partitions; and it grows again when the broker has had its rest."""
    clock = FakeClock()
    delivery = live(clock, partitions=int(START))
    out = deque(batch_of(b"a", partition=p) for p in range(int(START)))
    for batch in out:
        delivery.admit(batch)

    def acknowledge(*, throttled: bool) -> None:
        clock.advance(0.1)
        batch = out.popleft()
        actions = delivery.admit(batch_of(b"b", partition=batch.partition))
        actions += delivery.acked(batch, throttled=throttled)
        out.extend(action.batch for action in actions if isinstance(action, Send))

    widths = []
    for _ in range(10):  # round trips
        for _ in range(len(out)):
            acknowledge(throttled=True)
        widths.append(len(out))
    assert sorted(widths, reverse=True) == widths
    assert 1 == widths[-1]

    for _ in range(200):
        acknowledge(throttled=False)
    assert len(out) > 10


# ---- the rate


@given(
    st.floats(100.0, 1e6),
    st.lists(st.tuples(st.integers(1, 2000), st.sampled_from(["", "ack", "wait", "due"])),
             min_size=1, max_size=40),
)  # fmt: skip
def test_batches_leave_at_the_rate_and_each_one_leaves(
    rate: float, steps: list[tuple[int, str]]
) -> None:
    """At most the rate, a burst of a second of it and one batch; and due when there is room."""
    clock = FakeClock()
    delivery = new_delivery(clock, bytes_per_s_max=rate)
    sent, out = list[tuple[float, float]](), deque[Batch]()

    def carry_out(actions: list[Action]) -> None:
        for action in actions:
            assert isinstance(action, Send)
            sent.append((clock.now, len(action.batch.payload)))
            out.append(action.batch)
            assert within_rate(sent, rate * RATE_BURST_S, rate)

    delivery.tick()
    carry_out(delivery.connected(4))
    for n, (length, then) in enumerate(steps):
        carry_out(delivery.admit(batch_of(b"x" * length, partition=n % 4)))
        if then == "ack" and out:
            carry_out(delivery.acked(out.popleft()))
        elif then == "wait":
            clock.advance(0.25)
            carry_out(delivery.tick())
        elif then == "due" and not out and delivery.due_s is not None:
            clock.now = delivery.due_s
            carry_out(delivery.tick())
    while delivery.queued:
        if out:
            carry_out(delivery.acked(out.popleft()))
        else:
            assert delivery.due_s is not None
            clock.now = delivery.due_s
            carry_out(delivery.tick())
            assert out, "due, and nothing left"
    assert len(steps) == len(sent)


# ---- outage


PATIENT = BreakerPolicy(failures_max=100, cooldown_s=30.0, ack_age_max_s=30.0)
"""So that only lives of producers count."""


@given(st.integers(1, 8), st.lists(st.booleans(), max_size=8))
def test_lives_in_a_row_without_an_acknowledgement_are_an_outage(
    attempts_max: int, connects: list[bool]
) -> None:
    """Whether it could not connect or connected in vain; and only while it is not connected."""
    clock = FakeClock()
    retry = RetryPolicy(attempts_max=attempts_max)
    delivery = new_delivery(clock, retry=retry, breaker=PATIENT, absent_s=1e9)
    batch = batch_of(b"a")
    delivery.admit(batch)
    for lives, connect in enumerate(connects):
        assert (lives >= attempts_max) == (delivery.outage is not None)
        wait_until_due(delivery, clock)
        if not connect:
            delivery.connect_failed("timeout")
            continue
        delivery.connected(4)
        assert delivery.outage is None, "it may be over: the next answer decides"
        delivery.failed(batch, "timeout")
        delivery.closed()
    assert (len(connects) >= attempts_max) == (delivery.outage == "timeout")

    wait_until_due(delivery, clock)
    delivery.connected(4)
    delivery.acked(batch)
    again = batch_of(b"b")
    delivery.admit(again)
    delivery.failed(again, "timeout")
    delivery.closed()
    assert (attempts_max == 1) == (delivery.outage is not None), "an acknowledgement forgets"


def test_a_partition_that_fails_life_after_life_is_an_outage_though_others_are_acked() -> None:
    """Its lines would hold the watermark of every file for ever."""
    clock = FakeClock()
    delivery = new_delivery(clock, breaker=PATIENT)
    unlucky = batch_of(b"a", partition=0)
    delivery.admit(unlucky)
    for life in range(RETRY.attempts_max):
        lucky = batch_of(b"%d" % life, partition=1)
        delivery.admit(lucky)
        assert delivery.outage is None
        wait_until_due(delivery, clock)
        delivery.connected(4)
        delivery.acked(lucky)
        delivery.failed(unlucky, "no_leader")
        delivery.closed()

    assert "no_leader" == delivery.outage


def test_a_kafka_that_never_was_there_is_an_outage_after_a_while() -> None:
    """It may be one attempt that hangs: nothing needs to fail for that."""
    clock = FakeClock()
    delivery = new_delivery(clock, start_s=5.0, absent_s=30.0)
    clock.advance(5.0)
    assert [Connect()] == delivery.tick()

    clock.advance(29.9)
    assert delivery.outage is None
    clock.advance(0.1)
    assert "connecting" == delivery.outage

    delivery.connected(4)
    assert delivery.outage is None


def test_a_kafka_that_was_there_once_is_not_absent() -> None:
    """One failed life of a producer is none of the reasons to give up waiting."""
    clock = FakeClock()
    delivery = live(clock)
    clock.advance(10 * ABSENT_S)
    batch = batch_of(b"a")
    delivery.admit(batch)
    delivery.failed(batch, "timeout")
    delivery.closed()

    assert (Phase.DOWN, None) == (delivery.phase, delivery.outage)


def test_an_open_breaker_is_an_outage() -> None:
    clock = FakeClock()
    hasty = BreakerPolicy(failures_max=1, cooldown_s=30.0, ack_age_max_s=30.0)
    delivery = new_delivery(clock, breaker=hasty)
    delivery.tick()
    delivery.connect_failed("unreachable")

    assert (State.OPEN, "unreachable") == (delivery.breaker.state, delivery.outage)


def test_it_connects_no_earlier_than_told() -> None:
    """Thousands of nodes that are rolled out at once would all connect at once."""
    clock = FakeClock()
    delivery = new_delivery(clock, start_s=7.0)

    assert 7.0 == delivery.due_s
    clock.advance(6.9)
    assert [] == delivery.tick()
    clock.advance(0.1)
    assert [Connect()] == delivery.tick()


def test_one_refused_record_among_many_is_no_outage() -> None:
    """Kafka answers each half: to find the record takes lives, but nothing waits in vain."""
    clock = FakeClock()
    delivery = live(clock)
    delivery.admit(batch_of(BAD, *(b"%d" % n for n in range(15))))
    for _ in range(5):  # 16 records, 8, 4, 2 and the one
        delivery.refused(delivery.batches()[0], "refused_invalid")
        delivery.closed()
        assert delivery.outage is None
        delivery.tick()
        delivery.connected(4)

    assert [b"0"] == [record.value for record in wire.records(delivery.batches()[0])]


# ---- what refusals and silence cost


@pytest.mark.parametrize("minutes", [1, 10])
def test_a_topic_that_refuses_everything_ends_so_many_producers_a_minute(minutes: int) -> None:
    clock = FakeClock()
    delivery = live(clock)
    isolations: list[tuple[float, float]] = []
    while clock.now < minutes * 60.0:
        delivery.admit(bad := batch_of(BAD))
        delivery.refused(bad, "refused_invalid")
        isolations.append((clock.now, 1))
        delivery.closed()
        assert within_rate(isolations, ISOLATIONS_BURST, ISOLATIONS_PER_S)
        assert [Connect()] == wait_until_due(delivery, clock)
        delivery.connected(4)

    expected = ISOLATIONS_BURST + ISOLATIONS_PER_S * 60 * minutes
    assert expected - 1 <= len(isolations) <= expected + 1


def test_the_one_among_many_is_found_without_a_wait() -> None:
    """A burst of isolations is as many as it takes to halve the largest batch to its records."""
    clock = FakeClock()
    delivery = live(clock)
    for n in range(ISOLATIONS_BURST - 1):
        delivery.admit(bad := batch_of(BAD))
        delivery.refused(bad, "refused_invalid")
        delivery.closed()
        assert clock.now == delivery.due_s, n
        delivery.tick()
        delivery.connected(4)


@given(st.lists(st.floats(0, STALE_S - 1), min_size=1), st.floats(0, 1, exclude_max=True))
def test_the_clients_own_waits_grow_with_the_silence_up_to_the_longest_backoff(
    silences: list[float], jitter: float
) -> None:
    clock = FakeClock()
    delivery = new_delivery(clock, jitter=lambda: jitter)
    delivery.tick()
    delivery.connected(4)
    delivery.admit(batch_of(b"a"))
    last_s = 0.0
    for silent_s in sorted(silences):
        clock.now = silent_s
        wait_s = delivery.client_backoff_s()
        assert last_s <= wait_s
        least_s, most_s = (
            0.5
            + (1 + jitter) / 2 * min(max(RETRY.backoff_s, share * silent_s), RETRY.backoff_max_s)
            for share in (0.5, 1.0)
        )
        assert least_s - GRAIN_S <= wait_s <= most_s + GRAIN_S
        last_s = wait_s
