"""0 lost, few twice, in order, whatever becomes of brokers and topics: the quick form of
``scripts/faults``.
"""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.faults.cluster import Brokers, Kafka
from tests.faults.faults import by_trouble, on_their_own
from tests.faults.play import play, play_together
from tests.faults.registry import BrokerFault, Siege, TopicFault
from tests.faults.scale import QUICK

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.timeout(600),  # others may have the brokers first; each wait has its own bound
]


@pytest.fixture
def seed() -> str:
    """A new one each time; a failure names it, and ``scripts/faults --seed`` repeats it."""
    return str(random.SystemRandom().randrange(1 << 32))


@pytest.mark.long
@pytest.mark.parametrize("faults", by_trouble().values(), ids=by_trouble())
def test_no_trouble_of_brokers_loses_a_line(
    faults: list[BrokerFault], brokers: Brokers, tmp_path: Path, seed: str
) -> None:
    """Several agents with topics of their own go through each trouble."""
    outcomes = play_together(faults, brokers, QUICK, tmp_path, seed)

    assert [] == [outcome.problem for outcome in outcomes if outcome.problem]


PATIENT = replace(QUICK, request_timeout_s=15.0)
"""Where brokers are well, no slow machine is taken for one that does not answer."""
QUICK_ONES = {"quota", "sigkill_at_random", "topic_made_again_smaller"}
ON_THEIR_OWN = [
    pytest.param(fault, id=fault.name, marks=[] if fault.name in QUICK_ONES else pytest.mark.long)
    for fault in on_their_own()
]


@pytest.mark.parametrize("fault", ON_THEIR_OWN)
def test_nothing_done_to_a_topic_or_to_the_agent_loses_a_line(
    fault: TopicFault | Siege, guarded_broker: Kafka, tmp_path: Path, seed: str
) -> None:
    problem = play(fault, guarded_broker, PATIENT, tmp_path, seed).problem

    assert problem is None, problem
