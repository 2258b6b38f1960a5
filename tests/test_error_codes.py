"""Whatever code a broker answers, every record arrives, or is refused for what is wrong with it.

``TOLD`` says what each code means to the agent. It is held against aiokafka's table and against
the agent's in both directions: a code that a new aiokafka knows fails here until it is judged.
"""

import asyncio
import ssl
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

import pytest
from aiokafka import errors

from agent import answers as room
from agent.answers import REASONS
from agent.core.reasons import REASONS as DEAD_LETTER_REASONS
from agent.demo.broker import EmbeddedKafka
from agent.errors import RecordRefused, SinkUnavailable
from tests.conftest import Topics
from tests.patience import WITHIN_S
from tests.proxy import LyingProxy
from tests.sending import Sending, arrived, sending

PRODUCE, INIT_PRODUCER_ID = 0, 22
NOT_LEADER, DENIED, OUT_OF_ORDER, DUPLICATE = 6, 29, 45, 46
WAITED_FOR = (14, 15, 16, 51)  # by the client itself while it gets its producer id
UNKNOWN = "kafka_error"
TOPIC = "feedback"
BATCHES = 5
TIMEOUT_S = 30.0
"""Of a request. No slow machine is taken for a broker that does not answer."""


class Fate(Enum):
    """What becomes of a batch that a broker answered with a code."""

    RETRIED = auto()  # inside of the client: nothing failed
    TAKEN = auto()  # the broker has it already
    REFUSED = auto()  # about a record: isolated, and only it is a dead letter
    PAUSED = auto()  # said, the producer retired, sent again by the next one


class Told(NamedTuple):
    fate: Fate
    reason: str


JUDGED: dict[Told, tuple[int, ...]] = {
    Told(Fate.TAKEN, UNKNOWN): (DUPLICATE,),
    Told(Fate.REFUSED, "refused_too_large"): (10, 18),
    Told(Fate.REFUSED, "refused_invalid"): (32, 87),
    Told(Fate.RETRIED, "topic_missing"): (3,),
    Told(Fate.RETRIED, "no_leader"): (5, 6),
    Told(Fate.RETRIED, "timeout"): (7,),
    Told(Fate.RETRIED, "not_enough_replicas"): (19, 20),
    Told(Fate.RETRIED, "broker_storage"): (56,),
    Told(Fate.RETRIED, UNKNOWN): (14, 15, 16, 41),
    Told(Fate.PAUSED, "topic_missing"): (17,),
    Told(Fate.PAUSED, "topic_denied"): (29,),
    Told(Fate.PAUSED, "cluster_denied"): (31,),
    Told(Fate.PAUSED, "authentication"): (33, 34, 58),
    Told(Fate.PAUSED, "unreachable"): (8, 13),
    Told(Fate.PAUSED, "no_leader"): (9,),
    Told(Fate.PAUSED, "sequence"): (45, 47, 49, 59),
    # Of the request, of other requests, or of nobody knows what: never a reason to drop.
    Told(Fate.PAUSED, UNKNOWN): (
        *(-1, 1, 2, 4, 11, 12, 21, 22, 23, 24, 25, 26, 27, 28, 30, 35, 36, 37, 38, 39, 40, 42, 43),
        *(44, 48, 50, 51, 52, 53, 54, 55, 57, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72),
        79,
    ),
}
TOLD = {code: told for told, codes in JUDGED.items() for code in codes}

NO_CODES: dict[type[BaseException], str] = {
    errors.RecordTooLargeError: "refused_too_large",
    errors.AuthenticationFailedError: "authentication",
    errors.AuthenticationMethodNotSupported: "authentication",
    errors.KafkaConnectionError: "unreachable",
    errors.NodeNotReadyError: "unreachable",
    errors.NoBrokersAvailable: "unreachable",
    errors.KafkaTimeoutError: "timeout",
    errors.ProducerFenced: "sequence",
    room.TopicShrunk: "topic_changed",
    TimeoutError: "timeout",
    ssl.SSLError: "tls",
    OSError: "unreachable",
}
"""What the client raises of its own accord."""

# Of Kafka 4.1 but not of aiokafka 0.14, such as UNSUPPORTED_COMPRESSION_TYPE (76), and of nobody.
STRANGE = (73, 74, 75, 76, 77, 78, 80, 84, 88, 89, 90, 95, 100, 107, 116, 133, 999, 32767, -2)


CODES = [*sorted(TOLD), *STRANGE]
TABLES: tuple[Mapping[Any, str], ...] = (room.REFUSED, room.UNAVAILABLE)


def told_of(code: int) -> Told:
    """Return what the agent's tables and aiokafka make of ``code``."""
    kind = errors.for_code(code)
    if code == DUPLICATE:
        return Told(Fate.TAKEN, UNKNOWN)
    if kind in room.REFUSED:
        return Told(Fate.REFUSED, room.REFUSED[kind])
    fate = Fate.RETRIED if kind.retriable else Fate.PAUSED
    return Told(fate, room.UNAVAILABLE.get(kind, UNKNOWN))


def test_every_code_of_aiokafka_is_judged() -> None:
    known = [code for code in errors.kafka_errors if code != errors.NoError.errno]

    assert TOLD == {code: told_of(code) for code in known}
    assert len(TOLD) == sum(map(len, JUDGED.values())), "judged twice"


def test_every_entry_of_the_agents_tables_is_judged() -> None:
    entries: dict[Any, str] = {kind: why for table in TABLES for kind, why in table.items()}
    coded = {kind for kind in entries if issubclass(kind, errors.BrokerResponseError)}

    assert NO_CODES == {kind: why for kind, why in entries.items() if kind not in coded}
    for kind in coded:
        assert kind is errors.kafka_errors[kind.errno]
        assert TOLD[kind.errno].reason == entries[kind]
    assert room.REFUSED.keys().isdisjoint(room.UNAVAILABLE)


def test_only_what_says_so_itself_is_about_a_record() -> None:
    """A base class or the unknown error in the table would drop what nobody has judged."""
    bases = {kind for each in errors.kafka_errors.values() for kind in each.__mro__[1:]}

    assert room.REFUSED.keys().isdisjoint({*bases, errors.UnknownError})
    assert set(room.REFUSED.values()) <= set(DEAD_LETTER_REASONS)
    assert {told.reason for told in JUDGED if told.fate is Fate.PAUSED} <= set(REASONS)


def test_strange_codes_are_unknown_to_the_client() -> None:
    """Those that a new aiokafka knows are to be judged, not to stay in this list."""
    assert [errors.UnknownError] * len(STRANGE) == [errors.for_code(code) for code in STRANGE]


# ---- what becomes of records


def script(told: Told, code: int, at: int) -> list[int]:
    """Return the answers to Produce requests by which batch ``at`` meets ``code``."""
    first = [0] * at + [code]
    if told.fate in (Fate.RETRIED, Fate.TAKEN):
        return first
    if 0 < at < BATCHES - 1:  # Kafka itself does so to the batch behind; the mock would take it
        first.append(OUT_OF_ORDER)
    return [*first, code] if told.fate is Fate.REFUSED else first


async def run(told: Told, code: int, at: int) -> None:
    with EmbeddedKafka(brokers=1) as cluster:
        cluster.create_topic(TOPIC, 1)
        async with sending(cluster.bootstrap_servers, TOPIC, timeout_s=TIMEOUT_S) as node:
            cluster.fail(PRODUCE, *script(told, code, at))
            for n in range(BATCHES):
                node.admit(b"%d" % n, b"%d'" % n)
            await node.until_empty(WITHIN_S)

        expected = node.admitted[0]
        struck = expected[2 * at : 2 * at + 2]
        refused = [(struck[0], told.reason)] if told.fate is Fate.REFUSED else []
        if told.fate is Fate.TAKEN:  # so the mock says: it answered in place of taking it
            expected = [value for value in expected if value not in struck]
        expected = [value for value in expected if (value, told.reason) not in refused]
        assert refused == node.refused
        assert {0: expected} == await arrived(cluster.bootstrap_servers, TOPIC)
        assert_said(node, told)


def assert_said(node: Sending, told: Told) -> None:
    assert node.outlet.problem is None
    if told.fate in (Fate.RETRIED, Fate.TAKEN):
        assert ([], 0) == (node.heard, node.retirements)
        return
    kind = RecordRefused if told.fate is Fate.REFUSED else SinkUnavailable
    assert isinstance(node.heard[0], kind)
    assert told.reason == node.heard[0].reason
    assert (2 if told.fate is Fate.REFUSED else 1) == node.retirements


@pytest.mark.parametrize("code", CODES)
async def test_whatever_a_produce_request_meets(code: int) -> None:
    """At the first, a middle and the last batch of a run."""
    told = TOLD.get(code, Told(Fate.PAUSED, UNKNOWN))

    await asyncio.gather(*(run(told, code, at) for at in (0, BATCHES // 2, BATCHES - 1)))


@pytest.mark.parametrize("code", CODES)
async def test_whatever_a_new_producer_meets(code: int) -> None:
    """A producer's id comes before its first batch: no code there is about a record."""
    reason = TOLD[code].reason if code in TOLD else UNKNOWN
    said = [] if code in WAITED_FOR else [reason if reason in REASONS else UNKNOWN]
    with EmbeddedKafka(brokers=1) as cluster:
        cluster.create_topic(TOPIC, 1)
        cluster.fail(INIT_PRODUCER_ID, code)
        async with sending(cluster.bootstrap_servers, TOPIC, timeout_s=TIMEOUT_S) as node:
            node.admit(b"0", b"1")
            node.admit(b"2")
            await node.until_empty(WITHIN_S)

        assert {0: [b"0", b"1", b"2"]} == await arrived(cluster.bootstrap_servers, TOPIC)
        assert ([], 0) == (node.refused, node.retirements)
        assert said == [error.reason for error in node.heard]


async def describe(code: int) -> None:
    with EmbeddedKafka(brokers=1) as cluster:
        cluster.create_topic(TOPIC, 1)
        servers = cluster.bootstrap_servers
        async with (
            LyingProxy(servers) as proxy,
            sending(proxy.bootstrap_servers, TOPIC, timeout_s=TIMEOUT_S) as node,
        ):
            proxy.topic_errors = [code]
            node.admit(b"0", b"1")
            await node.until_empty(WITHIN_S)
            assert ["topic_denied" if code == DENIED else "topic_missing"] == [
                error.reason for error in node.heard
            ], code

            proxy.topic_errors = [code] * 2
            cluster.fail(PRODUCE, NOT_LEADER)  # it asks again
            node.admit(b"2")
            node.admit(b"3")
            await node.until_empty(WITHIN_S)
            assert not proxy.topic_errors, code

        assert {0: [b"0", b"1", b"2", b"3"]} == await arrived(servers, TOPIC), code
        assert ([], 0) == (node.refused, node.retirements), code


@pytest.mark.parametrize("codes", [CODES[n :: len(CODES) // 10] for n in range(len(CODES) // 10)])
async def test_whatever_metadata_says_of_the_topic(codes: list[int]) -> None:
    """Before the first batch nothing is known of the topic; later it is, until it is asked again.

    The embedded broker has no errors for Metadata: a proxy puts them in.
    """
    await asyncio.gather(*map(describe, codes))


@pytest.mark.kafka
async def test_a_record_without_a_key_is_refused_by_a_compacted_topic(
    kafka: str, topics: Topics
) -> None:
    """INVALID_RECORD from a broker that means it: the others must not wait behind it."""
    topic = await topics(partitions=1, cleanup_policy="compact", retention_ms=-1)
    async with sending(kafka, topic, timeout_s=TIMEOUT_S) as node:
        node.admit(b"0", b"1", key=b"k")
        node.admit(b"2", b"3")
        node.admit(b"4", b"5", key=b"k")
        await node.until_empty(WITHIN_S)

    assert [(b"2", "refused_invalid"), (b"3", "refused_invalid")] == node.refused
    assert {0: [b"0", b"1", b"4", b"5"]} == await arrived(kafka, topic)


@pytest.mark.kafka
async def test_a_record_from_too_long_ago_is_refused(kafka: str, topics: Topics) -> None:
    topic = await topics(partitions=1, message_timestamp_before_max_ms=1000)
    async with sending(kafka, topic, timeout_s=TIMEOUT_S) as node:
        node.admit(b"of 2023")
        await node.until_empty(WITHIN_S)

    assert [(b"of 2023", "refused_invalid")] == node.refused
