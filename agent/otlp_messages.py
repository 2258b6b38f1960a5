"""What goes into an export: metrics as the registry has them, log lines as they were written, and
spans as they ended.

Names, labels and values are those of ``/metrics``, so a query holds for both. Source of the rules:
OTLP 1.x, https://opentelemetry.io/docs/specs/otel/metrics/data-model.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from agent import __version__
from agent.core.tracing import FOREIGN, BatchSpan, Note, Span, Value
from agent.logs import escaped

SERVICE = "feedback-agent"
SEVERITIES = {logging.DEBUG: 5, logging.INFO: 9, logging.WARNING: 13, logging.ERROR: 17}
FATAL = 21
_SCOPE = InstrumentationScope(name=SERVICE, version=__version__)
_SCALARS = ((bool, "bool_value"), (int, "int_value"), (float, "double_value"))  # a bool is an int
SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
"""Of the conventions that the names of a span's attributes follow."""
_RECORDED = 1
"""The flag of W3C trace contexts that says so; all that are sent here are."""
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}


class Line(NamedTuple):
    """A log line: what ``logs`` wrote, and when."""

    at_ns: int
    level: int
    entry: Mapping[str, object]


class Ended(NamedTuple):
    """A span, and by how much the epoch's seconds are more than those of its clock."""

    span: Span
    offset_s: float


def resource(node: str) -> Resource:
    """Return who says all this."""
    attributes = {
        "service.name": SERVICE,
        "service.version": __version__,
        "service.instance.id": node,
        "host.name": node,
    }
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        attributes["k8s.node.name"] = node
    return Resource(attributes=_attributes(attributes))


def of_metrics(
    of: Resource, registry: CollectorRegistry, begun_ns: int, now_ns: int
) -> ExportMetricsServiceRequest:
    """Return all that ``registry`` has. Counts began at ``begun_ns``; both are epochs."""
    metrics = [_metric(family, begun_ns, now_ns) for family in registry.collect()]
    scope = ScopeMetrics(scope=_SCOPE, metrics=metrics)
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=of, scope_metrics=[scope])]
    )


def of_logs(of: Resource, lines: Iterable[Line]) -> ExportLogsServiceRequest:
    scope = ScopeLogs(scope=_SCOPE, log_records=[_log_record(line) for line in lines])
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=of, scope_logs=[scope])])


def of_spans(
    of: Resource, spans: Iterable[Ended], shown: Callable[[str], str] = str
) -> ExportTraceServiceRequest:
    """Return the spans; ``shown`` says what may be shown of names that others chose."""
    scope = ScopeSpans(
        scope=_SCOPE, spans=[_span(ended, shown) for ended in spans], schema_url=SCHEMA_URL
    )
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=of, scope_spans=[scope])]
    )


def _span(ended: Ended, shown: Callable[[str], str]) -> SpanMessage:
    span, offset_s = ended

    def epoch_ns(at_s: float) -> int:
        return int((at_s + offset_s) * 1e9)

    attributes: dict[str, Value] = {
        key: escaped(shown(str(value))) if key in FOREIGN else value
        for key, value in span.attributes.items()
    }
    kind = SpanMessage.SPAN_KIND_INTERNAL
    if isinstance(span, BatchSpan):
        kind = SpanMessage.SPAN_KIND_PRODUCER
        created = datetime.fromtimestamp(span.began_s + offset_s, UTC)
        attributes["feedback_agent.batch.created_at"] = created.isoformat(timespec="milliseconds")
    error = None if span.error is None else Status(code=Status.STATUS_CODE_ERROR)
    return SpanMessage(
        trace_id=span.context.trace_id,
        span_id=span.context.span_id,
        flags=_RECORDED,
        name=span.name,
        kind=kind,
        start_time_unix_nano=epoch_ns(span.began_s),
        end_time_unix_nano=epoch_ns(span.ended_s),
        attributes=_attributes(attributes),
        events=[_span_event(note, epoch_ns(note.at_s)) for note in span.notes],
        dropped_events_count=span.dropped_notes,
        links=[
            SpanMessage.Link(trace_id=one.trace_id, span_id=one.span_id, flags=_RECORDED)
            for one in span.links
        ],
        dropped_links_count=span.dropped_links,
        status=error,
    )


def _span_event(note: Note, at_ns: int) -> Any:
    return SpanMessage.Event(
        name=note.name, time_unix_nano=at_ns, attributes=_attributes(note.attributes)
    )


def _metric(family: Family, begun_ns: int, now_ns: int) -> Metric:
    counter = family.type == "counter"
    unit = next((u for end, u in _UNITS.items() if family.name.endswith(f"_{end}")), "")
    name = family.name + "_total" * counter
    metric = Metric(name=name, description=family.documentation, unit=unit)
    if family.type == "histogram":
        points = _histograms(family.samples, begun_ns, now_ns)
        metric.histogram.CopyFrom(
            Histogram(
                data_points=points, aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE
            )
        )
        return metric
    numbers = [
        NumberDataPoint(
            attributes=_attributes(sample.labels),
            start_time_unix_nano=begun_ns if counter else 0,
            time_unix_nano=now_ns,
            as_double=sample.value,
        )
        for sample in family.samples
    ]
    if counter:
        metric.sum.CopyFrom(
            Sum(
                data_points=numbers,
                aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE,
                is_monotonic=True,
            )
        )
    else:
        metric.gauge.CopyFrom(Gauge(data_points=numbers))
    return metric


def _histograms(
    samples: Iterable[Sample], begun_ns: int, now_ns: int
) -> Iterable[HistogramDataPoint]:
    """Turn samples, in the order of the registry, into a point for each set of labels.

    There a bucket counts all up to its bound; here it counts what the one before it does not.
    """
    bounds: list[float] = []
    counts: list[int] = []
    below = total = 0
    for sample in samples:
        if sample.name.endswith("_bucket"):
            bounds.append(float(sample.labels["le"]))
            counts.append(int(sample.value) - below)
            below = int(sample.value)
        elif sample.name.endswith("_count"):
            total = int(sample.value)
        else:
            yield HistogramDataPoint(
                attributes=_attributes(sample.labels),
                start_time_unix_nano=begun_ns,
                time_unix_nano=now_ns,
                count=total,
                sum=sample.value,
                explicit_bounds=bounds[:-1],  # the last one is infinity, which goes unsaid
                bucket_counts=counts,
            )
            bounds, counts, below = [], [], 0


def _log_record(line: Line) -> LogRecord:
    entry = dict(line.entry)
    del entry["at"]
    name, level = str(entry.pop("event")), str(entry.pop("level"))
    return LogRecord(
        time_unix_nano=line.at_ns,
        observed_time_unix_nano=line.at_ns,
        severity_number=SEVERITIES.get(line.level, FATAL),
        severity_text=level.upper(),
        body=AnyValue(string_value=name),
        event_name=name,
        attributes=_attributes(entry),
    )


def _attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any(value)) for key, value in values.items()]


def _any(value: object) -> AnyValue:
    for kind, field in _SCALARS:
        if isinstance(value, kind):
            return AnyValue(**{field: value})
    match value:
        case None:
            return AnyValue()
        case Mapping():
            return AnyValue(kvlist_value=KeyValueList(values=_attributes(value)))
        case list():
            return AnyValue(array_value=ArrayValue(values=map(_any, value)))
        case _:
            return AnyValue(string_value=str(value))
