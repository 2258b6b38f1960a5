"""Every fault by its name, and what kinds there are.

A fault gets a ``Stage`` whose agent ships what apps write, and ends when the cause is gone and
events arrive (``over``); then the oracle decides. ``meeting.trouble()`` is the time in which the
trouble that the fault is registered for goes on. A siege has a stage of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.cluster import Kafka
from tests.faults.outcome import Outcome
from tests.faults.scale import Scale
from tests.faults.stage import Stage
from tests.faults.troubles import Meeting, Trouble

Alone = Callable[[Stage], None]
Through = Callable[[Stage, Meeting], None]
Besieged = Callable[[Kafka, Scale, Path, str], Outcome]


class TopicFault(NamedTuple):
    """A fault whose brokers are well; they know ACLs."""

    name: str
    play: Alone


class BrokerFault(NamedTuple):
    name: str
    play: Through
    trouble: Trouble


class Siege(NamedTuple):
    """A fault that brings apps, agent and oracle of its own. Well brokers too."""

    name: str
    play: Besieged


FAULTS: dict[str, TopicFault | BrokerFault | Siege] = {}


def through(trouble: Trouble) -> Callable[[Through], Through]:
    def register(play: Through) -> Through:
        FAULTS[play.__name__] = BrokerFault(play.__name__, play, trouble)
        return play

    return register


def on_its_own(play: Alone) -> Alone:
    FAULTS[play.__name__] = TopicFault(play.__name__, play)
    return play


def besieged(play: Besieged) -> Besieged:
    FAULTS[play.__name__] = Siege(play.__name__, play)
    return play


def on_their_own() -> list[TopicFault | Siege]:
    """Return the faults that are played one after the other."""
    return [fault for fault in FAULTS.values() if not isinstance(fault, BrokerFault)]


def by_trouble() -> dict[str, list[BrokerFault]]:
    """Return the faults that go through one trouble together, by its name."""
    found: dict[str, list[BrokerFault]] = {}
    for fault in FAULTS.values():
        if isinstance(fault, BrokerFault):
            found.setdefault(fault.trouble.__name__, []).append(fault)
    return found
