"""A collector for tests: a gRPC server that speaks OTLP and keeps what it gets.

It may also be slow, refuse, take a part, or never answer.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_rpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_rpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as traces_rpc

from tests.patience import WITHIN_S

Mood = Literal["well", "slow", "refusing", "partial", "busy", "hanging"]
SLOW_S = 2.0
REJECTED = 3
"""Of each call, where a collector takes it in part."""


class Collector:
    """``mood`` may change while it runs.

    Attributes:
        metrics, logs, traces: The requests that it took, oldest first.
        calls: How often it was called, whatever came of it.
    """

    def __init__(self, mood: Mood = "well", address: str = "127.0.0.1:0") -> None:
        self.mood: Mood = mood
        self.metrics: list[Any] = []
        self.logs: list[Any] = []
        self.traces: list[Any] = []
        self.calls = 0
        self._released = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8, "collector"))
        metrics_rpc.add_MetricsServiceServicer_to_server(_Service(self.take_metrics), self._server)
        logs_rpc.add_LogsServiceServicer_to_server(_Service(self.take_logs), self._server)
        traces_rpc.add_TraceServiceServicer_to_server(_Service(self.take_traces), self._server)
        self.port = self._server.add_insecure_port(address)
        self._server.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._released.set()
        self._server.stop(0).wait()

    def take_metrics(self, request: Any, context: Any) -> Any:
        self._obey(context)
        self.metrics.append(request)
        return metrics_pb.ExportMetricsServiceResponse(
            partial_success=self._part("rejected_data_points")
        )

    def take_logs(self, request: Any, context: Any) -> Any:
        self._obey(context)
        self.logs.append(request)
        return logs_pb.ExportLogsServiceResponse(partial_success=self._part("rejected_log_records"))

    def take_traces(self, request: Any, context: Any) -> Any:
        self._obey(context)
        self.traces.append(request)
        return traces_pb.ExportTraceServiceResponse(partial_success=self._part("rejected_spans"))

    def latest(self) -> dict[str, Any]:
        """Return the metrics of the last export, by name."""
        (of,) = self.metrics[-1].resource_metrics
        (scope,) = of.scope_metrics
        return {metric.name: metric for metric in scope.metrics}

    def records(self) -> list[Any]:
        """Return all log records."""
        scopes = [r.resource_logs[0].scope_logs[0] for r in list(self.logs)]
        return [record for scope in scopes for record in scope.log_records]

    def spans(self) -> list[Any]:
        """Return all spans."""
        scopes = [r.resource_spans[0].scope_spans[0] for r in list(self.traces)]
        return [span for scope in scopes for span in scope.spans]

    def _part(self, field: str) -> dict[str, Any]:
        part = {field: REJECTED, "error_message": "too old"}
        return part if self.mood == "partial" else {}

    def _obey(self, context: Any) -> None:
        self.calls += 1
        match self.mood:
            case "well" | "partial":
                pass
            case "slow":
                self._released.wait(SLOW_S)
            case "hanging":
                self._released.wait()
            case "refusing":
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such pipeline")
            case "busy":
                context.abort(grpc.StatusCode.UNAVAILABLE, "come back later")


class _Service:
    def __init__(self, export: Any) -> None:
        self.Export = export


@contextmanager
def collecting(mood: Mood = "well") -> Iterator[Collector]:
    collector = Collector(mood)
    try:
        yield collector
    finally:
        collector.stop()


def until(holds: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Wait for another thread until ``holds``."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {within_s} s"
        time.sleep(0.01)


def attributes(of: Any) -> dict[str, Any]:
    """Return plain values of the attributes of a point, a record or a resource."""
    return {one.key: plain(one.value) for one in of.attributes}


def plain(value: Any) -> Any:
    match kind := value.WhichOneof("value"):
        case None:
            return None
        case "kvlist_value":
            return {one.key: plain(one.value) for one in value.kvlist_value.values}
        case "array_value":
            return [plain(one) for one in value.array_value.values]
        case _:
            return getattr(value, kind)
