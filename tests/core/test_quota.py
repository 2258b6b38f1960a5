"""In flight: what was read and is not safe yet. The bucket: how much a second may leave."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.ledger import Chunk, Ledger, Row
from agent.core.policy import MIB, ClientQuotaPolicy, InFlightPolicy
from agent.core.quota import BUCKETS_KEPT, Allowances, Bucket, ClientLimits, InFlight
from tests.fakes import FakeClock

POLICY = InFlightPolicy(events_max=100, bytes_max=MIB)


def chunk(length: int, lines: int) -> Chunk:
    return Chunk(Ledger(0, b""), 1000, 1000 + length, b"", lines)


@pytest.mark.parametrize(
    ("length", "lines", "full"),
    [(500, 99, False), (500, 100, True), (MIB - 1, 1, False), (MIB, 1, True), (2 * MIB, 0, True)],
)
def test_either_bound_ends_reading(length: int, lines: int, full: bool) -> None:
    in_flight = InFlight(POLICY)
    in_flight.add(chunk(length, lines))

    assert full is in_flight.full


def test_there_is_room_again_once_a_checkpoint_is_stored() -> None:
    in_flight, held = InFlight(POLICY), chunk(MIB, 100)
    in_flight.add(held)

    in_flight.remove(held)

    assert not in_flight.full
    assert (0, 0) == (in_flight.events, in_flight.bytes)


@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 60)), max_size=30))
def test_one_chunk_may_overshoot_and_no_more(sizes: list[tuple[int, int]]) -> None:
    """Who asks before each chunk holds at most the bound and one chunk."""
    in_flight, held = InFlight(POLICY), []
    for length, lines in sizes:
        if in_flight.full:
            break
        held.append(chunk(length, lines))
        in_flight.add(held[-1])
    assert in_flight.bytes < POLICY.bytes_max + 300_000
    assert in_flight.events < POLICY.events_max + 60

    for stored in held:
        in_flight.remove(stored)
    assert (0, 0) == (in_flight.events, in_flight.bytes)


def test_storing_more_than_was_read_is_a_bug() -> None:
    in_flight = InFlight(POLICY)
    in_flight.add(chunk(10, 1))

    with pytest.raises(AssertionError, match="more was stored than was read"):
        in_flight.remove(chunk(11, 1))


def test_a_row_of_the_spool_weighs_its_bytes_and_counts_its_records() -> None:
    """Its offsets are numbers of records: they say nothing of the memory it takes."""
    in_flight, row = InFlight(POLICY), Row(Ledger(40, b""), 40, 7, 3000)

    in_flight.add(row)
    assert (7, 3000) == (in_flight.events, in_flight.bytes)

    in_flight.remove(row)
    assert (0, 0) == (in_flight.events, in_flight.bytes)


# ---- the bucket

RATES = st.floats(0.5, 1e8)
BURSTS = st.floats(1.0, 1e8)
STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "advance", "wait"]), st.floats(0.001, 10.0)), max_size=60
)


@given(RATES, BURSTS, STEPS, st.floats(0, 1e6))
def test_over_any_interval_leaves_at_most_the_burst_the_rate_and_what_was_taken_last(
    per_s: float, burst: float, steps: list[tuple[str, float]], start_s: float
) -> None:
    """Who asks before each taking, that is. Amounts are multiples of the burst, small and large."""
    clock = FakeClock()
    clock.now = start_s
    bucket, taken = Bucket(per_s, burst, clock.monotonic), list[tuple[float, float]]()
    for step, amount in steps:
        if step == "advance":
            clock.advance(amount)
        elif step == "wait":
            clock.advance(bucket.wait_s())
        elif bucket.wait_s() == 0.0:
            taken.append((clock.now, amount * burst))
            bucket.take(amount * burst)

    for at, (end_s, last) in enumerate(taken):
        before = 0.0
        for begin_s, tokens in reversed(taken[:at]):
            before += tokens
            allowed = burst + per_s * (end_s - begin_s)
            assert before + last <= (allowed + last) * (1 + 1e-6) + per_s * 1e-6


@given(RATES, st.floats(1e-3, 1e3), st.floats(0, 1e6))
def test_a_debt_is_due_when_it_says_and_not_before(
    per_s: float, debt_s: float, start_s: float
) -> None:
    clock = FakeClock()
    clock.now = start_s
    bucket = Bucket(per_s, per_s, clock.monotonic)
    bucket.take(per_s * (1 + debt_s))

    wait_s = bucket.wait_s()
    assert pytest.approx(debt_s, abs=1e-5) == wait_s
    clock.now = start_s + wait_s - 1e-5
    assert bucket.wait_s() > 0
    clock.now = start_s + wait_s

    assert 0.0 == bucket.wait_s()


def test_asking_takes_nothing() -> None:
    clock = FakeClock()
    bucket = Bucket(10.0, 10.0, clock.monotonic)
    bucket.take(20.0)
    clock.advance(0.25)

    assert bucket.wait_s() == bucket.wait_s() == pytest.approx(0.75, abs=1e-5)


def test_a_burst_is_all_that_piles_up() -> None:
    clock = FakeClock()
    bucket = Bucket(10.0, 20.0, clock.monotonic)
    clock.advance(3600.0)

    bucket.take(25.0)

    assert pytest.approx(0.5, abs=1e-5) == bucket.wait_s()


@given(st.lists(st.floats(0, 1e12), max_size=20))
def test_without_a_rate_there_is_no_limit(amounts: list[float]) -> None:
    bucket = Bucket(None, 0.0, FakeClock().monotonic)
    for tokens in amounts:
        bucket.take(tokens)

        assert 0.0 == bucket.wait_s()


# ---- a bucket for each client


def test_a_client_that_took_too_much_waits_and_no_other_does() -> None:
    clock = FakeClock()
    allowances = Allowances(10.0, 20.0, clock.monotonic)

    allowances.take("flooding", 30.0)

    assert pytest.approx(1.0, abs=1e-5) == allowances.wait_s("flooding")
    assert 0.0 == allowances.wait_s("quiet")
    clock.advance(allowances.wait_s("flooding"))
    assert 0.0 == allowances.wait_s("flooding")


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 50), st.floats(0, 5)), max_size=30)
)
def test_to_forget_a_full_bucket_changes_nothing(steps: list[tuple[str, float, float]]) -> None:
    """Memory is for those that owe something; each client waits as with a bucket of its own."""
    clock = FakeClock()
    allowances = Allowances(10.0, 20.0, clock.monotonic)
    own = {client: Bucket(10.0, 20.0, clock.monotonic) for client in "ab"}
    for client, tokens, seconds in steps:
        allowances.take(client, tokens)
        own[client].take(tokens)
        clock.advance(seconds)
        assert pytest.approx(own[client].wait_s()) == allowances.wait_s(client)

    clock.advance(3600.0)
    for client in own:
        assert 0.0 == allowances.wait_s(client)
    assert not allowances._buckets


def test_without_a_rate_no_client_waits_and_none_is_remembered() -> None:
    allowances = Allowances(None, 0.0, FakeClock().monotonic)

    allowances.take("a", 1e9)

    assert 0.0 == allowances.wait_s("a")
    assert not allowances._buckets


def test_full_buckets_of_clients_nobody_asks_for_are_forgotten() -> None:
    """The number of clients that come and go has no bound; who owes something is remembered."""
    clock = FakeClock()
    allowances = Allowances(10.0, 20.0, clock.monotonic)
    allowances.take("owing", 1e9)
    for number in range(10 * BUCKETS_KEPT):
        allowances.take(str(number), 1.0)
        clock.advance(0.1)

    assert len(allowances._buckets) <= 2 * BUCKETS_KEPT
    assert allowances.wait_s("owing") > 0


# ---- all limits of a client


@pytest.mark.parametrize(
    ("events", "read_bytes", "dead_letters", "wait_s", "reason"),
    [
        (30, 0, 0, 1.0, "events_per_s"),
        (0, 4096, 0, 2.0, "bytes_per_s"),
        (0, 0, 15, 2.0, "flood"),
        (30, 4096, 10, 2.0, "bytes_per_s"),
        (20, 2048, 5, 0.0, None),
    ],
)
def test_the_limit_that_keeps_longest_is_the_one_that_counts(
    events: int, read_bytes: int, dead_letters: int, wait_s: float, reason: str | None
) -> None:
    """20 lines, 2048 bytes and 5 dead letters are free."""
    quota = ClientQuotaPolicy(events_per_s=10, bytes_per_s=1024, burst_s=2)
    limits = ClientLimits(quota, 5.0, FakeClock().monotonic)

    limits.take("a", events=events, read_bytes=read_bytes, dead_letters=dead_letters)

    assert pytest.approx(wait_s, abs=1e-5) == limits.wait_s("a")
    assert reason in {None, limits.reason("a")}
    assert 0.0 == limits.wait_s("b")
