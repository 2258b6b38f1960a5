"""What differs from the agent: the configuration, and the parts that read and send."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec.structs import replace

from agent.assembly import InForce, Parts
from agent.builders import Topic
from agent.chunk import Chunker
from agent.clock import Clock
from agent.config import Config
from agent.config.sections import Otlp
from agent.core.batch import Batch
from agent.core.identity import Checkpoint
from agent.core.quota import ClientLimits
from agent.core.window import Window
from agent.errors import ConfigError
from agent.kafka import MESSAGE_BYTES_MAX
from agent.kafka import Topic as KafkaTopic
from agent.operator.backfill.origins import Origins
from agent.operator.backfill.selection import FILES_MAX, Selection
from agent.sink import Sink
from agent.sources import Sources
from agent.telemetry import Metrics

DRY_PARTITIONS = 12
"""Of the topic that a dry run imagines: how well batches compress depends on how many there are."""
FOR_EVER_S = 1e12


def configured(
    config: Config, directory: Path, selection: Selection, client: str | None, topic: str
) -> Config:
    """Return the configuration of a backfill: the agent's, but for files, state and face.

    What cannot be sent waits where it is, in its file: only dead letters are ever put by.
    """
    if topic == config.dlq.topic:
        reason = "a dead letter among the events would be read as one"
        found = f"found {topic!r}; allowed: another one than dlq.topic"
        raise ConfigError("--topic", f"{found}: {reason}")
    return replace(
        config,
        agent=replace(config.agent, state_dir=directory, start_jitter_s=0.0),
        source=replace(
            config.source,
            root=selection.root,
            client=client or config.source.client,
            start_at="beginning",
            ignore_older_s=None,
            delete_after_s=None,
            forget_after_s=FOR_EVER_S,
            files_max=FILES_MAX,
            client_files_max=FILES_MAX,
        ),
        kafka=replace(config.kafka, topic=topic),
        spool=replace(config.spool, enabled=False),
        audit=replace(config.audit, path=directory / "audit.jsonl", topic=None),
        otlp=Otlp(),
    )


class BackfillParts(Parts):
    """The parts of a backfill.

    Args:
        window: Which events are wanted; None: all, whose time nobody asks for.
        rate: Lines in a second at most.
    """

    def __init__(
        self,
        config: Config,
        rules: InForce,
        clock: Clock,
        metrics: Metrics,
        *,
        selection: Selection,
        origins: Origins,
        window: Window | None,
        rate: float | None,
    ) -> None:
        super().__init__(config, rules, clock, metrics)
        self._selection = selection
        self._origins = origins
        self._window = window
        self._rate = rate

    def scanner(self) -> Selection:
        return self._selection

    def sources(self, checkpoints: list[Checkpoint]) -> Sources:
        made = super().sources(checkpoints)
        made.registry.strangers.origins = self._origins
        return made

    def limits(self) -> ClientLimits:
        quota, bad_per_s = self.config.quota.client, self.config.dlq.lines_per_s_max
        clock = self.clock.monotonic
        return ClientLimits(quota, bad_per_s, clock, together_per_s=self._rate)

    def chunker(
        self, events: Callable[[], Topic | None], dead_letters: Callable[[], Topic | None]
    ) -> Chunker:
        made = super().chunker(events, dead_letters)
        made.steps.window = self._window
        return made


class DryParts(BackfillParts):
    """The parts of a dry run: all the same, but that nothing is connected to."""

    def connect(self, topic: str) -> Callable[[], Awaitable[Sink]]:
        async def connect() -> Sink:
            return Nowhere(topic)

        return connect


class Nowhere:
    """A sink that has everything at once, and keeps nothing."""

    def __init__(self, topic: str) -> None:
        self.topic = KafkaTopic(topic, DRY_PARTITIONS, 1, None, MESSAGE_BYTES_MAX)
        self.throttled_s = 0.0

    def ease(self, backoff_s: float) -> None:
        """Nobody waits for it."""

    def send(self, batch: Batch) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.set_result(0)
        return answer

    async def close(self) -> None:
        """There is nothing to let go of."""
