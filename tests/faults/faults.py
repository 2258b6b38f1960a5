"""All faults there are: their rooms, once imported, have put them into the registry."""

from tests.faults import of_brokers, of_signals, of_topics  # noqa: F401
from tests.faults.registry import FAULTS, by_trouble, on_their_own

__all__ = ["FAULTS", "by_trouble", "on_their_own"]
