"""What happens to brokers. Faults that wait for the same trouble go through it together."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

from tests.faults.cluster import Brokers
from tests.faults.scale import Scale


class Trouble(Protocol):
    """Does one step after the other; yields how many seconds lie between two. In the end all
    nodes are brought back."""

    __name__: str

    def __call__(
        self, brokers: Brokers, draw: random.Random, scale: Scale, /
    ) -> Iterator[float]: ...


SESSION_S = 6.0
"""``broker.session.timeout.ms`` of scripts/kafka: so long a dead node still leads."""
MEET_WITHIN_S = 600.0


def all_brokers_dead(brokers: Brokers, draw: random.Random, scale: Scale) -> Iterator[float]:
    brokers.kill(*brokers.numbers)
    yield scale.down_s


def all_brokers_silent(brokers: Brokers, draw: random.Random, scale: Scale) -> Iterator[float]:
    brokers.pause(*brokers.numbers)
    yield scale.silent_s


def one_broker_dead(brokers: Brokers, draw: random.Random, scale: Scale) -> Iterator[float]:
    brokers.kill(draw.choice(brokers.numbers))
    yield SESSION_S + scale.windows * scale.request_timeout_s


def two_brokers_dead(brokers: Brokers, draw: random.Random, scale: Scale) -> Iterator[float]:
    """The third cannot even learn that it is alone: two of three controllers are gone too."""
    brokers.kill(*draw.sample(brokers.numbers, 2))
    yield SESSION_S + scale.windows * scale.request_timeout_s


def brokers_flip(brokers: Brokers, draw: random.Random, scale: Scale) -> Iterator[float]:
    for flip in range(scale.flips):
        harm = (brokers.kill, brokers.pause)[flip % 2]
        harm(draw.choice(brokers.numbers))
        yield draw.uniform(1, 1.5 * SESSION_S)
        brokers.mend()
        yield draw.uniform(0, 1)


def none_at_all(brokers: Brokers, draw: random.Random, scale: Scale) -> Iterator[float]:
    """Nothing: for what faults do themselves to a topic of their own on several brokers."""
    yield 0.0


class Meeting:
    """One trouble, and ``players`` threads that go through it together.

    Attributes:
        called_off: Set once nobody wants to know how it ends.
    """

    def __init__(
        self, trouble: Trouble, brokers: Brokers, scale: Scale, players: int, seed: str
    ) -> None:
        self._brokers = brokers
        self._steps = trouble(brokers, random.Random(seed), scale)  # noqa: S311  repeatable
        self._thread = ThreadPoolExecutor(1)
        self.called_off = threading.Event()
        self._rest: Future[None] | None = None
        self._begun = threading.Barrier(players, self._begin)
        self._ended = threading.Barrier(players, self._end)

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Enter when the first step is done, for all; leave when all nodes are back, for all."""
        self._begun.wait(MEET_WITHIN_S)
        yield
        self._ended.wait()

    def abort(self) -> None:
        """Let nobody wait for a player that has failed."""
        self._begun.abort()
        self._ended.abort()

    def call_off(self) -> None:
        """End at once, with no node brought back."""
        self.called_off.set()
        self.abort()

    def close(self) -> None:
        self._thread.shutdown()
        if not self.called_off.is_set():
            self._brokers.mend()

    def _begin(self) -> None:
        wait_s = next(self._steps)
        self._rest = self._thread.submit(self._go_on, wait_s)

    def _go_on(self, wait_s: float) -> None:
        for pause_s in chain([wait_s], self._steps):
            if self.called_off.wait(pause_s):
                return

    def _end(self) -> None:
        assert self._rest is not None
        self._rest.result()
        self._brokers.mend()
