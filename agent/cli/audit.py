"""``feedback-agent audit``."""

from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from agent.cli.options import AS_JSON, CONFIG, JSON_ANYWAY, load, tell
from agent.errors import EXIT_FOUND, EXIT_OK

COPY = click.File("rb")


@click.group()
def audit() -> None:
    """Check or print the audit log; see docs/audit.md."""


@audit.command("verify")
@CONFIG
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--head", metavar="HASH", help="One seen before: it must be in the chain.")
@click.option("--against", type=COPY, help="All that this copy has must be in the chain.")
@click.option("--from-topic", type=COPY, help="Check this copy in place of the files.")
@AS_JSON
def audit_verify(
    *,
    config_path: Path | None,
    path: Path | None,
    head: str | None,
    against: BinaryIO | None,
    from_topic: BinaryIO | None,
    as_json: bool,
) -> int:
    """Check the chain through all files. Exit code 1 if it is broken.

    PATH is the newest file; without it, the one in the state directory of the configuration. A copy
    is what audit.topic has: a record a line, before it perhaps its key and a TAB; - reads stdin.

    \b
    Examples:
      feedback-agent audit verify --config config.yaml
      feedback-agent audit verify /var/lib/feedback-agent/audit.jsonl --json
      kcat -b kafka:9092 -C -t feedback-audit -e -K '\\t' > copy
      feedback-agent audit verify --against copy
    """
    from agent.operator import verify_audit, verify_topic

    if from_topic is not None:
        if path or head or against:
            raise click.UsageError("--from-topic goes with neither PATH, --head nor --against")
        copied = verify_topic.Copy(from_topic).verdict()
        tell(copied, verify_topic.table(copied), as_json=as_json)
        return EXIT_OK if copied.whole else EXIT_FOUND
    path = path or _audit_path(config_path)
    verdict = verify_audit.verify(path, head)
    if against is not None:
        verdict = verdict.with_problems(verify_topic.Copy(against).missing_in(path))
    tell(verdict, verify_audit.table(verdict), as_json=as_json)
    return EXIT_OK if verdict.whole else EXIT_FOUND


@audit.command("show")
@CONFIG
@JSON_ANYWAY
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--since", metavar="TIME", help="From then on, as 2026-01-31 or 2026-01-31T12:00Z.")
@click.option("--event", metavar="NAME", help="As file.refused, or file for all of them.")
def audit_show(
    config_path: Path | None, path: Path | None, since: str | None, event: str | None
) -> None:
    """Print the records as JSON lines, oldest first. Checks nothing.

    PATH is the newest file; without it, the one in the state directory of the configuration.

    \b
    Examples:
      feedback-agent audit show --event agent --since 2026-01-31
    """
    from agent.operator import verify_audit

    for record in verify_audit.records(path or _audit_path(config_path), since, event):
        click.echo(msgspec.json.encode(record))


def _audit_path(config_path: Path | None) -> Path:
    return load(config_path).audit_path
