"""What the receipts say of files, and what the topic may have deleted by itself."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from agent import receipts
from agent.clock import SystemClock
from agent.config import Config
from agent.consumer import Bounds, Reader
from agent.core.places import Coverage, Life
from agent.core.receipts import Partition, Receipt, Window, windows
from agent.errors import AgentError
from agent.operator.verify.books import Bounds as Numbers

APART_MIN = 2000
"""Records between two windows that are read through: a seek costs about as much."""


class Kept(NamedTuple):
    """What a topic may have deleted by itself: what is older than ``before_s``, and where
    ``by_size`` anything before the first record of a partition."""

    before_s: float
    by_size: bool


class Noted:
    """What the receipts of one generation say. ``spooled`` may not be in the topic yet, and ``old``
    not any more."""

    def __init__(self) -> None:
        self.count = 0
        self.acked, self.spooled, self.old = Coverage(), Coverage(), Coverage()

    @property
    def told(self) -> tuple[Coverage, Coverage]:
        """Return the ranges of which it is known where they went."""
        return self.acked, self.spooled


class Receipted:
    """What the receipts of the state directory say.

    Args:
        spooled: What the queues of the spool hold by now.
        topics: Where else something was acknowledged is no matter.
    """

    def __init__(
        self, config: Config, spooled: Mapping[str, Numbers], topics: Collection[str]
    ) -> None:
        self.kept: Kept | None = None
        """None: nothing was deleted."""
        self.newest_s: float | None = None
        """When the newest of all was written."""
        self.noted: dict[Life, Noted] = {}
        self._config = config
        self._spooled = spooled
        self._topics = topics

    def of(self, life: Life) -> Noted:
        return self.noted.get(life) or Noted()

    @property
    def spooling(self) -> bool:
        """Return whether anything is in the spool."""
        return any(head < end for head, end in self._spooled.values())

    async def look_at_retention(self, reader: Reader) -> str | None:
        """Find out what may be deleted; return what should be said of it."""
        topic, kafka = self._config.kafka.topic, self._config.kafka
        begins = {at.begin for (name, _), at in reader.bounds.items() if name == topic}
        if begins == {0}:
            return None
        told = await reader.retention(topic)
        if told is None:
            return (
                f"the retention of {topic} is not known (DescribeConfigs): what is expired counts"
                " as missing"
            )
        by_size = told.bytes is not None or kafka.timestamp == "event"
        before_s = 0.0 if told.seconds is None else SystemClock().wall() - told.seconds
        self.kept = Kept(before_s, by_size)
        return None

    def read(
        self, wanted: Collection[Life] | None, bounds: Mapping[Partition, Bounds]
    ) -> dict[Partition, list[Window]]:
        """Note what there is of ``wanted``, None: of all. Return where their records are.

        Raises ``AgentError``.
        """
        state_dir = self._config.agent.state_dir
        try:
            return windows(self._read(wanted, bounds), APART_MIN)
        except OSError as error:
            raise AgentError(f"{error.filename or state_dir}: {error.strerror}") from None

    def _read(
        self, wanted: Collection[Life] | None, bounds: Mapping[Partition, Bounds]
    ) -> Iterator[Receipt]:
        since_s = SystemClock().wall() - self._config.receipts.keep_s
        for receipt in receipts.read(self._config.agent.state_dir, since_s):
            self.newest_s = receipt.at
            if wanted is not None and receipt.life not in wanted:
                continue
            noted = self.noted.setdefault(receipt.life, Noted())
            noted.count += 1
            span = receipt.start, receipt.end
            if any(self._is_spooled(*queue) for queue in receipt.spooled.items()):
                noted.spooled.add(*span)
            receipt.acked = {t: w for t, w in receipt.acked.items() if t in self._topics}
            if receipt.acked:
                noted.acked.add(*span)
                if self._is_old(receipt, bounds):
                    noted.old.add(*span)
                yield receipt

    def _is_spooled(self, queue: str, window: Window) -> bool:
        head, end = self._spooled.get(queue, (0, 0))
        return head < end and window[1] >= head

    def _is_old(self, receipt: Receipt, bounds: Mapping[Partition, Bounds]) -> bool:
        if self.kept is None:
            return False
        firsts = (
            (window[0], bounds.get((topic, int(number))))
            for topic, found in receipt.acked.items()
            for number, window in found.items()
        )
        deleted = any(at is not None and 0 <= first < at.begin for first, at in firsts)
        return receipt.at < self.kept.before_s or (self.kept.by_size and deleted)
