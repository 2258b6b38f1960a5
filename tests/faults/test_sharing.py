"""Workers that share a cluster see one and the same, whatever one of them does to it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.sharing import shared, three_in_turn, turn

pytestmark = pytest.mark.kafka

LATE_S = 2.0
"""So long the second user is given to do the wrong thing."""


@pytest.mark.long
def test_a_second_user_who_comes_while_all_nodes_are_dead_finds_the_first_ones_cluster(
    real: None, tmp_path: Path
) -> None:
    """A new cluster in its place left the first user with addresses that nobody listens at."""
    with ThreadPoolExecutor(1) as second, shared(tmp_path, three_in_turn) as brokers:
        with turn(tmp_path):
            brokers.kill(*brokers.numbers)
            comes = second.submit(three_in_turn, tmp_path)
            with pytest.raises(TimeoutError):
                comes.result(LATE_S)
            brokers.mend()

        assert comes.result().bootstrap_servers == brokers.bootstrap_servers
