"""Real brokers that come to harm, and topics that change under way."""

import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from confluent_kafka import ElectionType, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __all__ is empty
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests import real_kafka

ANSWER_WITHIN_S = 30.0
EVERY_S = 0.05
APPLIED_WITHIN_S = 0.5
"""A broker answers for a new setting before it goes by it."""
COMPACT_MAX = 127
ALTER_CLIENT_QUOTAS, ALTER_PARTITION_REASSIGNMENTS = 49, 45  # keys of Kafka's protocol

GUARDED = (
    "--set=authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "--set=allow.everyone.if.no.acl.found=true",
)


def until(holds: Callable[[], bool], what: str, within_s: float = ANSWER_WITHIN_S) -> None:
    """Wait until ``holds``; raises ``AssertionError`` when time is up."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(EVERY_S)


class Kafka:
    """A cluster as an administrator sees it; its brokers answer."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._admin = AdminClient(
            {
                "bootstrap.servers": bootstrap_servers,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,  # that brokers are away is no news here
            }
        )

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(sorted(self._admin.list_topics(timeout=ANSWER_WITHIN_S).brokers))

    # ---- topics

    def create(
        self, topic: str, partitions: int, replication: int, configs: Mapping[str, str]
    ) -> None:
        """Create ``topic`` and wait until every partition has a leader."""
        new = NewTopic(topic, partitions, replication, config=dict(configs))
        _all_of(self._admin.create_topics([new]))
        until(lambda: self._led(topic) == partitions, f"leaders of {topic}")

    def delete(self, *topics: str) -> None:
        """Delete and wait until nobody knows them."""
        _all_of(self._admin.delete_topics(list(topics)))
        until(lambda: not self.known() & set(topics), f"{topics} deleted")

    def configure(self, topic: str, **configs: object) -> None:
        """Set ``max_message_bytes=1`` for ``max.message.bytes``; returns when brokers go by it."""
        wanted = {name.replace("_", "."): str(value) for name, value in configs.items()}
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
            for name, value in wanted.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        _all_of(self._admin.incremental_alter_configs([resource]))

        def known() -> bool:
            asked = ConfigResource(ResourceType.TOPIC, topic)
            found = self._admin.describe_configs([asked])[asked].result(ANSWER_WITHIN_S)
            return all(found[name].value == value for name, value in wanted.items())

        until(known, f"{wanted} of {topic}")
        time.sleep(APPLIED_WITHIN_S)

    def leaders(self, topic: str) -> dict[int, int]:
        """Return the node that leads, by partition."""
        partitions = self._admin.list_topics(timeout=ANSWER_WITHIN_S).topics[topic].partitions
        return {number: partition.leader for number, partition in partitions.items()}

    def move_leaders(self, topic: str) -> None:
        """Give each partition to the next of its replicas; returns when all have moved."""
        found = self._admin.describe_topics(TopicCollection([topic]))[topic].result()
        turned = {}
        for partition in found.partitions:
            first, *others = [replica.id for replica in partition.replicas]
            turned[partition.id] = [*others, first]
        _reassign(self.bootstrap_servers, topic, turned)
        wanted = {number: replicas[0] for number, replicas in turned.items()}
        partitions = [TopicPartition(topic, number) for number in turned]

        def moved() -> bool:
            self._admin.elect_leaders(ElectionType.PREFERRED, partitions).result()
            return self.leaders(topic) == wanted

        until(moved, f"leaders {wanted} of {topic}")

    # ---- limits

    def limit(self, client_id: str, bytes_per_s: float | None) -> None:
        """Set the quota at which ``client_id`` may produce, for each broker; None lifts it."""
        ops = struct.pack(">d?", bytes_per_s or 0.0, bytes_per_s is None)
        body = struct.pack(">ii", 1, 1) + _text("client-id") + _text(client_id)
        body += struct.pack(">i", 1) + _text("producer_byte_rate") + ops + b"\0"
        answer = _ask(self.bootstrap_servers, ALTER_CLIENT_QUOTAS, 0, b"", body)
        _, _, code = struct.unpack(">iih", answer[:10])
        assert 0 == code, f"quota of {client_id}: error {code}: {answer!r}"

    def deny(self, topic: str) -> None:
        """Let nobody write to ``topic``; describing and reading it is still allowed."""
        _all_of(self._admin.create_acls([AclBinding(*rule) for rule in _rules(topic)]))
        time.sleep(APPLIED_WITHIN_S)

    def allow(self, topic: str) -> None:
        """Take ``deny`` back."""
        _all_of(self._admin.delete_acls([AclBindingFilter(*rule) for rule in _rules(topic)]))

    def known(self) -> set[str]:
        return set(self._admin.list_topics(timeout=ANSWER_WITHIN_S).topics)

    def _led(self, topic: str) -> int:
        found = self._admin.list_topics(timeout=ANSWER_WITHIN_S).topics.get(topic)
        partitions = found.partitions.values() if found else ()
        return sum(partition.leader >= 0 for partition in partitions)


def guarded(run: Path) -> Kafka:
    """Start one node in ``run`` that knows ACLs. Three would never meet: until they have read the
    ACLs they let nobody in, each other included."""
    return Kafka(real_kafka.start(run, *GUARDED))


def stop(run: Path) -> None:
    real_kafka.run_script(run, "stop").check_returncode()


class Brokers(Kafka):
    """Three nodes of ours, in the directory ``run``; they come to harm by their number."""

    def __init__(self, run: Path) -> None:
        super().__init__(real_kafka.start(run, "--nodes", "3"))
        self._run = run
        self.numbers = tuple(self._states())

    def kill(self, *numbers: int) -> None:
        self._tell("kill", numbers)

    def pause(self, *numbers: int) -> None:
        """SIGSTOP: connections stay, the kernel accepts new ones, nobody answers."""
        self._tell("pause", numbers)

    def mend(self) -> None:
        """Bring every node back; returns when each knows of all."""
        if paused := [number for number, state in self._states().items() if state == "paused"]:
            self._tell("resume", paused)
        self._tell("up", self.numbers)

    def _tell(self, command: str, numbers: Sequence[int]) -> None:
        done = real_kafka.run_script(self._run, command, *map(str, numbers))
        assert 0 == done.returncode, done.stderr

    def _states(self) -> dict[int, str]:
        said = real_kafka.run_script(self._run, "status").stdout.splitlines()
        rows = [line.split() for line in said if line.startswith("node ")]
        return {int(number): state for _, number, state, *_ in rows}


def _rules(topic: str) -> list[tuple[Any, ...]]:
    what = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*")
    return [
        (*what, AclOperation.WRITE, AclPermissionType.DENY),
        (*what, AclOperation.ALL, AclPermissionType.ALLOW),
    ]


def _all_of(answers: Mapping[Any, "Future[Any]"]) -> None:
    for answer in answers.values():
        answer.result(ANSWER_WITHIN_S)


# ---- what the admin client does not know


def _reassign(bootstrap_servers: str, topic: str, replicas: Mapping[int, Sequence[int]]) -> None:
    partitions = b"".join(
        struct.pack(f">iB{len(nodes)}iB", number, len(nodes) + 1, *nodes, 0)
        for number, nodes in replicas.items()
    )
    name = topic.encode()
    assert max(len(name), len(replicas)) < COMPACT_MAX, "a length of one byte"
    body = struct.pack(">iBB", int(ANSWER_WITHIN_S * 1000), 2, len(name) + 1) + name
    body += bytes([len(replicas) + 1]) + partitions + b"\0\0"
    answer = _ask(bootstrap_servers, ALTER_PARTITION_REASSIGNMENTS, 0, b"\0", body)
    (code,) = struct.unpack(">h", answer[5:7])  # behind the tags of the header, and the throttle
    assert 0 == code, f"reassignment of {topic}: error {code}"


def _ask(bootstrap_servers: str, key: int, version: int, tags: bytes, body: bytes) -> bytes:
    """Return what stands behind the correlation id of the answer."""
    host, _, port = bootstrap_servers.split(",", maxsplit=1)[0].rpartition(":")
    request = struct.pack(">hhih", key, version, 1, -1) + tags + body
    with socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN_S) as peer:
        peer.sendall(struct.pack(">i", len(request)) + request)
        with peer.makefile("rb") as answer:
            (length,) = struct.unpack(">i", answer.read(4))
            return answer.read(length)[4:]


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()
