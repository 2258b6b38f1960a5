"""What a check found: a constant name, one of three verdicts, and what to do about it."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

Verdict = Literal["ok", "warn", "fail"]

CHECKS = (
    "configuration",
    "source.root",
    "source.filesystem",
    "source.permissions",
    "source.files",
    "inotify.instances",
    "inotify.watches",
    "process.descriptors",
    "clock.files",
    "state.directory",
    "state.lock",
    "state.disk",
    "audit.log",
    "clock.kernel",
    "kafka.bootstrap",
    "kafka.tls",
    "kafka.sasl",
    "kafka.brokers",
    "acl.idempotent_write",
    "topic.exists",
    "acl.describe",
    "acl.write",
    "acl.describe_configs",
    "topic.partitions",
    "topic.replication",
    "topic.min_insync_replicas",
    "topic.message_bytes",
    "topic.retention",
    "topic.cleanup_policy",
    "topic.timestamps",
    "topic.clock",
)
"""Every check there is, in the order in which they are made; those of topics for each topic.
Scripts may rely on the names."""


UNKNOWN = "not checked: "
"""So begins what is found where nobody could look."""


class Finding(Struct, frozen=True):
    """What one check found.

    Attributes:
        check: Of ``CHECKS``.
        subject: What was looked at: a path, a broker, a topic, a key of the configuration.
        found: For people.
        advice: What to do; "" where all is well, or something else has to be mended first.
    """

    check: str
    subject: str
    verdict: Verdict
    found: str
    advice: str = ""


class About:
    """Makes the findings of one check about one thing."""

    def __init__(self, check: str, subject: object) -> None:
        assert check in CHECKS, check
        self._check = check
        self._subject = str(subject)

    def ok(self, found: str) -> Finding:
        return Finding(self._check, self._subject, "ok", found)

    def warn(self, found: str, advice: str) -> Finding:
        return Finding(self._check, self._subject, "warn", found, advice)

    def fail(self, found: str, advice: str) -> Finding:
        return Finding(self._check, self._subject, "fail", found, advice)

    def unknown(self, why: str, advice: str = "") -> Finding:
        """Not being able to look is no proof of anything: a warning."""
        return self.warn(f"{UNKNOWN}{why}", advice)


def unsound(findings: Iterable[Finding]) -> bool:
    return any(finding.verdict == "fail" for finding in findings)
