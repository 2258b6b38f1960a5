"""Whose file is read next."""

from prometheus_client import CollectorRegistry

from agent.core.identity import Birth
from agent.core.quota import Allowances
from agent.harvester import Followed, first_generation
from agent.telemetry import Metrics
from agent.turns import Turns
from tests.fakes import FakeClock

CHUNK = 100_000


def file_of(client: str, number: int) -> Followed:
    birth = Birth(number, number, 0, 1)
    return Followed(birth, first_generation(birth, f"{client}/{number}.jsonl", client))


def turns_of(clock: FakeClock, *, floods_per_s: float | None = None) -> Turns:
    allowances = Allowances(floods_per_s, floods_per_s or 0.0, clock.monotonic)
    return Turns(allowances, Metrics(CollectorRegistry()))


def test_a_client_with_many_files_gets_no_more_than_one_with_one() -> None:
    turns = turns_of(FakeClock())
    turns.add(*(file_of("many", n) for n in range(100)), file_of("one", 1000))

    taken = []
    for _ in range(40):
        followed = turns.take()
        assert followed is not None
        turns.charge(followed, CHUNK, 0)
        taken.append(followed.checkpoint.client)
        turns.add(followed)

    assert (20, 20) == (taken.count("many"), taken.count("one"))


def test_a_client_that_writes_little_waits_for_one_turn_at_most() -> None:
    """Beside one with a backlog that has no end."""
    turns = turns_of(FakeClock())
    busy, quiet = file_of("busy", 1), file_of("quiet", 2)
    turns.add(busy)
    for _ in range(1000):
        assert turns.take() is busy
        turns.charge(busy, CHUNK, 0)
        turns.add(busy)
    turns.add(quiet)

    first = [turns.take()]
    turns.charge(first[0] or busy, CHUNK, 0)
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
    turns.charge(noisy, CHUNK, 30)  # 10 were free, 20 are owed: two seconds
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
    turns.charge(noisy, CHUNK, 1000)
    turns.add(noisy)
    assert turns.take() is None

    turns.hurry()

    assert turns.take() is noisy
