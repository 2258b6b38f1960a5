"""What every room may say: it counts in ``Metrics`` and logs an ``event``. Names stay in one place.

An event is a constant name with values as fields beside it, so a line can be searched and counted.
How a line looks and what a flood of them costs is up to ``agent.logs``.
"""

import itertools
import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent import __version__
from agent.core.batch import Batch
from agent.core.breaker import State
from agent.core.identity import Cause
from agent.core.reasons import REASONS
from agent.core.redaction_rules import KINDS

SINKS = ("events", "dead_letters")
UNREADABLE = (
    "corrupt",
    "error",
    "links",
    "not_regular",
    "other_device",
    "outside",
    "permission",
    "symlink",
    "too_deep",
    "too_many",
)
"""Why a name or a directory below the root gives no lines."""
OTHER = "other"
"""The label of clients beyond the bound of ``agent.clients``."""
GONE_CAUSES = ("deleted", "held", "truncated")
FILE_STATES = ("active", "idle", "unreadable")
CAUSES = tuple(cause for cause in get_args(Cause) if cause != "same")
SEND_FAILURES = (
    "authentication",
    "broker_storage",
    "cluster_denied",
    "kafka_error",
    "no_leader",
    "not_enough_replicas",
    "sequence",
    "timeout",
    "tls",
    "topic_changed",
    "topic_denied",
    "topic_missing",
    "unanswered",
    "unreachable",
)
"""Why a send failed and will be tried again: every reason that a sink may give."""
RELOADED = ("redaction", "schemas", "secrets", "tokens")
"""What is read anew when its files change: every name of a ``reloaded.Reloaded``."""
BUFFERS = ("in_flight", "spool", "dead_letters")
SIGNALS = ("metrics", "logs", "traces")
OWN_RULES_MAX = 16
"""Of redact.custom, that have a series of their own; the others share ``OTHER``."""

ACK_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
AGE_BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
CHECKPOINT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_BUCKETS = (1, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
BATCH_BYTES_BUCKETS = tuple(float(1 << bits) for bits in range(10, 22, 2))


class _OfSink(NamedTuple):
    """What counts the batches of one sink: looked up once, which costs as much as counting."""

    ack_seconds: Histogram
    batches_delivered: Counter
    sent_bytes: Counter
    raw_bytes: Counter


class Metrics:
    """Names are ``feedback_agent_<what>_<unit>[_total]``; labels come from closed sets.

    Never label by path, key, client or error text: on a busy node each is unbounded. Every
    combination is exported as 0 from the start, so that ``rate()`` sees the first one. Count per
    batch or chunk, never per line: one ``labels().inc()`` costs a microsecond. docs/metrics.md has
    them all, and what a batch pays.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # Else a second series stands beside every counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry
        self._lines()
        self._files()
        self._clients()
        self._kafka()
        self._spool()
        self._agent()
        self._otlp()
        self._gauge("build_info", "1, the version is the label.", version=(__version__,)).labels(
            __version__
        ).set(1)
        ProcessCollector(registry=registry)  # process_resident_memory_bytes, process_open_fds

    def _lines(self) -> None:
        self.lines_read = self._counter("lines_read", "Lines read, blank and rejected ones too.")
        self.lines_blank = self._counter("lines_blank", "Blank lines, skipped.")
        self.lines_rejected = self._counter(
            "lines_rejected", "Lines that became dead letters.", reason=REASONS
        )
        self._registry.register(_Accepted(self))
        self.read_bytes = self._counter("read_bytes", "Bytes read from source files, holes apart.")
        self.hole_bytes = self._counter(
            "hole_bytes", "NUL bytes before lines, which nobody wrote: passed over."
        )
        self.metadata_overwritten = self._counter(
            "metadata_overwritten", "Keys of ours that an app had put into metadata."
        )
        self.control_characters_removed = self._counter(
            "control_characters_removed", "Control characters removed from strings."
        )
        self.events_cut = self._counter(
            "events_cut",
            "Events of which markers made a text longer than its field may be; its end is gone.",
        )
        self.redactions = self._counter(
            "redactions",
            "Pieces of personal data replaced in lines, by kind; the first rules of redact.custom "
            "by name.",
            kind=(*KINDS, OTHER),
        )
        self._own_rules: tuple[str, ...] = ()
        self._of_sinks: dict[str, _OfSink] = {}

    def _files(self) -> None:
        self.files = self._gauge("files", "Known files.", state=FILE_STATES)
        self.unreadable = self._gauge(
            "unreadable", "Names and directories that give no lines, by reason.", reason=UNREADABLE
        )
        self.files_over_limit = self._gauge(
            "files_over_limit",
            "Files not read, for there are more than source allows.",
        )
        self.held_bytes = self._gauge(
            "held_bytes", "Bytes of deleted files that are kept, for they are not read to the end."
        )
        self.gone_unread_bytes = self._counter(
            "gone_unread_bytes",
            "Bytes that were gone before they were read; a copy may still bring them.",
            cause=GONE_CAUSES,
        )
        self.stuck_files = self._counter(
            "stuck_files", "Files opened again, for they grew and nothing of it was read."
        )
        self.deleted_files = self._counter(
            "deleted_files", "Shipped files deleted as source.delete_after_s says."
        )
        self.deleted_bytes = self._counter("deleted_bytes", "Their bytes.")
        self.generations = self._counter(
            "generations", "Files that started over, by cause.", cause=CAUSES
        )
        self.lag_bytes = self._gauge("lag_bytes", "Bytes on disk above the watermark, all files.")

    def _clients(self) -> None:
        self.client_lag_bytes = self._gauge(
            "client_lag_bytes",
            "Bytes on disk above the watermark, for each client, as the last scan saw it.",
            client=(OTHER,),
        )
        self.client_lag_seconds = self._gauge(
            "client_lag_seconds",
            "How long the oldest unsettled line of each client is on disk, as scans saw it; a last "
            "line without its end apart. What was there at the first scan counts from its file's "
            "last write.",
            client=(OTHER,),
        )
        self.client_lines_read = self._counter(
            "client_lines_read", "Lines read, for each client.", client=(OTHER,)
        )
        self.of_clients = self.client_lag_bytes, self.client_lag_seconds, self.client_lines_read
        self.clients_slowed = self._gauge(
            "clients_slowed", "Clients whose files are read later, for they are over a limit."
        )
        self.client_throttled_seconds = self._counter(
            "client_throttled_seconds",
            "How long clients with something to read waited for a limit of theirs, all together.",
        )

    def _kafka(self) -> None:
        self.events_delivered = self._counter(
            "events_delivered", "Events that Kafka acknowledged with acks=all."
        )
        self.dead_letters_delivered = self._counter(
            "dead_letters_delivered", "Dead letters that Kafka acknowledged with acks=all."
        )
        self.batches_delivered = self._counter(
            "batches_delivered", "Batches that Kafka acknowledged.", sink=SINKS
        )
        self.sent_bytes = self._counter(
            "sent_bytes", "Bytes of acknowledged batches, compressed.", sink=SINKS
        )
        self.raw_bytes = self._counter(
            "raw_bytes",
            "Bytes of the same before compression; sent_bytes in these is the compression ratio.",
            sink=SINKS,
        )
        self.batch_records = self._histogram("batch_records", "Records in a batch.", BATCH_BUCKETS)
        self.batch_bytes = self._histogram(
            "batch_bytes", "Bytes of a batch, compressed.", BATCH_BYTES_BUCKETS
        )
        self.batch_age_seconds = self._histogram(
            "batch_age_seconds",
            "From reading the first line of a batch to sending it, for the last time if it was "
            "sent again.",
            AGE_BUCKETS_S,
        )
        self.append_to_ack_seconds = self._histogram(
            "append_to_ack_seconds",
            "From reading the first line of a batch of events, or its first record in the spool, "
            "to its acknowledgement: the longest way in it. A line is read within milliseconds of "
            "its append; where not, client_lag_seconds has how long it waited.",
            ACK_BUCKETS_S,
        )
        self.ack_seconds = self._histogram(
            "ack_seconds", "From sending a batch to its answer.", ACK_BUCKETS_S, sink=SINKS
        )
        self.producer_retirements = self._counter(
            "producer_retirements", "Producers replaced after a failed delivery.", sink=SINKS
        )
        self.retries = self._counter(
            "retries", "Batches to be sent again: given to a producer that was retired.", sink=SINKS
        )
        self.send_failures = self._counter(
            "send_failures",
            "Failures to connect, to send or to be answered, by reason.",
            sink=SINKS,
            reason=SEND_FAILURES,
        )
        self.breaker_state = self._gauge(
            "breaker_state",
            "1 for the state that the circuit breaker is in, else 0.",
            sink=SINKS,
            state=tuple(state.value for state in State),
        )
        self.throttled_seconds = self._counter(
            "throttled_seconds", "How long brokers asked to be left alone (quotas).", sink=SINKS
        )
        self.sink_up = self._gauge("sink_up", "1 while Kafka answers, else 0.", sink=SINKS)

    def _spool(self) -> None:
        self.spool_records = self._gauge(
            "spool_records", "Records on this node's disk that Kafka has not got.", sink=SINKS
        )
        self.spool_bytes = self._gauge("spool_bytes", "Their bytes, compressed.", sink=SINKS)
        self.spooled = self._counter(
            "spooled", "Records put by in the spool, which settles them.", sink=SINKS
        )
        self.replayed = self._counter(
            "replayed", "Records that left the spool for Kafka.", sink=SINKS
        )
        self.spool_dropped = self._counter(
            "spool_dropped", "Records dropped as spool.when_full says: lost.", sink=SINKS
        )
        self.spool_lost = self._counter(
            "spool_lost", "Records that a damaged spool does not give back.", sink=SINKS
        )

    def _agent(self) -> None:
        self.buffer_use_ratio = self._gauge(
            "buffer_use_ratio",
            "How full a buffer is, from 0 to 1: in_flight.*, spool.bytes_max, dlq.store_bytes_max. "
            "in_flight overshoots by a chunk at most.",
            buffer=BUFFERS,
        )
        self.unsent_bytes = self._gauge(
            "unsent_bytes",
            "Bytes that a dead disk of this node would take: lag_bytes, held_bytes, spool_bytes.",
        )
        at_risk = self.lag_bytes, self.held_bytes, self.spool_bytes
        self.unsent_bytes.set_function(lambda: sum(map(_total, at_risk)))
        self.config_info = self._gauge(
            "config_info",
            "1; hash is the SHA-256 of what feedback-agent check prints.",
            hash=(),
        )
        self.in_flight_events = self._gauge(
            "in_flight_events",
            "Events read and not settled. At most in_flight.events_max, of files and of the spool.",
        )
        self.in_flight_bytes = self._gauge(
            "in_flight_bytes", "Bytes read and not settled. As above, in_flight.bytes_max."
        )
        self.checkpoint_commits = self._counter("checkpoint_commits", "Checkpoints written.")
        self.checkpoint_seconds = self._histogram(
            "checkpoint_seconds", "Time of one checkpoint commit.", CHECKPOINT_BUCKETS_S
        )
        self.reloads = self._counter(
            "reloads",
            "Changes of files that are read while the agent runs, by what came of them.",
            what=RELOADED,
            outcome=("adopted", "refused"),
        )
        self.audit_failures = self._counter(
            "audit_failures", "Writes of the audit log that failed; notes wait meanwhile."
        )
        self.audit_unsent = self._gauge(
            "audit_unsent", "Records of the audit log that audit.topic has not got."
        )
        self.receipts_lost = self._counter(
            "receipts_lost", "Receipts that were not written; verify then reads more of the topic."
        )

    def _otlp(self) -> None:
        self.otlp_failures = self._counter(
            "otlp_failures", "Exports by OTLP that failed; nothing waits for them.", signal=SIGNALS
        )
        self.otlp_logs_dropped = self._counter(
            "otlp_logs_dropped", "Log lines that OTLP did not get; stdout has them."
        )
        self.otlp_spans_dropped = self._counter(
            "otlp_spans_dropped", "Spans that OTLP did not get."
        )

    def zero(self, sink: str) -> None:
        """Export what an outlet counts from the start: not every sink is there in each agent."""
        self.sink_up.labels(sink)
        for counter in (self.producer_retirements, self.retries, self.throttled_seconds):
            counter.labels(sink)
        for reason in SEND_FAILURES:
            self.send_failures.labels(sink, reason)

    def name_rules(self, names: Iterable[str]) -> None:
        """Give the first ``OWN_RULES_MAX`` rules of redact.custom series of their own."""
        before, self._own_rules = self._own_rules, tuple(itertools.islice(names, OWN_RULES_MAX))
        for gone in {*before} - {*self._own_rules, OTHER}:
            self.redactions.remove(gone)
        for name in self._own_rules:
            self.redactions.labels(name)

    def redacted(self, kind: str, count: int) -> None:
        named = kind in KINDS or kind in self._own_rules
        self.redactions.labels(kind if named else OTHER).inc(count)

    def acked(self, sink: str, batch: Batch, latency_s: float, now_s: float) -> None:
        """Count a batch that Kafka has had for no time at all, ``latency_s`` after it was sent."""
        whole_s = now_s - batch.opened_at_s
        of_sink = self._of_sinks.get(sink)
        if of_sink is None:
            of_sink = self._of_sinks[sink] = _OfSink(
                self.ack_seconds.labels(sink), self.batches_delivered.labels(sink),
                self.sent_bytes.labels(sink), self.raw_bytes.labels(sink),
            )  # fmt: skip
        of_sink.ack_seconds.observe(latency_s)
        of_sink.batches_delivered.inc()
        of_sink.sent_bytes.inc(len(batch.payload))
        of_sink.raw_bytes.inc(batch.raw_bytes)
        self.batch_records.observe(batch.count)
        self.batch_bytes.observe(len(batch.payload))
        self.batch_age_seconds.observe(max(0.0, whole_s - latency_s))
        if sink == "events":
            self.append_to_ack_seconds.observe(whole_s)
            self.events_delivered.inc(batch.count)
        else:
            self.dead_letters_delivered.inc(batch.count)

    def dead_letters(self) -> dict[str, int]:
        """Return how many lines became dead letters so far, by reason."""
        (family,) = self.lines_rejected.collect()
        return {sample.labels["reason"]: int(sample.value) for sample in family.samples}

    def _counter(self, name: str, meaning: str, **labels: tuple[str, ...]) -> Counter:
        made = Counter(f"feedback_agent_{name}", meaning, list(labels), registry=self._registry)
        return _zeroed(made, labels)

    def _gauge(self, name: str, meaning: str, **labels: tuple[str, ...]) -> Gauge:
        made = Gauge(f"feedback_agent_{name}", meaning, list(labels), registry=self._registry)
        return _zeroed(made, labels)

    def _histogram(
        self, name: str, meaning: str, buckets: tuple[float, ...], **labels: tuple[str, ...]
    ) -> Histogram:
        made = _Histogram(
            f"feedback_agent_{name}",
            meaning,
            list(labels),
            registry=self._registry,
            buckets=buckets,
        )
        return _zeroed(made, labels)


class _Histogram(Histogram):
    """One that is not searched bucket by bucket: each batch is observed five times."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        assert exemplar is None, "we have none"
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)


class _Accepted(Collector):
    """What of ``lines_read`` was neither blank nor rejected: a count of its own could drift.

    Between the counts of one chunk it would be too high for a moment, so it never goes back.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._said = 0.0

    def collect(self) -> Iterator[CounterMetricFamily]:
        metrics = self._metrics
        rejected = sum(
            lines for reason, lines in metrics.dead_letters().items()
            if not reason.startswith("refused_")
        )  # fmt: skip
        accepted = _total(metrics.lines_read) - _total(metrics.lines_blank) - rejected
        self._said = max(self._said, accepted)
        yield CounterMetricFamily(
            "feedback_agent_lines_accepted",
            "Lines that became events: neither blank nor rejected.",
            value=self._said,
        )


def _total(metric: Counter | Gauge) -> float:
    """Return the sum over all series of ``metric``."""
    return sum(sample.value for family in metric.collect() for sample in family.samples)


M = TypeVar("M", Counter, Gauge, Histogram)


def _zeroed(metric: M, labels: Mapping[str, tuple[str, ...]]) -> M:
    if labels:
        for values in itertools.product(*labels.values()):
            metric.labels(*values)
    return metric


RESERVED = frozenset({"at", "level", "logger", "event", "exception", "suppressed"})


def event(log: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log ``name``, a constant, with fields. The name itself never holds a value."""
    assert RESERVED.isdisjoint(fields), f"{name}: reserved field among {sorted(fields)}"
    log.log(level, name, extra={"fields": fields}, stacklevel=2)
