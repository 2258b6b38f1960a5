"""Turns between clients: by what they got, and with no credit for pauses."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from agent.core.fairness import KEPT, Fairness

AMOUNT_MAX = 100


def served(fairness: Fairness, turns: int, amounts: dict[str, float]) -> dict[str, float]:
    """Give ``turns`` to clients who always want another one. Return what each got."""
    got: defaultdict[str, float] = defaultdict(float)
    for _ in range(turns):
        client = fairness.take()
        assert client is not None
        got[client] += amounts[client]
        fairness.charge(client, amounts[client])
        fairness.enter(client)
    return got


def test_who_takes_more_at_once_gets_no_more_in_all() -> None:
    fairness = Fairness()
    for client in "ab":
        fairness.enter(client)

    got = served(fairness, 1000, {"a": 100.0, "b": 7.0})

    assert abs(got["a"] - got["b"]) <= AMOUNT_MAX


def test_who_paused_is_owed_nothing() -> None:
    """Else a client could save up, and then hold up all others for as long."""
    fairness = Fairness()
    fairness.enter("busy")
    served(fairness, 1000, {"busy": 10.0})
    fairness.enter("back")

    got = served(fairness, 100, {"busy": 10.0, "back": 10.0})

    assert abs(got["busy"] - got["back"]) <= 10.0


def test_who_comes_back_at_once_pays_what_it_got() -> None:
    """A pause shorter than a turn is no way around the queue."""
    fairness = Fairness()
    for client in "ab":
        fairness.enter(client)
    first = fairness.take()
    assert first is not None
    fairness.charge(first, 50.0)
    other = fairness.take()
    fairness.enter(first)
    assert other is not None
    fairness.charge(other, 10.0)
    fairness.enter(other)

    assert other == fairness.take()


@given(st.lists(st.integers(0, AMOUNT_MAX), max_size=200))
def test_those_who_wait_never_drift_apart(program: list[int]) -> None:
    """Between two that both wait all the time the difference is one turn at most."""
    fairness = Fairness()
    for client in "abcd":
        fairness.enter(client)
    got = dict.fromkeys("abcd", 0)
    for amount in program:
        turn = fairness.take()
        assert turn is not None
        got[turn] += amount
        fairness.charge(turn, amount)
        fairness.enter(turn)
        assert max(got.values()) - min(got.values()) <= AMOUNT_MAX


def test_nobody_waits_nobody_is_served() -> None:
    assert Fairness().take() is None


def test_clients_that_are_gone_are_forgotten() -> None:
    """Their number has no bound."""
    fairness = Fairness()
    fairness.enter("stays")
    for n in range(10 * KEPT):
        fairness.enter(str(n))
        turn = fairness.take()
        assert turn is not None
        fairness.charge(turn, 1.0)
        if turn == "stays":
            fairness.enter(turn)

    assert len(fairness._tags) <= KEPT + 2
