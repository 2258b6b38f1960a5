"""Judges one topic against the configuration, by what ``cluster`` saw."""

from collections.abc import Iterator, Mapping
from typing import Literal

from aiokafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code
from msgspec import Struct

from agent.config import Config
from agent.operator.doctor.cluster import TopicSeen
from agent.operator.doctor.finding import About, Finding

WRITE = 4
"""Of Kafka's ``AclOperation``."""
ENRICHED_BYTES = 8192
"""What headers and enrichment add to a line, at most as good as always."""
RETENTION_MIN_S = 86400.0
UNBOUNDED_MS = (1 << 63) - 1
"""Kafka's default of how old a record may be."""
AHEAD_S = 60.0
"""A record so far in the future tells of a clock that is wrong."""

_OF_SETTINGS = (
    "topic.min_insync_replicas",
    "topic.message_bytes",
    "topic.retention",
    "topic.cleanup_policy",
    "topic.timestamps",
)


class Wanted(Struct, frozen=True):
    """A topic that the configuration names: by which key, and the longest line it must take.

    ``event_time``: the time of its records is the events' own.
    """

    name: str
    key: Literal["kafka.topic", "dlq.topic", "audit.topic"]
    line_key: str
    line_bytes_max: int
    event_time: bool = False


def wanted(config: Config) -> Iterator[Wanted]:
    source, dlq = config.source.line_bytes_max, config.dlq.line_bytes_max
    at_event = config.kafka.timestamp == "event"
    yield Wanted(config.kafka.topic, "kafka.topic", "source.line_bytes_max", source, at_event)
    yield Wanted(config.dlq.topic, "dlq.topic", "dlq.line_bytes_max", dlq)
    if config.audit.topic is not None and config.audit.enabled:
        yield Wanted(config.audit.topic, "audit.topic", "the records of the audit log", 16384)


def of_topic(topic: Wanted, seen: TopicSeen | None) -> Iterator[Finding]:
    """Yield every finding of one topic; ``seen`` is None where Kafka was not reached."""
    yield exists(topic, seen)
    yield describe(topic, seen)
    if seen is None or seen.error or not seen.partitions:
        for check in ("acl.write", "acl.describe_configs", "topic.partitions", "topic.replication",
                      *_OF_SETTINGS, "topic.clock"):  # fmt: skip
            yield About(check, topic.name).unknown("the topic was not seen")
        return
    yield write(topic, seen)
    yield describe_configs(topic, seen)
    yield partitions(topic, seen)
    yield replication(topic, seen)
    if seen.settings is None:
        for check in _OF_SETTINGS:
            yield About(check, topic.name).unknown("DescribeConfigs is not granted")
    else:
        yield min_insync_replicas(topic, seen, seen.settings)
        yield message_bytes(topic, seen.settings)
        yield retention(topic, seen.settings)
        yield cleanup_policy(topic, seen.settings)
        yield timestamps(topic, seen.settings)
    yield clock(topic, seen)


def _grant(topic: Wanted, *operations: str) -> str:
    named = " ".join(f"--operation {operation}" for operation in operations)
    return f"kafka-acls --add --allow-principal User:... {named} --topic {topic.name}"


def exists(topic: Wanted, seen: TopicSeen | None) -> Finding:
    about = About("topic.exists", topic.name)
    if seen is None:
        return about.unknown("Kafka was not reached")
    if seen.error == TopicAuthorizationFailedError.errno:
        return about.unknown("Describe is not granted")
    if seen.error == UnknownTopicOrPartitionError.errno:
        advice = (
            f"kafka-topics --create --topic {topic.name} --partitions 12 --replication-factor 3"
        )
        return about.fail(
            f"does not exist; {topic.key} names it", f"{advice}; the agent makes none"
        )
    if seen.error:
        return about.fail(for_code(seen.error).__name__, "look at the brokers' log")
    return about.ok(f"{topic.key}")


def describe(topic: Wanted, seen: TopicSeen | None) -> Finding:
    about = About("acl.describe", topic.name)
    if seen is None:
        return about.unknown("Kafka was not reached")
    if seen.error == TopicAuthorizationFailedError.errno:
        return about.fail("denied", _grant(topic, "Describe", "Write", "DescribeConfigs"))
    return about.ok("granted")


def write(topic: Wanted, seen: TopicSeen) -> Finding:
    about = About("acl.write", topic.name)
    if seen.operations is None:
        return about.unknown("brokers before Kafka 2.3 do not tell", "let the agent try")
    if not seen.operations >> WRITE & 1:
        return about.fail("denied", _grant(topic, "Write"))
    return about.ok("granted")


def describe_configs(topic: Wanted, seen: TopicSeen) -> Finding:
    about = About("acl.describe_configs", topic.name)
    if seen.settings is None:
        found = "denied: the agent goes by Kafka's default of max.message.bytes"
        return about.warn(found, _grant(topic, "DescribeConfigs"))
    return about.ok("granted")


def partitions(topic: Wanted, seen: TopicSeen) -> Finding:
    about, count = About("topic.partitions", topic.name), len(seen.partitions)
    leaderless = [str(one.number) for one in seen.partitions if one.leader < 0]
    if leaderless:
        found = f"{len(leaderless)} of {count} have no leader: {', '.join(leaderless[:10])}"
        return about.fail(found, "bring the brokers back that have them: kafka-topics --describe")
    if count == 1 and topic.key == "kafka.topic":
        advice = "kafka-topics --alter --partitions 12, before consumers rely on an order"
        return about.warn("1: one broker takes all that all nodes send", advice)
    return about.ok(f"{count}, all with a leader")


def replication(topic: Wanted, seen: TopicSeen) -> Finding:
    about, least = About("topic.replication", topic.name), _replicas(seen)
    if least < 2:  # noqa: PLR2004  two is where it begins
        advice = "kafka-reassign-partitions to a replication factor of 3"
        return about.warn("1 replica: what is acknowledged dies with a broker's disk", advice)
    behind = sum(p.insync < p.replicas for p in seen.partitions)
    if behind:
        return about.warn(
            f"{behind} partitions have replicas that are behind", "look at the brokers"
        )
    return about.ok(f"{least} replicas, all in sync")


def _replicas(seen: TopicSeen) -> int:
    return min(partition.replicas for partition in seen.partitions)


def min_insync_replicas(topic: Wanted, seen: TopicSeen, settings: Mapping[str, str]) -> Finding:
    about, replicas = About("topic.min_insync_replicas", topic.name), _replicas(seen)
    least = int(settings["min.insync.replicas"])
    said = f"{least} of {replicas} replicas"
    if least > replicas:
        advice = "lower min.insync.replicas, or add replicas"
        return about.fail(f"{said}: no write is ever acknowledged", advice)
    if any(p.insync < least for p in seen.partitions):
        return about.fail(f"{said}, and fewer are in sync: nothing is acknowledged", "mend brokers")
    if least == replicas and replicas > 1:
        advice = "set it to one less than the replicas"
        return about.warn(f"{said}: any broker that restarts stops delivery", advice)
    if least < 2:  # noqa: PLR2004  two is where it begins
        advice = "set min.insync.replicas=2 with 3 replicas"
        return about.warn(f"{said}: one disk alone may have what is acknowledged", advice)
    return about.ok(said)


def message_bytes(topic: Wanted, settings: Mapping[str, str]) -> Finding:
    about, limit = About("topic.message_bytes", topic.name), int(settings["max.message.bytes"])
    needed = topic.line_bytes_max + ENRICHED_BYTES
    found = f"max.message.bytes is {limit}, {topic.line_key} {topic.line_bytes_max}"
    if limit >= needed:
        return about.ok(found)
    lost = "longer lines become dead letters"
    if topic.key == "dlq.topic":
        lost = "longer dead letters lose their payload"
    advice = f"set max.message.bytes to {needed} or more, or {topic.line_key} lower"
    if limit < topic.line_bytes_max:
        return about.fail(f"{found}: {lost}, where they do not compress", advice)
    return about.warn(f"{found}: the longest may not fit once enriched", advice)


def retention(topic: Wanted, settings: Mapping[str, str]) -> Finding:
    about = About("topic.retention", topic.name)
    kept_s, kept_bytes = int(settings["retention.ms"]) / 1000, int(settings["retention.bytes"])
    bytes_said = "" if kept_bytes < 0 else f", at most {kept_bytes >> 20} MiB of a partition"
    found = "without end" if kept_s < 0 else f"{kept_s / 86400:.1f} days"
    if 0 <= kept_s < RETENTION_MIN_S:
        advice = "raise retention.ms: consumers need time to come back, and event times are old"
        return about.warn(f"{found}{bytes_said}", advice)
    if kept_bytes >= 0:
        advice = "retention.bytes=-1, or see that consumers are never that far behind"
        return about.warn(f"{found}{bytes_said}", advice)
    return about.ok(found)


def cleanup_policy(topic: Wanted, settings: Mapping[str, str]) -> Finding:
    about, policy = About("topic.cleanup_policy", topic.name), settings["cleanup.policy"]
    if "compact" in policy:
        found = f"{policy}: of records with the same key only the last is kept"
        return about.fail(found, "set cleanup.policy=delete: keys of events are not theirs alone")
    return about.ok(policy)


def timestamps(topic: Wanted, settings: Mapping[str, str]) -> Finding:
    """Whether the topic takes the events' own times, where they are to be those of records."""
    about, kind = About("topic.timestamps", topic.name), settings.get("message.timestamp.type")
    if kind == "LogAppendTime":
        if topic.event_time:
            advice = "set message.timestamp.type=CreateTime, or kafka.timestamp: produce"
            return about.warn("LogAppendTime: the events' own times are replaced", advice)
        return about.ok("LogAppendTime: those of the brokers")
    before_ms = int(settings.get("message.timestamp.before.max.ms", UNBOUNDED_MS))
    if topic.event_time and before_ms < UNBOUNDED_MS:
        found = f"events older than {before_ms / 86_400_000:.1f} days are refused: dead letters"
        return about.warn(found, "raise message.timestamp.before.max.ms, or send them as they come")
    return about.ok("CreateTime")


def clock(topic: Wanted, seen: TopicSeen) -> Finding:
    """A record of the future: this clock is behind that of another node, or of a broker."""
    about = About("topic.clock", topic.name)
    if seen.newer is None:
        return about.unknown("no leader was asked")
    if seen.newer:
        found = f"has records more than {AHEAD_S:.0f} s in the future of this node's clock"
        return about.warn(found, "compare the clocks of nodes and brokers (chronyc tracking)")
    return about.ok("no record is from the future")
