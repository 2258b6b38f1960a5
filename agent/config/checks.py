"""Values that are legal alone and not together."""

import os
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from agent.config.reading import Given
from agent.config.sections import Config
from agent.config.security import of_security

LEVELS = {"gzip": range(10), "zstd": range(1, 20), "lz4": range(1, 13)}
"""Of the codecs that have any. zstd's last three take hundreds of megabytes."""


class Order(NamedTuple):
    low: str
    high: str
    strict: bool
    reason: str


ORDERS = (
    Order("batch.age_min_s", "batch.age_max_s", False, "the wait adapts between the two"),
    Order("retry.backoff_s", "retry.backoff_max_s", False, "the wait grows from one to the other"),
    Order("batch.bytes_max", "in_flight.bytes_max", False, "a full batch must fit in flight"),
    Order("source.line_bytes_max", "in_flight.bytes_max", True, "one line must fit in flight"),
    Order("source.client_depth", "source.depth_max", False, "files must lie where they are read"),
    Order(
        "in_flight.bytes_max", "spool.bytes_max", False, "an outage begins with what is in flight"
    ),
)


def conflicts(config: Config, given: Mapping[str, Given]) -> Iterator[tuple[str, str]]:
    """Yield (key path, detail) for values that are legal alone and not together.

    The blame goes to a key that was given, where one of the two was left at its default.
    """

    for low, high, strict, reason in ORDERS:
        less, more = attrgetter(low)(config), attrgetter(high)(config)
        if less is None or more is None:
            continue
        if less > more or (strict and less == more):
            if low in given:
                bound = f"{'less than' if strict else 'at most'} {high}, which is {more:.12g}"
                yield low, f"found {less:.12g}; allowed: {bound}: {reason}"
            else:
                bound = f"{'more than' if strict else 'at least'} {low}, which is {less:.12g}"
                yield high, f"found {more:.12g}; allowed: {bound}: {reason}"
    yield from _clashes(config, given)
    if config.otlp.logs and config.otlp.endpoint is None:
        yield "otlp.logs", "found true; allowed: only with otlp.endpoint, which is null"
    yield from of_security(config.kafka.tls, config.kafka.sasl, given)


def _clashes(config: Config, given: Mapping[str, Given]) -> Iterator[tuple[str, str]]:
    if config.kafka.topic == config.dlq.topic:
        mine, other = sorted(("dlq.topic", "kafka.topic"), key=lambda key: key not in given)
        reason = "a dead letter among the events would be read as one"
        yield mine, f"found {config.dlq.topic!r}; allowed: another one than {other}: {reason}"
    paths = {"agent.state_dir": config.agent.state_dir, "source.root": config.source.root}
    state, root = (Path(os.path.realpath(path)) for path in paths.values())
    if state.is_relative_to(root) or root.is_relative_to(state):
        mine, other = sorted(paths, key=lambda key: key not in given)
        bound = f"neither inside {other}, which is {str(paths[other])!r}, nor around it"
        reason = "who may write feedback must not reach checkpoints"
        yield mine, f"found {str(paths[mine])!r}; allowed: {bound}: {reason}"
    for key, path, reason in (
        ("audit.path", config.audit.path, "the agent would read what it writes"),
        ("schema.dir", config.schema.dir, "who may write feedback must not say what is allowed"),
    ):
        if path is not None and Path(os.path.realpath(path)).is_relative_to(root):
            bound = f"not inside source.root, which is {str(config.source.root)!r}"
            yield key, f"found {str(path)!r}; allowed: {bound}: {reason}"
    if config.audit.topic is not None and not config.audit.enabled:
        bound = "only with audit.enabled true, which is false"
        yield "audit.topic", f"found {config.audit.topic!r}; allowed: {bound}"
    topics = {"kafka.topic": config.kafka.topic, "dlq.topic": config.dlq.topic}
    for other, topic in topics.items():
        if config.audit.topic == topic:
            reason = "records of the audit log are neither events nor dead letters"
            yield "audit.topic", f"found {topic!r}; allowed: another one than {other}: {reason}"
    if config.source.delete_after_s is not None and config.source.start_at == "end":
        found = config.source.delete_after_s
        bound = "only with source.start_at beginning, which is end"
        reason = "what is passed over at the start would be deleted unsent"
        yield "source.delete_after_s", f"found {found:.12g}; allowed: {bound}: {reason}"
    if config.kafka.compression_level is not None:
        yield from _level(config.kafka.compression, config.kafka.compression_level)


def _level(compression: str, level: int) -> Iterator[tuple[str, str]]:
    allowed = LEVELS.get(compression)
    if allowed is None:
        *names, last = LEVELS
        bound = f"only with kafka.compression {', '.join(names)} or {last}, which is {compression}"
    elif level not in allowed:
        bound = f"{allowed[0]} to {allowed[-1]} with kafka.compression {compression}"
    else:
        return
    yield "kafka.compression_level", f"found {level}; allowed: {bound}"
