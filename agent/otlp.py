"""Sends metrics, spans and log lines to a collector by OTLP, in a thread of its own.

A collector is nothing that lines may wait for. Each call has an end; nothing is tried again before
its next turn; metrics are cumulative, so a lost export costs a point and no count; log lines and
spans wait in a short queue each, and beyond it they are dropped, counted. What goes wrong is said
once.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from prometheus_client import CollectorRegistry, Counter

from agent import otlp_messages as messages
from agent.clock import Clock
from agent.core.tracing import Span
from agent.otlp_collector import Collector, Failure, Message, Signal
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""Of one call, at most."""
CLOSE_S = 2.0
"""What the last export may take, all in all, once the agent has stopped."""
WAITING_S = 1.0
"""Between two exports of log lines, and of spans, while they are taken."""
LINES_MAX = 1000
SPANS_MAX = 1000
"""That wait, at most: of spans, what 10 s may bring."""
ITEMS_A_CALL = 200
OWN = ("agent.otlp", "grpc", "opentelemetry")
"""Who speaks of exports is not exported: each line would be one more to send."""

T = TypeVar("T")


class Wanted(Protocol):
    """The section ``otlp`` of the configuration, with an endpoint."""

    @property
    def endpoint(self) -> str | None: ...
    @property
    def export_s(self) -> float: ...
    @property
    def traces_sampled(self) -> float: ...
    @property
    def logs(self) -> bool: ...


class Waiting(Generic[T]):
    """What is to be sent, oldest first; put in by any thread, taken by one."""

    def __init__(
        self, items_max: int, request: Callable[[list[T]], Message], dropped: Counter
    ) -> None:
        self.request = request
        self.dropped = dropped
        self._items_max = items_max
        self._items: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        if len(self._items) >= self._items_max:
            self.dropped.inc()
        else:
            self._items.append(item)

    def take(self) -> list[T]:
        return [self._items.popleft() for _ in range(min(ITEMS_A_CALL, len(self._items)))]

    def put_back(self, items: list[T]) -> None:
        self._items.extendleft(reversed(items))


class Exporter:
    """Use it in a ``with`` block; its end exports once more, within ``CLOSE_S``.

    Args:
        node: Who says all this.
        registry: Read as a whole at each export: nothing is counted twice.
        shown: Says what may be shown of the name of a client or a file.
    """

    def __init__(
        self,
        wanted: Wanted,
        node: str,
        registry: CollectorRegistry,
        *,
        shown: Callable[[str], str] = str,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        assert wanted.endpoint is not None
        self._wanted = wanted
        self._collector = Collector(wanted.endpoint)
        self._resource = messages.resource(node)
        self._registry = registry
        self._clock = clock
        self._metrics = metrics
        self._begun_ns = self._now_ns()
        self._lines: Waiting[messages.Line] = Waiting(
            LINES_MAX,
            lambda lines: messages.of_logs(self._resource, lines),
            metrics.otlp_logs_dropped,
        )
        self._spans: Waiting[messages.Ended] = Waiting(
            SPANS_MAX,
            lambda spans: messages.of_spans(self._resource, spans, shown),
            metrics.otlp_spans_dropped,
        )
        self._failing: dict[Signal, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(CLOSE_S)
        self._collector.close()

    def take(self, record: logging.LogRecord, entry: Mapping[str, object]) -> None:
        """Take a line that was logged, in any thread. Never waits."""
        if not record.name.startswith(OWN):
            self._lines.put(messages.Line(int(record.created * 1e9), record.levelno, entry))

    def take_span(self, span: Span) -> None:
        """Take a span that ended, in any thread. Never waits."""
        self._spans.put(messages.Ended(span, self._clock.wall() - self._clock.monotonic()))

    def _run(self) -> None:
        export_s = self._wanted.export_s
        timeout_s = min(TIMEOUT_S, export_s)
        every_s = self._every_s()
        # Nodes that start together export spread in time.
        first_s = self._clock.monotonic() + random.uniform(0, export_s)  # noqa: S311
        due_s = dict.fromkeys(every_s, first_s)
        while not self._stopping.wait(max(0.0, min(due_s.values()) - self._clock.monotonic())):
            for signal, usual_s in every_s.items():
                if (now_s := self._clock.monotonic()) >= due_s[signal]:
                    well = self._export(signal, timeout_s)
                    due_s[signal] = now_s + (usual_s if well else export_s)
        if not self._failing:
            for signal in every_s:
                self._export(signal, CLOSE_S / len(every_s))

    def _every_s(self) -> dict[Signal, float]:
        """Return which signals are wanted, and how often each is exported while all is well."""
        export_s = self._wanted.export_s
        every_s: dict[Signal, float] = {"metrics": export_s}
        if self._wanted.logs:
            every_s["logs"] = min(WAITING_S, export_s)
        if self._wanted.traces_sampled:
            every_s["traces"] = min(WAITING_S, export_s)
        return every_s

    def _export(self, signal: Signal, timeout_s: float) -> bool:
        """Send what there is. Return whether that went well."""
        try:
            match signal:
                case "metrics":
                    return self._export_metrics(timeout_s)
                case "logs":
                    return self._export_waiting(signal, self._lines, timeout_s)
                case "traces":
                    return self._export_waiting(signal, self._spans, timeout_s)
        except Exception:  # a bug here must cost a point, not all that would have come after it
            self._metrics.otlp_failures.labels(signal).inc()
            log.exception("otlp.broken", extra={"fields": {"signal": signal}})
            return False

    def _export_metrics(self, timeout_s: float) -> bool:
        now_ns = self._now_ns()
        request = messages.of_metrics(self._resource, self._registry, self._begun_ns, now_ns)
        return self._call("metrics", request, timeout_s) is None

    def _export_waiting(self, signal: Signal, waiting: Waiting[T], timeout_s: float) -> bool:
        while waiting:
            items = waiting.take()
            failure = self._call(signal, waiting.request(items), timeout_s)
            if failure is None:
                continue
            if failure.rejected is not None:  # it took the others, and what follows
                waiting.dropped.inc(failure.rejected)
                continue
            if failure.lasting:
                waiting.dropped.inc(len(items))
            else:
                waiting.put_back(items)
            return False
        return True

    def _call(self, signal: Signal, request: Message, timeout_s: float) -> Failure | None:
        failure = self._collector.export(signal, request, timeout_s)
        before = self._failing.pop(signal, None)
        if failure is None:
            if before is not None:
                event(log, logging.INFO, "otlp.restored", signal=signal)
            return None
        self._failing[signal] = failure.reason
        self._metrics.otlp_failures.labels(signal).inc()
        if before is None:
            event(log, logging.WARNING, "otlp.failed", signal=signal, reason=failure.reason,
                  detail=failure.detail, effect="lines are shipped all the same")  # fmt: skip
        return failure

    def _now_ns(self) -> int:
        return int(self._clock.wall() * 1e9)
