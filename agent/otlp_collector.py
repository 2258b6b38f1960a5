"""The connection to a collector: OTLP over gRPC, one call at a time, each with an end.

The protocol is spoken directly, over its own definitions. The exporters of the SDK would try again
and log by rules of their own, and cost 4 MB more.
"""

import os
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

from agent.errors import ConfigError

Signal = Literal["metrics", "logs"]

PORT = 4317
_METHODS: dict[Signal, str] = {
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
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
    """``reason`` is gRPC's word for it. One that lasts is not worth another try."""

    reason: str
    detail: str
    lasting: bool


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
        self._calls = {
            signal: self._channel.unary_unary(
                method, request_serializer=lambda message: message.SerializeToString()
            )
            for signal, method in _METHODS.items()
        }

    def export(self, signal: Signal, request: Message, timeout_s: float) -> Failure | None:
        """Send ``request``, within ``timeout_s``. What it did not take in part is its business."""
        if self._closed:
            return Failure("closed", "", lasting=True)
        try:
            self._calls[signal](request, timeout=timeout_s)
        except self._error as error:
            reason = error.code().name.lower()
            return Failure(reason, error.details() or "", reason in _LASTING)
        return None

    def close(self) -> None:
        """Let go of the connection; a call that is under way fails."""
        self._closed = True
        self._channel.close()
