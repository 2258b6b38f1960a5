"""Whose file is read next."""

import logging
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from agent.core.identity import Birth
from agent.core.policy import ClientQuotaPolicy
from agent.core.quota import ClientLimits
from agent.harvester import Followed, first_generation
from agent.telemetry import Metrics
from agent.turns import Turns
from tests.fakes import FakeClock

CHUNK = 100_000


def file_of(client: str, number: int) -> Followed:
    birth = Birth(number, number, 0, 1)
    return Followed(birth, first_generation(birth, f"{client}/{number}.jsonl", client))


def turns_of(
    clock: FakeClock,
    quota: ClientQuotaPolicy = ClientQuotaPolicy(),  # noqa: B008  it is frozen
    *,
    floods_per_s: float | None = None,
    registry: CollectorRegistry | None = None,
) -> Turns:
    limits = ClientLimits(quota, floods_per_s, clock.monotonic)
    return Turns(limits, clock, Metrics(registry or CollectorRegistry()))


def test_a_client_with_many_files_gets_no_more_than_one_with_one() -> None:
    turns = turns_of(FakeClock())
    turns.add(*(file_of("many", n) for n in range(100)), file_of("one", 1000))

    taken = []
    for _ in range(40):
        followed = turns.take()
        assert followed is not None
        turns.charge(followed, CHUNK, 0, 100)
        taken.append(followed.checkpoint.client)
        turns.add(followed)

    assert (20, 20) == (taken.count("many"), taken.count("one"))


def test_an_open_file_is_idle_from_its_turn_until_it_is_given_another() -> None:
    """Whose turn is longest ago comes first, and one that was closed is not among them."""
    turns = turns_of(FakeClock())
    files = [file_of("a", n) for n in range(4)]
    for followed in files:
        turns.begin(followed, CHUNK)
    assert [] == turns.idle()

    taken = [turns.take() for _ in files]
    assert taken == turns.idle()
    turns.add(files[0])
    turns.end(files[2])
    assert [files[1], files[3]] == turns.idle()
    turns.take()
    assert [files[1], files[3], files[0]] == turns.idle()
    turns.add(files[3])
    turns.end(files[3])  # before its turn came
    assert files[3] == turns.take()
    assert [files[1], files[0]] == turns.idle()


def test_a_client_with_long_reads_gets_no_more_than_one_with_short_ones() -> None:
    turns = turns_of(FakeClock())
    sizes = {file_of("long", 1): CHUNK, file_of("short", 2): CHUNK // 10}
    turns.add(*sizes)

    got = dict.fromkeys(sizes, 0)
    for _ in range(300):
        followed = turns.take()
        assert followed is not None
        turns.charge(followed, sizes[followed], 0, 1)
        got[followed] += sizes[followed]
        turns.add(followed)

    long, short = got.values()
    assert 1.0 < long / short < 1.5  # a turn costs something too


def test_a_client_that_writes_little_waits_for_one_turn_at_most() -> None:
    """Beside one with a backlog that has no end."""
    turns = turns_of(FakeClock())
    busy, quiet = file_of("busy", 1), file_of("quiet", 2)
    turns.add(busy)
    for _ in range(1000):
        assert turns.take() is busy
        turns.charge(busy, CHUNK, 0, 100)
        turns.add(busy)
    turns.add(quiet)

    first = [turns.take()]
    turns.charge(first[0] or busy, CHUNK, 0, 100)
    turns.add(busy)

    assert quiet in (*first, turns.take())


def test_within_a_client_files_take_turns_in_the_order_they_came() -> None:
    turns = turns_of(FakeClock())
    files = [file_of("acme", n) for n in range(5)]
    turns.add(*files)
    turns.add(files[0])  # it keeps its place

    assert files == [turns.take() for _ in range(5)]
    assert turns.take() is None
    assert not turns.waiting


def test_a_file_waits_until_it_is_taken() -> None:
    turns = turns_of(FakeClock())
    followed = file_of("acme", 1)
    assert followed not in turns

    turns.add(followed)
    assert followed in turns
    assert (True, 0.0) == (turns.ready, turns.wait_s(60.0))

    assert turns.take() is followed
    assert followed not in turns
    assert (False, 60.0) == (turns.ready, turns.wait_s(60.0))


def test_a_flood_slows_its_client_and_lets_go_by_itself() -> None:
    clock = FakeClock()
    turns = turns_of(clock, floods_per_s=10.0)
    noisy, quiet = file_of("noisy", 1), file_of("quiet", 2)
    turns.add(noisy)
    assert turns.take() is noisy
    turns.charge(noisy, CHUNK, 30, 100)  # 10 were free, 20 are owed: two seconds
    turns.add(noisy, quiet)

    assert turns.take() is quiet
    assert turns.take() is None
    assert noisy in turns
    assert 1.9 < turns.wait_s(60.0) < 2.1
    clock.advance(2.1)
    assert turns.take() is noisy


def test_a_stop_waits_for_nobody() -> None:
    turns = turns_of(FakeClock(), floods_per_s=10.0)
    noisy = file_of("noisy", 1)
    turns.charge(noisy, CHUNK, 1000, 1000)
    turns.add(noisy)
    assert turns.take() is None

    turns.hurry()

    assert turns.take() is noisy


# ---- limits of a client

EVENTS = ClientQuotaPolicy(events_per_s=10.0, burst_s=2.0)
BYTES = ClientQuotaPolicy(bytes_per_s=10_000, burst_s=2.0)


def throttled_s(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("feedback_agent_client_throttled_seconds_total") or 0.0


def slowed(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("feedback_agent_clients_slowed") or 0.0


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    fields = [(r.getMessage(), vars(r)["fields"]) for r in caplog.records]
    return [(name, of["client"], of["reason"]) for name, of in fields]


@pytest.mark.parametrize(
    ("quota", "read_bytes", "events"),
    [
        pytest.param(EVENTS, 1, 50, id="20 lines are free, 30 are owed"),
        pytest.param(BYTES, 50_000, 1, id="20 kB are free, 30 kB are owed"),
        pytest.param(BYTES, 50_000, 0, id="a read that completes no line counts"),
        pytest.param(
            ClientQuotaPolicy(events_per_s=10, bytes_per_s=1024), 2048, 50, id="the longer wait"
        ),
    ],
)
def test_who_is_over_a_limit_waits_until_the_debt_is_paid(
    quota: ClientQuotaPolicy, read_bytes: int, events: int
) -> None:
    clock, registry = FakeClock(), CollectorRegistry()
    turns, (greedy, other) = turns_of(clock, quota, registry=registry), (file_of("a", 1), B)
    turns.charge(greedy, read_bytes, 0, events)
    turns.add(greedy, other)

    assert [other, None] == [turns.take(), turns.take()]
    assert turns.waiting
    assert greedy in turns
    assert pytest.approx(3.0, abs=1e-3) == turns.wait_s(60.0)
    clock.advance(2.9)
    assert turns.take() is None
    assert 1.0 == slowed(registry)
    clock.advance(0.11)
    assert turns.take() is greedy
    assert pytest.approx(3.0, abs=1e-3) == throttled_s(registry)


B = file_of("b", 2)


def test_the_time_for_which_clients_wait_is_summed_while_they_do() -> None:
    clock, registry = FakeClock(), CollectorRegistry()
    turns, files = turns_of(clock, EVENTS, registry=registry), [file_of("a", 1), file_of("b", 2)]
    for followed in files:
        turns.charge(followed, 1, 0, 1020)  # 1000 owed
    clock.advance(10.0)  # nobody has anything to read
    turns.add(*files)

    for _ in range(8):
        turns.take()
        clock.advance(5.0)
    turns.take()

    assert pytest.approx(80.0) == throttled_s(registry)


def test_a_spell_is_said_once_with_its_reason_however_often_it_waits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A backlog makes it wait after each chunk; that is one spell, whoever else is busy."""
    caplog.set_level(logging.INFO, "agent.turns")
    clock, registry = FakeClock(), CollectorRegistry()
    turns, (greedy, busy) = turns_of(clock, BYTES, registry=registry), (file_of("a", 1), B)
    turns.add(greedy, busy)
    for _ in range(300):
        followed = turns.take()
        clock.advance(0.3)
        if followed is greedy:
            turns.charge(greedy, 30_000, 0, 1)
            turns.add(greedy)
        elif followed is busy:
            turns.charge(busy, 100, 0, 1)
            turns.add(busy)
    assert [("client.slowed", "a", "bytes_per_s")] == said(caplog)
    assert 1.0 == slowed(registry)

    while (wait_s := turns.wait_s(60.0)) < 60.0:  # and now there is nothing left to read
        clock.advance(wait_s)
        if (followed := turns.take()) is not None:
            turns.charge(followed, 1, 0, 1)

    spell = [("client.slowed", "a", "bytes_per_s"), ("client.released", "a", "bytes_per_s")]
    assert spell == said(caplog)
    assert 0.0 == slowed(registry)


def test_who_catches_up_each_time_and_never_pays_in_time_is_in_one_spell(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It writes a little more than it may: each line finds it owing something."""
    caplog.set_level(logging.INFO, "agent.turns")
    clock = FakeClock()
    turns, followed = turns_of(clock, EVENTS), file_of("a", 1)
    turns.charge(followed, 1, 0, 30)
    for _ in range(50):
        turns.add(followed)
        assert turns.take() is None
        clock.advance(turns.wait_s(60.0))
        assert turns.take() is followed
        turns.charge(followed, 1, 0, 11)
        assert turns.take() is None, "it has caught up"
        clock.advance(turns.wait_s(60.0) / 2)
        turns.take()

    assert [("client.slowed", "a", "events_per_s")] == said(caplog)


def test_who_owes_something_and_has_nothing_to_read_is_not_called_slow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turns = turns_of(FakeClock(), EVENTS)
    followed = file_of("a", 1)
    turns.add(followed)
    turns.take()
    turns.charge(followed, 1, 0, 1000)

    assert turns.take() is None
    assert 60.0 == turns.wait_s(60.0)
    assert [] == said(caplog)


def test_a_stop_ends_every_spell(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent.turns")
    registry = CollectorRegistry()
    turns = turns_of(FakeClock(), EVENTS, registry=registry)
    files = [file_of("a", 1), file_of("a", 2)]
    turns.charge(files[0], 1, 0, 1000)
    turns.add(*files)
    assert turns.take() is None

    turns.hurry()

    assert files == [turns.take(), turns.take()]
    assert ("client.released", "a", "events_per_s") == said(caplog)[-1]
    assert 0.0 == slowed(registry)
    assert 60.0 == turns.wait_s(60.0)


# ---- and as laws, with a reader that does nothing but take turns

TURN_S = 0.001
QUOTAS = st.builds(
    ClientQuotaPolicy,
    events_per_s=st.none() | st.floats(20.0, 1e4),
    bytes_per_s=st.none() | st.integers(50_000, 10_000_000),
    burst_s=st.floats(0.1, 10.0),
)
READS = st.tuples(st.integers(1, 262_144), st.integers(0, 2000))  # bytes and lines of one read


class Read(NamedTuple):
    at_s: float
    client: str
    bytes: int
    lines: int


def read_on(
    turns: Turns, clock: FakeClock, reads: dict[str, tuple[int, int]], until_s: float
) -> list[Read]:
    """Read clients who always have more, each ``reads`` at a time; sleep as ``wait_s`` says."""
    done: list[Read] = []
    turns.add(*(file_of(client, n) for n, client in enumerate(reads)))
    while clock.now < until_s:
        followed = turns.take()
        if followed is not None:
            client = followed.checkpoint.client
            done.append(Read(clock.now, client, *reads[client]))
            read_bytes, lines = reads[client]
            turns.charge(followed, read_bytes, 0, lines)
            turns.add(followed)
        wait_s = turns.wait_s(60.0)
        assert followed is not None or wait_s > 0 or turns.take() is not None, "it spins"
        clock.advance(max(TURN_S, wait_s))
    return done


@given(QUOTAS, st.lists(READS, min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_in_any_window_a_client_gets_the_rate_the_burst_and_one_read(
    quota: ClientQuotaPolicy, sizes: list[tuple[int, int]]
) -> None:
    clock, reads = FakeClock(), {f"c{n}": size for n, size in enumerate(sizes)}
    done = read_on(turns_of(clock, quota), clock, reads, 5.0)

    for client, (read_bytes, lines) in reads.items():
        mine = [read for read in done if read.client == client]
        for first in range(0, len(mine), 1 + len(mine) // 10):
            last = max(first, len(mine) - 1)
            window_s, count = mine[last].at_s - mine[first].at_s, last - first + 1
            if quota.bytes_per_s is not None:
                bound = quota.bytes_per_s * (window_s + quota.burst_s) + read_bytes
                assert count * read_bytes <= bound * 1.0001 + 1
            if quota.events_per_s is not None:
                bound = quota.events_per_s * (window_s + quota.burst_s) + lines
                assert count * lines <= bound * 1.0001 + 1


@given(QUOTAS, st.lists(READS, min_size=2, max_size=4), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_the_order_of_those_within_their_limits_is_what_it_is_without_the_others(
    quota: ClientQuotaPolicy, greedy: list[tuple[int, int]], modest: int
) -> None:
    """And none of them is ever slowed: each comes up again before a greedy one does twice."""
    quota = replace(quota, events_per_s=None, bytes_per_s=quota.bytes_per_s or 50_000)
    small = {f"small{n}": (n + 1, 0) for n in range(modest)}  # at most 4 bytes a millisecond
    big = {f"big{n}": size for n, size in enumerate(greedy)}

    def order(reads: dict[str, tuple[int, int]]) -> list[str]:
        clock, registry = FakeClock(), CollectorRegistry()
        done = read_on(turns_of(clock, quota, registry=registry), clock, reads, 1.0)
        return [read.client for read in done if read.client in small]

    beside, alone = order(small | big), order(small)

    assert alone[: len(beside)] == beside
    assert beside


@given(QUOTAS, st.lists(READS, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_nobody_starves(quota: ClientQuotaPolicy, sizes: list[tuple[int, int]]) -> None:
    """Who was made to wait is read again as soon as it has paid and the others had their turns."""
    clock, reads = FakeClock(), {f"c{n}": size for n, size in enumerate(sizes)}
    until_s = 5.0
    done = read_on(turns_of(clock, quota), clock, reads, until_s)

    cost = {client: read_bytes + 4096 for client, (read_bytes, _) in reads.items()}
    for client, (read_bytes, lines) in reads.items():
        owed_s = max(read_bytes / (quota.bytes_per_s or 1e12), lines / (quota.events_per_s or 1e12))
        turn_s = TURN_S * sum(1 + cost[client] / cost[other] for other in reads if other != client)
        at_s = [read.at_s for read in done if read.client == client]
        gaps_s = [b - a for a, b in pairwise([*at_s, until_s])]
        assert max(gaps_s) <= owed_s + 2 * turn_s + 3 * TURN_S
