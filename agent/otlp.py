"""Sends metrics and log lines to a collector by OTLP, in a thread of its own.

A collector is nothing that lines may wait for. Each call has an end; nothing is tried again before
its next turn; metrics are cumulative, so a lost export costs a point and no count; log lines wait
in a short queue, and beyond it they are dropped, counted. What goes wrong is said once.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from prometheus_client import CollectorRegistry

from agent import otlp_messages as messages
from agent.clock import Clock
from agent.otlp_collector import Collector, Failure, Message, Signal
from agent.telemetry import Metrics, event

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""Of one call, at most."""
CLOSE_S = 2.0
"""What the last export may take, all in all, once the agent has stopped."""
LOGS_S = 1.0
"""Between two exports of log lines, while they are taken."""
LINES_MAX = 1000
"""That wait, at most."""
LINES_A_CALL = 200
OWN = ("agent.otlp", "grpc", "opentelemetry")
"""Who speaks of exports is not exported: each line would be one more to send."""


class Wanted(Protocol):
    """The section ``otlp`` of the configuration, with an endpoint."""

    @property
    def endpoint(self) -> str | None: ...
    @property
    def export_s(self) -> float: ...
    @property
    def logs(self) -> bool: ...


class Exporter:
    """Use it in a ``with`` block; its end exports once more, within ``CLOSE_S``.

    Args:
        node: Who says all this.
        registry: Read as a whole at each export: nothing is counted twice.
    """

    def __init__(
        self,
        wanted: Wanted,
        node: str,
        registry: CollectorRegistry,
        *,
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
        self._lines: deque[messages.Line] = deque()
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
        if record.name.startswith(OWN):
            return
        if len(self._lines) >= LINES_MAX:
            self._metrics.otlp_logs_dropped.inc()
            return
        self._lines.append(messages.Line(int(record.created * 1e9), record.levelno, entry))

    def _run(self) -> None:
        export_s = self._wanted.export_s
        timeout_s = min(TIMEOUT_S, export_s)
        logs_every_s = min(LOGS_S, export_s) if self._wanted.logs else export_s
        # Nodes that start together export spread in time.
        metrics_s = logs_s = self._clock.monotonic() + random.uniform(0, export_s)  # noqa: S311
        while not self._stopping.wait(max(0.0, min(metrics_s, logs_s) - self._clock.monotonic())):
            if (now_s := self._clock.monotonic()) >= metrics_s:
                metrics_s = now_s + export_s
                self._export("metrics", timeout_s)
            if (now_s := self._clock.monotonic()) >= logs_s:
                well = self._export("logs", timeout_s)
                logs_s = now_s + (logs_every_s if well else export_s)
        if not self._failing:
            self._export("metrics", CLOSE_S / 2)
            self._export("logs", CLOSE_S / 2)

    def _export(self, signal: Signal, timeout_s: float) -> bool:
        """Send what there is. Return whether that went well."""
        export = self._export_metrics if signal == "metrics" else self._export_logs
        try:
            return export(timeout_s)
        except Exception:  # a bug here must cost a point, not all that would have come after it
            self._metrics.otlp_failures.labels(signal).inc()
            log.exception("otlp.broken", extra={"fields": {"signal": signal}})
            return False

    def _export_metrics(self, timeout_s: float) -> bool:
        now_ns = self._now_ns()
        request = messages.of_metrics(self._resource, self._registry, self._begun_ns, now_ns)
        return self._call("metrics", request, timeout_s) is None

    def _export_logs(self, timeout_s: float) -> bool:
        while self._lines:
            lines = [self._lines.popleft() for _ in range(min(LINES_A_CALL, len(self._lines)))]
            failure = self._call("logs", messages.of_logs(self._resource, lines), timeout_s)
            if failure is None:
                continue
            if failure.lasting:
                self._metrics.otlp_logs_dropped.inc(len(lines))
            else:
                self._lines.extendleft(reversed(lines))
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
