"""Makes the rooms from the configuration: which number of which section steers what."""

import logging
import os
import random
import resource
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from hashlib import sha256
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from agent import __version__, redaction, schemas, wire
from agent.audit import Audit
from agent.audit_topic import AuditTopic
from agent.builders import Builders, Stream, Topic, repartition
from agent.chunk import Chunker, ChunkPolicy
from agent.clock import Clock
from agent.config import Config, as_yaml
from agent.core.auditing import unheard
from agent.core.batch import Batch, Pace
from agent.core.breaker import Breaker
from agent.core.delivery import Delivery
from agent.core.discovery import Looking
from agent.core.identity import Birth, Checkpoint
from agent.core.quota import ClientLimits
from agent.core.record import RecordPolicy
from agent.core.redact import Redaction
from agent.core.schemas import Schemas
from agent.core.seam import TAIL_SHARE
from agent.core.tracing import Span, Tracer
from agent.credentials import Credentials
from agent.deletion import Deletion, Remove
from agent.kafka import KafkaSink
from agent.opener import Descriptor, Refused, open_beneath
from agent.queue import Limits
from agent.registry import Registry
from agent.reloaded import Reloaded
from agent.removal import remove_directory, remove_file
from agent.scanner import Scanner
from agent.sink import Outlet, Sink
from agent.sources import Sources
from agent.spooler import SpoolRules
from agent.telemetry import Metrics, event
from agent.turns import Turns

T = TypeVar("T")

log = logging.getLogger(__name__)

DESCRIPTORS_KEPT = 128
"""Of the process's limit, for connections, the store, watches and the scan's way down."""


def descriptors_within(configured: int, limit: int) -> int:
    """Return how many source files may be open at once where ``limit`` descriptors may be."""
    return min(configured, max(limit - DESCRIPTORS_KEPT, limit // 4, 1))


class InForce(NamedTuple):
    """What the files hold that the configuration names, but for secrets. To be reloaded."""

    redaction: Reloaded[Redaction | None]
    schemas: Reloaded[Schemas | None]


def in_force(config: Config) -> InForce:
    """Read those files. Raises ``ConfigError``."""
    return InForce(redaction.in_force(config.redact), schemas.in_force(config.schema))


class Parts:
    """What several rooms share. ``pace`` hears of acknowledgements and steers the builders."""

    def __init__(
        self,
        config: Config,
        rules: InForce,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self.clock = clock
        self.metrics = metrics
        self.codec = wire.codec(config.kafka.compression, config.kafka.compression_level)
        self.pace = Pace(config.batch)
        self.credentials = Credentials(config.kafka.tls, config.kafka.sasl, clock)
        self.rules = rules
        self.shown = redaction.shown(lambda: rules.redaction.value)
        self.audit = Audit(
            config.audit_path if config.audit.enabled else None,
            bytes_max=config.audit.bytes_max,
            files_max=config.audit.files_max,
            shown=self.shown,
            dead_letters=metrics.dead_letters,
            clock=clock,
            metrics=metrics,
        )

    def outlet(
        self,
        name: str,
        topic: str,
        *,
        spooled: bool,
        quiet: Callable[[], AbstractAsyncContextManager[None]],
        settled: Callable[[Batch, int, float], None],
        refused: Callable[[Batch, str], None],
    ) -> Outlet:
        """Make one way out. ``spooled``: something waits for it, so lines queue behind it.

        That of the audit log says nothing in it: each word would be one more to send.
        """
        return Outlet(
            name,
            self._delivery(name, 0.0 if spooled else self.config.kafka.start_s),
            self.connect(topic),
            quiet=quiet,
            settled=settled,
            refused=refused,
            note=unheard if name == "audit" else self.audit.note,
            clock=self.clock,
            metrics=self.metrics,
        )

    def connect(self, topic: str) -> Callable[[], Awaitable[Sink]]:
        """Return what makes a sink for ``topic``."""
        kafka = self.config.kafka
        return partial(
            KafkaSink.connect,
            kafka.bootstrap_servers,
            topic,
            client_id=kafka.client_id,
            timeout_s=kafka.request_timeout_s,
            security=self.credentials,
        )

    def audit_topic(self) -> AuditTopic | None:
        """Make the copy of the audit log, where one is wanted."""
        config, audit = self.config, self.audit
        topic = config.audit.topic
        if topic is None or not config.audit.enabled:
            return None
        return AuditTopic(
            config.audit_path,
            topic,
            config.node,
            partial(self.outlet, "audit", topic, spooled=False, quiet=nullcontext),
            self.codec,
            durable=lambda: audit.durable,
            note=audit.note,
            clock=self.clock,
            metrics=self.metrics,
        )

    def _delivery(self, name: str, absent_s: float) -> Delivery:
        """Make the machine of one way. A dead letter is put by at its topic's first failure."""
        kafka, clock, retry = self.config.kafka, self.clock, self.config.retry
        return Delivery(
            retry if name == "events" else replace(retry, attempts_max=1),
            Breaker(self.config.breaker, clock.monotonic, random.random),
            split=partial(wire.split, codec=self.codec),
            repartition=partial(
                repartition,
                partitioner=kafka.partitioner,
                codec=self.codec,
                bytes_max=self.config.batch.bytes_max,
            ),
            retire_s=kafka.request_timeout_s,
            bytes_per_s_max=kafka.bytes_per_s_max,
            start_s=random.uniform(0, self.config.agent.start_jitter_s),  # noqa: S311
            absent_s=absent_s,
            clock=clock.monotonic,
            jitter=random.random,
        )

    def spool_rules(self, name: str) -> SpoolRules:
        """Return the rules of a queue. Dead letters are never in a hurry, nor dropped."""
        spool, dlq = self.config.spool, self.config.dlq
        if name == "dead_letters":
            limits = Limits(dlq.store_bytes_max, 0.0)
            return SpoolRules(True, limits, drop_oldest=False, tail_share=None)
        limits = Limits(spool.bytes_max, spool.disk_free_min)
        drop_oldest = spool.when_full == "drop_oldest"
        return SpoolRules(spool.enabled, limits, drop_oldest, TAIL_SHARE)

    def sources(self, checkpoints: list[Checkpoint]) -> Sources:
        source = self.config.source
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors_max = descriptors_within(source.descriptors_max, limit)
        if descriptors_max < source.descriptors_max:
            event(log, logging.WARNING, "descriptors.reduced", configured=source.descriptors_max,
                  descriptors_max=descriptors_max, process_limit=limit)  # fmt: skip
        registry = Registry(
            checkpoints,
            line_bytes_max=source.line_bytes_max,
            forget_after_s=source.forget_after_s,
            note=self.audit.note,
            clock=self.clock,
            metrics=self.metrics,
        )
        return Sources(
            self._open,
            registry,
            line_bytes_max=source.line_bytes_max,
            descriptors_max=descriptors_max,
            held_bytes_max=source.held_bytes_max,
            start_at_end=source.start_at == "end",
            deletion=Deletion(
                source.delete_after_s,
                source.include,
                Remove(self._remove_file, self._remove_directory),
                note=self.audit.note,
                clock=self.clock,
                metrics=self.metrics,
            ),
            note=self.audit.note,
            clock=self.clock,
            turns=Turns(self.limits(), self.clock, self.metrics),
            shown=self.shown,
            metrics=self.metrics,
        )

    def limits(self) -> ClientLimits:
        config = self.config
        return ClientLimits(config.quota.client, config.dlq.lines_per_s_max, self.clock.monotonic)

    def tracer(self, ended: Callable[[Span], None]) -> Tracer | None:
        """Make what draws which chunks are traced, where any are to be."""
        share = self.config.otlp.traces_sampled
        if share == 0:
            return None
        return Tracer(
            share,
            self.config.kafka.client_id,
            clock=self.clock.monotonic,
            draw=random.random,
            bits=random.getrandbits,
            ended=ended,
        )

    def chunker(
        self, events: Callable[[], Topic | None], dead_letters: Callable[[], Topic | None]
    ) -> Chunker:
        config = self.config
        policy = ChunkPolicy(
            node=config.node,
            schema=config.schema,
            record=RecordPolicy(
                version=__version__,
                hostname=config.node,
                key=config.kafka.key,
                dead_letter_bytes_max=config.dlq.line_bytes_max,
            ),
            line_bytes_max=config.source.line_bytes_max,
            event_time=config.kafka.timestamp == "event",
        )
        chunker = Chunker(
            policy,
            self._stream(events, config.kafka.topic),
            self._stream(dead_letters, config.dlq.topic),
            clock=self.clock,
            metrics=self.metrics,
        )
        chunker.redact(self.rules.redaction.value)
        chunker.decode_by(self.rules.schemas.value)
        return chunker

    def _stream(self, topic: Callable[[], Topic | None], name: str) -> Stream:
        builders = partial(
            Builders,
            codec=self.codec,
            pace=self.pace,
            bytes_max=self.config.batch.bytes_max,
            destination=name,
        )
        return Stream(
            builders(topic, partitioner=self.config.kafka.partitioner),
            builders(lambda: None, partitioner="none"),
        )

    def scanner(self) -> Looking:
        return scanner(self.config, self.clock)

    def _open(self, path: str) -> Descriptor | Refused:
        return self._beneath(lambda root: open_beneath(root, path, links_max=None))

    def _remove_file(self, path: str, birth: Birth, size: int) -> Refused | None:
        return self._beneath(lambda root: remove_file(root, path, birth, size))

    def _remove_directory(self, path: str, before_s: float) -> bool:
        return self._beneath(lambda root: remove_directory(root, path, before_s)) is True

    def _beneath(self, do: Callable[[int], T]) -> T | Refused:
        """Do something beneath the root as it is now: it may have been mounted anew."""
        try:
            root = os.open(self.config.source.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return Refused("gone", f"the root: {error.strerror}")
        try:
            return do(root)
        finally:
            os.close(root)


def scanner(config: Config, clock: Clock) -> Scanner:
    source = config.source
    return Scanner(
        source.root,
        source.include,
        source.exclude,
        client_depth=source.client_depth,
        client=source.client,
        files_max=source.files_max,
        client_files_max=source.client_files_max,
        depth_max=source.depth_max,
        ignore_older_s=source.ignore_older_s,
        clock=clock,
    )


def config_hash(config: Config) -> str:
    """Return the SHA-256 of what ``feedback-agent check`` prints, secrets masked."""
    return sha256(as_yaml(config).encode()).hexdigest()
