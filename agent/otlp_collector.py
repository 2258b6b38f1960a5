"""The connection to a collector: OTLP over gRPC, one call at a time, each with an end.

The protocol is spoken directly, over its own definitions. The exporters of the SDK would try again
and log by rules of their own, and cost 4 MB more.
"""

import os
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from agent.errors import ConfigError

Signal = Literal["metrics", "logs", "traces"]

PORT = 4317
_METHODS: dict[Signal, str] = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
}
PARTIAL = "partial_success"
_REJECTED: dict[Signal, str] = {
    "metrics": "rejected_data_points",
    "logs": "rejected_log_records",
    "traces": "rejected_spans",
}
_RECONNECT_MS_MAX = 30_000
_LASTING = frozenset({
    "invalid_argument", "not_found", "already_exists", "permission_denied", "failed_precondition",
    "unimplemented", "internal", "unauthenticated",
})  # fmt: skip
"""What another try would not change; see
https://opentelemetry.io/docs/specs/otlp/#failures."""


class Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802  protobuf's name


class Failure(NamedTuple):
    """``reason`` is gRPC's word for it, or ``PARTIAL``. One that lasts is not worth another try.

    ``rejected`` says how much of a call was not taken, where the rest was.
    """

    reason: str
    detail: str
    lasting: bool
    rejected: int | None = None


def require() -> None:
    """Raise ``ConfigError`` where the packages are missing."""
    for module, package in (("grpc", "grpcio"), ("opentelemetry.proto", "opentelemetry-proto")):
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # of the parent
            found = None
        if found is None:
            needed = f'needs the package {package}; install the extra "otlp"'
            raise ConfigError("otlp.endpoint", needed)


class Collector:
    """Connects when it is first called, and again by itself."""

    def __init__(self, endpoint: str) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would write to stderr by itself
        import grpc

        self._error: type[Any] = grpc.RpcError
        self._closed = False
        url = urlsplit(endpoint)
        target = url.netloc if url.port is not None else f"{url.netloc}:{PORT}"
        settings = {
            "options": [
                ("grpc.enable_retries", 0),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS_MAX),
            ],
            "compression": grpc.Compression.Gzip,
        }
        if url.scheme == "https":
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), **settings)
        else:
            self._channel = grpc.insecure_channel(target, **settings)
        answers = _answers()
        self._calls = {
            signal: self._channel.unary_unary(
                method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answers[signal].FromString,
            )
            for signal, method in _METHODS.items()
        }

    def export(self, signal: Signal, request: Message, timeout_s: float) -> Failure | None:
        """Send ``request``, within ``timeout_s``. What is not taken of it must not go again."""
        if self._closed:
            return Failure("closed", "", lasting=True)
        try:
            answer = self._calls[signal](request, timeout=timeout_s)
        except self._error as error:
            reason = error.code().name.lower()
            return Failure(reason, error.details() or "", reason in _LASTING)
        part = answer.partial_success
        rejected = getattr(part, _REJECTED[signal])
        if not rejected:  # with a message alone it is a warning
            return None
        return Failure(PARTIAL, part.error_message, lasting=True, rejected=rejected)

    def close(self) -> None:
        """Let go of the connection; a call that is under way fails."""
        self._closed = True
        self._channel.close()


def _answers() -> dict[Signal, Any]:
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

    return {
        "metrics": metrics.ExportMetricsServiceResponse,
        "logs": logs.ExportLogsServiceResponse,
        "traces": traces.ExportTraceServiceResponse,
    }
