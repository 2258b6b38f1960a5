"""Answers that get lost, come late, in half, as noise or never: nothing lost, order kept.

Where the producer lives through it, it sends the same sequence numbers again, and a broker that
has them already takes them once. The embedded broker checks none, so there a copy is allowed.
"""

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from agent.core import delivery
from agent.demo.broker import EmbeddedKafka
from tests.conftest import Topics
from tests.patience import WITHIN_S
from tests.proxy import METADATA, PRODUCE, Lie, LyingProxy, framed
from tests.sending import Sending, arrived, sending

PARTITIONS = 3
BATCHES = 7
LATE_S = 2.0
TIMEOUT_S = 1.5
NOT_LEADER, TOPIC_MISSING = 6, 3
SILENT_S = 3.0  # a timeout that no pause of the machine is taken for


@dataclass
class Place:
    """A topic, the proxy in front of it, and whether its brokers check sequences."""

    bootstrap: str
    topic: str
    proxy: LyingProxy
    exact: bool

    def sending(
        self, timeout_s: float = TIMEOUT_S, ack_age_max_s: float = 30.0
    ) -> AbstractAsyncContextManager[Sending]:
        servers = self.proxy.bootstrap_servers
        return sending(servers, self.topic, timeout_s=timeout_s, ack_age_max_s=ack_age_max_s)

    async def assert_delivered(self, node: Sending, copies_max: int = 0) -> None:
        """0 lost, nothing refused, first deliveries in order, copies only where allowed."""
        found = await arrived(self.bootstrap, self.topic)
        assert not node.refused
        assert node.admitted == {p: list(dict.fromkeys(values)) for p, values in found.items()}
        copies = sum(len(values) - len(set(values)) for values in found.values())
        assert copies <= copies_max, found


@pytest.fixture
async def embedded_place(embedded: EmbeddedKafka) -> AsyncIterator[Place]:
    embedded.create_topic("feedback", PARTITIONS)
    for partition in range(PARTITIONS):
        embedded.leader("feedback", partition, partition + 1)
    servers = embedded.bootstrap_servers
    async with LyingProxy(servers) as proxy:
        yield Place(servers, "feedback", proxy, exact=False)


@pytest.fixture
async def kafka_place(kafka: str, topics: Topics) -> AsyncIterator[Place]:
    topic = await topics(partitions=PARTITIONS, retention_ms=-1)  # records of 2023
    async with LyingProxy(kafka) as proxy:
        yield Place(kafka, topic, proxy, exact=True)


@pytest.fixture(
    params=["embedded_place", pytest.param("kafka_place", marks=pytest.mark.kafka)],
    ids=["embedded", "kafka"],
)
def place(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


# ---- lies


def nothing(_: bytes) -> bytes:
    return b""


def half(answer: bytes) -> bytes:
    whole = framed(answer)
    return whole[: len(whole) // 2]


def of_another(answer: bytes) -> bytes:
    """The answer to a request that nobody sent."""
    return framed(struct.pack(">i", 0x7EADBEEF) + answer[4:])


def endless(_: bytes) -> bytes:
    """The head of an answer of 2 GiB, and no more."""
    return struct.pack(">i", 0x7FFFFFFF)


def negative(_: bytes) -> bytes:
    return struct.pack(">i", -5)


def empty(_: bytes) -> bytes:
    return framed(b"")


HONEST = Lie()
LIVED_THROUGH = {
    "lost_answer": Lie(nothing, hang_up=True),
    "lost_request": Lie(nothing, hang_up=True, taken=False),
    "late": Lie(wait_s=LATE_S),
    "half": Lie(half, hang_up=True),
    "half_then_silence": Lie(half),
    "taken_never_answered": Lie(nothing),
    "never_taken_nor_answered": Lie(nothing, taken=False),
    "answer_of_another": Lie(of_another),
    "endless": Lie(endless),
    "negative": Lie(negative),
    "empty": Lie(empty),
}


STRUCK = (0, BATCHES // 2, BATCHES - 1)


@pytest.mark.parametrize("name", LIVED_THROUGH)
async def test_a_producer_lives_through_a_lost_answer(place: Place, name: str) -> None:
    """It sends the same sequence numbers again: nothing twice where they are checked.

    The first, a middle and the last batch of a run are struck.
    """
    lie, late = LIVED_THROUGH[name], name == "late"
    async with place.sending(2 * LATE_S if late else TIMEOUT_S) as node:
        for n in range(BATCHES):
            again = [] if late else [HONEST]
            place.proxy.lie(*([lie, *again] if n in STRUCK else [HONEST]))
            node.admit(b"%d" % n, b"%d'" % n)
        await node.until_empty(WITHIN_S)

        assert ([], 0) == (node.heard, node.retirements)
    sent = place.proxy.produced
    each = list(dict.fromkeys(sent))
    assert BATCHES == len(each), "a batch went out again under another number"
    assert late or all(sent.count(each[n]) > 1 for n in STRUCK)
    await place.assert_delivered(node, copies_max=0 if place.exact else 2 * len(STRUCK))


async def test_an_answer_lost_again_and_again_is_asked_for_again(place: Place) -> None:
    async with place.sending() as node:
        place.proxy.lie(HONEST, *[LIVED_THROUGH["lost_answer"]] * 10)
        for n in range(BATCHES):
            node.admit(b"%d" % n)
        await node.until_empty(WITHIN_S)

        assert ([], 0) == (node.heard, node.retirements)
    await place.assert_delivered(node, copies_max=0 if place.exact else 10)


DRAW = random.Random(7)  # noqa: S311 - seeded, to be the same noise each time
NOISE = {
    "about_nothing": bytes(16),  # a whole answer, about no topic
    "byte": b"\xff",
    "forty": DRAW.randbytes(40),
    "four_hundred": DRAW.randbytes(400),
}


async def shouted_at(place: Place, noise: bytes, *, taken: bool) -> Sending:
    """Send in three partitions, where the frame of one answer holds noise."""
    async with place.sending(ack_age_max_s=TIMEOUT_S) as node:
        for partition in range(PARTITIONS):
            node.admit(b"first %d" % partition, partition=partition)
        await node.until_empty(WITHIN_S)
        place.proxy.lie(HONEST, Lie(lambda answer: framed(answer[:4] + noise), taken=taken))
        for n in range(BATCHES):
            for partition in range(PARTITIONS):
                node.admit(b"%d of %d" % (n, partition), partition=partition)
        await node.until_empty(WITHIN_S)
        assert node.retirements <= 1
        return node


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up a producer soon: an answer may say nothing of the batch that waits for it."""
    monkeypatch.setattr(delivery, "STALE_S", TIMEOUT_S)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", NOISE)
async def test_noise_in_the_frame_of_an_answer(place: Place, name: str) -> None:
    """What became of the batch is unknown: at most what was in flight is sent twice."""
    node = await shouted_at(place, NOISE[name], taken=True)

    await place.assert_delivered(node, copies_max=2 * PARTITIONS)


@pytest.mark.kafka
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", NOISE)
async def test_noise_in_place_of_taking_a_batch(kafka_place: Place, name: str) -> None:
    """The broker finds out by the number of the next one; the embedded broker would not."""
    node = await shouted_at(kafka_place, NOISE[name], taken=False)

    await kafka_place.assert_delivered(node, copies_max=2 * PARTITIONS)


async def test_one_silent_broker_stalls_the_others_for_one_timeout_at_most(
    embedded_place: Place,
) -> None:
    """It accepts connections and requests and answers none, metadata included."""
    place, slowest_s = embedded_place, 0.0
    async with place.sending(SILENT_S) as node:
        for partition in range(PARTITIONS):
            node.admit(b"first %d" % partition, partition=partition)
        await node.until_empty(WITHIN_S)

        place.proxy.silence(place.bootstrap.split(",")[0])
        node.admit(b"stuck")
        for n in range(14):
            began_s = time.monotonic()
            values = {p: b"%d of %d" % (n, p) for p in (1, 2)}
            for partition, value in values.items():
                node.admit(value, partition=partition)
            await node.until(lambda v=values: {*v.values()} <= {*node.settled}, WITHIN_S)  # type: ignore[misc]
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(0.3)
        assert b"stuck" not in node.settled
        await place.proxy.speak()
        await node.until_empty(WITHIN_S)

        assert ([], 0) == (node.heard, node.retirements)
    assert slowest_s < 2 * SILENT_S
    await place.assert_delivered(node)


async def test_nothing_is_lost_while_every_broker_is_silent(place: Place) -> None:
    """Nothing fails meanwhile: what was on its way goes out as it was when they speak again."""
    async with place.sending() as node:
        for n in range(BATCHES):
            if n == 2:
                await node.until_empty(WITHIN_S)
                place.proxy.silence()
            node.admit(b"%d" % n)
            node.admit(b"%d'" % n, partition=1)
        await asyncio.sleep(3 * TIMEOUT_S)
        assert 4 == len(node.settled)
        await place.proxy.speak()
        await node.until_empty(WITHIN_S)

        assert ([], 0) == (node.heard, node.retirements)
    await place.assert_delivered(node)


async def test_a_broker_silent_at_the_start_is_waited_for(place: Place) -> None:
    async with place.sending(0.5) as node:
        place.proxy.silence()
        node.admit(b"0")
        await node.until(lambda: bool(node.heard), WITHIN_S)
        await place.proxy.speak()
        await node.until_empty(WITHIN_S)

        assert {error.reason for error in node.heard} <= {"timeout", "unreachable"}
    await place.assert_delivered(node)


@pytest.mark.parametrize("gone", [True, False], ids=["topic_gone", "no_leader"])
async def test_a_partition_nobody_leads_is_not_asked_about_without_a_pause(
    embedded_place: Place, embedded: EmbeddedKafka, gone: bool
) -> None:
    """aiokafka asks again as soon as it is answered; ten thousand nodes would never let it end."""
    place, proxy = embedded_place, embedded_place.proxy
    async with place.sending(5.0) as node:
        node.admit(b"0")
        await node.until_empty(WITHIN_S)
        embedded.leader(place.topic, 0, None)
        proxy.topic_errors = [TOPIC_MISSING] * 10_000 * gone
        embedded.fail(PRODUCE, NOT_LEADER)  # a first reason to ask
        before = proxy.asked[METADATA]
        node.admit(b"1")
        await node.until(lambda: proxy.asked[METADATA] > before, WITHIN_S)
        await asyncio.sleep(2.0)
        asked = proxy.asked[METADATA] - before

        proxy.topic_errors = []
        embedded.leader(place.topic, 0, 2)
        await node.until_empty(WITHIN_S)
        assert ([], 0) == (node.heard, node.retirements)
    assert asked <= 40, "hundreds, without a pause"
    await place.assert_delivered(node)


async def test_a_batch_that_no_answer_names_does_not_wait_for_ever_beside_busy_others(
    embedded_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Acknowledgements of other partitions say nothing about this one."""
    monkeypatch.setattr(delivery, "STALE_S", TIMEOUT_S)
    place = embedded_place
    async with place.sending(ack_age_max_s=TIMEOUT_S) as node:
        for partition in range(3):
            node.admit(b"first %d" % partition, partition=partition)
        await node.until_empty(WITHIN_S)
        place.proxy.lie(Lie(lambda answer: framed(answer[:4] + NOISE["about_nothing"])))
        node.admit(b"forgotten")
        for n in range(240):
            await asyncio.sleep(0.25)
            if b"forgotten" in node.settled:
                break
            node.admit(b"%d" % n, partition=1 + n % 2)
        assert b"forgotten" in node.settled, node.outlet.status()
