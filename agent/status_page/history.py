"""The last minutes of four numbers, as the metrics have them."""

from collections import deque
from itertools import pairwise
from typing import NamedTuple

from prometheus_client import Counter, Gauge

from agent.clock import Clock
from agent.telemetry import Metrics

SPAN_S = 900.0
SAMPLES_MAX = 181
"""Every five seconds, and one more to begin with."""


class Point(NamedTuple):
    """``age_s`` ago it was ``value``."""

    age_s: float
    value: float


class _Sample(NamedTuple):
    at_s: float
    lines_read: float
    delivered: float
    dead_letters: float
    unsent_bytes: float


class Series(NamedTuple):
    """What is drawn; oldest first. The first three a second."""

    lines_read: list[Point]
    delivered: list[Point]
    dead_letters: list[Point]
    unsent_bytes: list[Point]


class History:
    """Remembers what counters stood at. Call ``sample`` every five seconds or so."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_MAX)

    def sample(self) -> None:
        metrics = self._metrics
        self._samples.append(
            _Sample(
                self._clock.monotonic(),
                total(metrics.lines_read),
                total(metrics.events_delivered),
                total(metrics.lines_rejected),
                total(metrics.unsent_bytes),
            )
        )

    def series(self) -> Series:
        now_s = self._clock.monotonic()
        recent = [one for one in self._samples if now_s - one.at_s <= SPAN_S]
        series = Series([], [], [], [])
        for before, one in pairwise(recent):
            age_s, passed_s = now_s - one.at_s, max(1e-3, one.at_s - before.at_s)
            for points, old, new in zip(series[:3], before[1:4], one[1:4], strict=True):
                points.append(Point(age_s, (new - old) / passed_s))
            series.unsent_bytes.append(Point(age_s, one.unsent_bytes))
        return series


def total(metric: Counter | Gauge) -> float:
    """Return the sum over all series of ``metric``."""
    return sum(sample.value for family in metric.collect() for sample in family.samples)
