"""Makes the rooms from the configuration: which number of which section steers what."""

import os
import random
from collections.abc import Callable
from functools import partial

from agent import __version__, wire
from agent.builders import Builders, Topic
from agent.chunk import Chunker, ChunkPolicy
from agent.clock import Clock
from agent.config import Config
from agent.core.batch import Batch, Pace
from agent.core.breaker import Breaker
from agent.core.delivery import Delivery
from agent.core.identity import Checkpoint
from agent.core.record import RecordPolicy
from agent.kafka import KafkaSink
from agent.opener import Descriptor, Refused, open_beneath
from agent.registry import Registry
from agent.scanner import Scanner
from agent.sink import Outlet
from agent.sources import Sources
from agent.telemetry import Metrics


class Parts:
    """What several rooms share. ``pace`` hears of acknowledgements and steers the builders."""

    def __init__(self, config: Config, clock: Clock, metrics: Metrics) -> None:
        self.config = config
        self.clock = clock
        self.metrics = metrics
        self.codec = wire.codec(config.kafka.compression, config.kafka.compression_level)
        self.pace = Pace(config.batch)

    def outlet(
        self,
        name: str,
        topic: str,
        *,
        settled: Callable[[Batch, int, float], None],
        refused: Callable[[Batch, str], None],
    ) -> Outlet:
        kafka, clock = self.config.kafka, self.clock
        delivery = Delivery(
            self.config.retry,
            Breaker(self.config.breaker, clock.monotonic),
            split=partial(wire.split, codec=self.codec),
            retire_s=kafka.request_timeout_s,
            clock=clock.monotonic,
            jitter=random.random,
        )
        connect = partial(
            KafkaSink.connect,
            kafka.bootstrap_servers,
            topic,
            client_id=kafka.client_id,
            timeout_s=kafka.request_timeout_s,
        )
        return Outlet(
            name,
            delivery,
            connect,
            settled=settled,
            refused=refused,
            ack_age_max_s=self.config.breaker.ack_age_max_s,
            clock=clock,
            metrics=self.metrics,
        )

    def sources(self, checkpoints: list[Checkpoint]) -> Sources:
        source = self.config.source
        registry = Registry(
            checkpoints,
            line_bytes_max=source.line_bytes_max,
            forget_after_s=source.forget_after_s,
            clock=self.clock,
            metrics=self.metrics,
        )
        return Sources(
            self._open,
            registry,
            line_bytes_max=source.line_bytes_max,
            descriptors_max=source.descriptors_max,
            start_at_end=source.start_at == "end",
            metrics=self.metrics,
        )

    def chunker(
        self, events: Callable[[], Topic | None], dead_letters: Callable[[], Topic | None]
    ) -> Chunker:
        config = self.config
        policy = ChunkPolicy(
            node=config.node,
            schema=config.schema,
            record=RecordPolicy(version=__version__, hostname=config.node, key=config.kafka.key),
            line_bytes_max=config.source.line_bytes_max,
            event_time=config.kafka.timestamp == "event",
        )
        builders = partial(
            Builders,
            codec=self.codec,
            pace=self.pace,
            bytes_max=config.batch.bytes_max,
            partitioner=config.kafka.partitioner,
        )
        return Chunker(
            policy,
            builders(events),
            builders(dead_letters),
            clock=self.clock,
            metrics=self.metrics,
        )

    def scanner(self) -> Scanner:
        source = self.config.source
        return Scanner(
            source.root,
            source.include,
            source.exclude,
            client_depth=source.client_depth,
            client=source.client,
            files_max=source.files_max,
        )

    def _open(self, path: str) -> Descriptor | Refused:
        try:
            root = os.open(self.config.source.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return Refused("gone", f"the root: {error.strerror}")
        try:
            return open_beneath(root, path, links_max=None)
        finally:
            os.close(root)
