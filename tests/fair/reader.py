"""The consumer, a process of its own: what arrived, and how long after it was written."""

import re
import time
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

FETCH_RECORDS = 5000
FETCH_S = 0.005
_STAMP = re.compile(rb'"written_at_ns":([0-9]+)')

Ask = Literal["count", "take", "end"]


class Arrived(NamedTuple):
    """Distinct lines, by the place that their records name; and records that came again."""

    lines: int
    copies: int


class Sample(NamedTuple):
    """A line that said when it was written, in nanoseconds since the epoch: when that was, when the
    agent read it (to a millisecond, as the record says) and when the consumer had it."""

    written_ns: int
    taken_in_ns: int
    arrived_ns: int


def read(bootstrap: str, topic: str, partitions: int, asked: Connection) -> None:
    """Read ``topic`` until asked to end. ``count`` is answered with ``Arrived``; ``take`` with the
    samples, and then all begins anew."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid4().hex,
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,  # the embedded broker answers at its end, come what may
            "fetch.queue.backoff.ms": 10,
            "queued.min.messages": 1_000_000,
            "auto.offset.reset": "error",  # else what the embedded broker forgot would be silent
        }
    )
    consumer.assign([TopicPartition(topic, n, OFFSET_BEGINNING) for n in range(partitions)])
    places: set[bytes] = set()
    samples: list[Sample] = []
    records = 0
    while True:
        messages = consumer.consume(FETCH_RECORDS, FETCH_S)
        now_ns = time.time_ns()
        for message in messages:
            assert message.error() is None, message.error()
            places.add(_place(message))
            stamp = _STAMP.search(message.value() or b"")
            if stamp is not None:
                written_ns = int(stamp[1])
                taken_in_ns = message.timestamp()[1] * 1_000_000
                samples.append(Sample(written_ns, taken_in_ns, now_ns))
        records += len(messages)
        if asked.poll():
            ask: Ask = asked.recv()
            if ask == "end":
                break
            if ask == "count":
                asked.send(Arrived(len(places), records - len(places)))
            else:
                asked.send(samples)
                places, samples, records = set(), [], 0
    consumer.close()


def _place(message: Message) -> bytes:
    content = dict(message.headers() or ())["source"]
    assert isinstance(content, bytes)
    return content
