"""The shape of the configuration: every section, its keys, their bounds and defaults."""

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from agent.core.policy import (
    GIB,
    KIB,
    MIB,
    BatchPolicy,
    BreakerPolicy,
    ClientQuotaPolicy,
    InFlightPolicy,
    Name,
    Policy,
    PositiveSeconds,
    ReceiptsPolicy,
    RetryPolicy,
    SchemaPolicy,
    Seconds,
    SpoolPolicy,
)
from agent.core.redaction_rules import KINDS, Kind

# Kafka's own rule: org.apache.kafka.common.internals.Topic.
TopicName = Annotated[
    str,
    Meta(
        pattern=r"^(?!\.\.?$)[a-zA-Z0-9._-]{1,249}$",
        description="a topic name: 1 to 249 of a-z A-Z 0-9 . _ -, not . or ..",
    ),
]
Broker = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]{0,252}):"
        "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$",
        description="host:port, the port from 1 to 65535, an IPv6 address in brackets",
    ),
]
Glob = Annotated[str, Meta(pattern="^[^/]+$", description="a file name pattern without /")]
ClientName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,248}$",
        description="1 to 249 of a-z A-Z 0-9 . _ -, a letter or digit first",
    ),
]
ClientId = Annotated[
    str,
    Meta(pattern="^[a-zA-Z0-9._-]{1,249}$", description="1 to 249 of a-z A-Z 0-9 . _ -"),
]
KeyField = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z_][A-Za-z0-9_]{0,127}$",
        description="event_id, session_id, client, none, or the name of another field",
    ),
]

HttpsUrl = Annotated[
    str,
    Meta(
        pattern=r"^https://[A-Za-z0-9.\[\]:-]+(/[!-?A-~]*)?$",
        description="an https:// address without user and password",
    ),
]
CollectorUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$",
        description="http:// or https://, a host, and perhaps a port, which else is 4317",
    ),
]
Visible = Annotated[
    str, Meta(pattern="^[ -~]{1,1024}$", description="1 to 1024 visible ASCII characters")
]


class Schema(SchemaPolicy, frozen=True):
    dir: Path | None = None


class Redact(Policy, frozen=True):
    enabled: bool = True
    rules: tuple[Kind, ...] = KINDS
    custom: Path | None = None
    hash_key_file: Path | None = None


class Agent(Policy, frozen=True):
    node: Name | None = None
    state_dir: Path = Path("/var/lib/feedback-agent")
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 25.0
    start_jitter_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    hang_s: Annotated[float, Meta(ge=1, le=3600)] = 120.0


class Source(Policy, frozen=True):
    root: Path = Path("/var/lib/feedback")
    include: Annotated[tuple[Glob, ...], Meta(min_length=1)] = ("*.jsonl", "*.jsonl.*", "*.jsonl-*")
    exclude: tuple[Glob, ...] = ()
    client_depth: Annotated[int, Meta(ge=1, le=16)] = 1
    client: ClientName | None = None
    line_bytes_max: Annotated[int, Meta(ge=KIB, le=16 * MIB)] = 768 * KIB
    start_at: Literal["beginning", "end"] = "beginning"
    ignore_older_s: PositiveSeconds | None = None
    scan_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    forget_after_s: Seconds = 604_800.0
    delete_after_s: PositiveSeconds | None = None
    files_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 50_000
    client_files_max: Annotated[int, Meta(ge=1)] = 10_000
    depth_max: Annotated[int, Meta(ge=1, le=32)] = 16
    descriptors_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 512
    held_bytes_max: Annotated[int, Meta(ge=MIB)] | None = GIB


class Tls(Policy, frozen=True):
    """Of connections to brokers. Host names are always checked: no key turns that off."""

    enabled: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password_file: Path | None = None
    min_version: Literal["1.3", "1.2"] = "1.3"


class Sasl(Policy, frozen=True):
    """Who the agent is to brokers. There is no key for a secret itself: files have them."""

    mechanism: Literal["none", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "none"
    username: Name | None = None
    password_file: Path | None = None
    token_file: Path | None = None
    token_url: HttpsUrl | None = None
    token_ca_file: Path | None = None
    client_id: Visible | None = None
    client_secret_file: Path | None = None
    scope: Visible | None = None
    allow_plaintext: bool = False


class Kafka(Policy, frozen=True):
    bootstrap_servers: Annotated[tuple[Broker, ...], Meta(min_length=1)]
    topic: TopicName = "feedback-events"
    client_id: ClientId = "feedback-agent"
    key: KeyField = "event_id"
    partitioner: Literal["crc32", "murmur2", "sticky"] = "crc32"
    compression: Literal["gzip", "zstd", "lz4", "snappy", "none"] = "gzip"
    compression_level: Annotated[int, Meta(ge=0, le=19)] | None = None
    timestamp: Literal["produce", "event"] = "produce"
    request_timeout_s: PositiveSeconds = 15.0
    start_s: PositiveSeconds = 30.0
    bytes_per_s_max: Annotated[int, Meta(ge=KIB)] | None = None
    tls: Tls = field(default_factory=Tls)
    sasl: Sasl = field(default_factory=Sasl)


class Dlq(Policy, frozen=True):
    topic: TopicName = "feedback-events-dlq"
    line_bytes_max: Annotated[int, Meta(ge=KIB, le=16 * MIB)] = 768 * KIB
    lines_per_s_max: Annotated[float, Meta(gt=0)] | None = 1000.0
    store_bytes_max: Annotated[int, Meta(ge=MIB)] = 64 * MIB


class Quota(Policy, frozen=True):
    client: ClientQuotaPolicy = field(default_factory=ClientQuotaPolicy)


class Audit(Policy, frozen=True):
    enabled: bool = True
    path: Path | None = None
    """None: ``Config.audit_path`` says where."""
    bytes_max: Annotated[int, Meta(ge=64 * KIB)] = 16 * MIB
    files_max: Annotated[int, Meta(ge=2, le=1000)] = 8
    topic: TopicName | None = None


class Http(Policy, frozen=True):
    host: Name = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 9108


class Otlp(Policy, frozen=True):
    """Where metrics and traces go by themselves, and log lines if wanted. None: nowhere."""

    endpoint: CollectorUrl | None = None
    protocol: Literal["grpc"] = "grpc"
    export_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    traces_sampled: Annotated[float, Meta(ge=0, le=1)] = 0.1
    logs: bool = False


class Log(Policy, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] | None = None


class Config(Policy, frozen=True, kw_only=True):
    agent: Agent = field(default_factory=Agent)
    source: Source = field(default_factory=Source)
    schema: Schema = field(default_factory=Schema)
    redact: Redact = field(default_factory=Redact)
    batch: BatchPolicy = field(default_factory=BatchPolicy)
    in_flight: InFlightPolicy = field(default_factory=InFlightPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    kafka: Kafka
    spool: SpoolPolicy = field(default_factory=SpoolPolicy)
    dlq: Dlq = field(default_factory=Dlq)
    quota: Quota = field(default_factory=Quota)
    audit: Audit = field(default_factory=Audit)
    receipts: ReceiptsPolicy = field(default_factory=ReceiptsPolicy)
    http: Http = field(default_factory=Http)
    otlp: Otlp = field(default_factory=Otlp)
    log: Log = field(default_factory=Log)

    @property
    def node(self) -> str:
        """``agent.node`` of a configuration that came through ``load``: never absent."""
        assert self.agent.node is not None, "not loaded"
        return self.agent.node

    @property
    def audit_path(self) -> Path:
        """``audit.path``, else its place in the state directory."""
        return self.audit.path or self.agent.state_dir / "audit.jsonl"
