"""Lines too long for a topic, and what becomes of them once it refuses them.

The oracle holds a dead letter against the line; the value of one that Kafka refused is the record
(docs/events.md), so these are counted here. They are found in the order in which their partitions
were tried, which is not the file's.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from aiokafka import ConsumerRecord

from agent.demo.oracle import FileSource, Verdict
from tests.running import feedback

MARK = "large"
LETTERS = 8000
"""Of twenty, drawn by chance: gzip makes some 4,700 bytes of them."""
SMALL_EACH = 10
REASON = b"refused_too_large"


class Large:
    """``refused_from``: large lines from this number on are refused; None: none is."""

    def __init__(self, draw: random.Random) -> None:
        self.written = 0
        self.refused_from: int | None = None
        self._draw = draw
        self._refused: Counter[int] = Counter()

    def lines(self, count: int) -> list[bytes]:
        """Return ``count`` large lines, small ones behind each."""
        lines = []
        for number in range(self.written, self.written + count):
            text = "".join(self._draw.choices("bcdfghjklmnpqrstvwxz", k=LETTERS))
            lines.append(feedback(number, comment=text, metadata={MARK: number}))
            lines += [feedback(1_000_000 + number * SMALL_EACH + n) for n in range(SMALL_EACH)]
        self.written += count
        return lines

    def take(self, letter: ConsumerRecord) -> bool:
        """Note a dead letter that Kafka refused. Return whether it was one."""
        if dict(letter.headers).get("reason") != REASON:
            return False
        self._refused[_number(letter.value)] += 1
        return True

    def among(self, sources: Iterable[FileSource]) -> "list[Accepted]":
        """Return ``sources`` without the lines that are refused."""
        refused_from = self.written if self.refused_from is None else self.refused_from
        return [Accepted(source.id, source.name, source, refused_from) for source in sources]

    def count_in(self, verdict: Verdict) -> None:
        """Add what was refused, or should have been, to ``verdict``."""
        expected = set(range(self.written if self.refused_from is None else self.refused_from))
        expected ^= set(range(self.written))
        found = set(self._refused)
        verdict.lines += len(expected)
        verdict.dead_lettered += len(expected & found)
        verdict.lost += len(expected - found)
        verdict.misjudged += len(found - expected)
        verdict.copies += self._refused.total() - len(found)
        if expected != found:
            verdict.say(f"refused: {sorted(found)}, not {sorted(expected)}")


class Accepted(NamedTuple):
    """A source as the oracle sees it, without the large lines from ``refused_from`` on."""

    id: str
    name: str
    source: FileSource
    refused_from: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        for start, body in self.source.lines():
            if _number(body) < self.refused_from:
                yield start, body


def _number(text: bytes) -> int:
    """Return the number of a large line, -1 of any other."""
    if b'"large":' not in text:
        return -1
    metadata: dict[str, int] = json.loads(text)["metadata"]
    return metadata[MARK]
