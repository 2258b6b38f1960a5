"""Command line. Parses and prints; every decision lives elsewhere.

Rooms are imported inside the commands that need them: ``--version`` and ``check`` stay light.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from agent import __version__, config
from agent.errors import EXIT_FOUND, EXIT_INVARIANT, EXIT_OK, EXIT_USAGE, AgentError

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130

EPILOG = """\b
Examples:
  feedback-agent demo
  feedback-agent check --config config.yaml
  feedback-agent run --config config.yaml
  feedback-agent audit verify
  FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 feedback-agent run

\b
Exit codes:
   0  ok
   1  what was asked for found a problem
  64  wrong usage of the command line
  70  broken invariant, a bug: the traceback is in the log
  74  the store of checkpoints cannot be used
  75  another agent owns the state directory
  76  the state was written by a newer major version
  78  wrong configuration
"""

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="FEEDBACK_AGENT_CONFIG",
    show_envvar=True,
    help=f"The YAML file.  [default: {config.PATH_DEFAULT}; where that is missing, the "
    "environment alone]",
)


COPY = click.File("rb")


class Commands(click.Group):
    """Turns every way a command can end into one line on stderr and an exit code of the table."""

    def main(self, *args: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.UsageError as error:
            error.show()
            code = EXIT_USAGE
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:
            code = EXIT_INTERRUPTED
        except Exception as error:  # noqa: BLE001  the last line of defence
            code = _verdict(error)
        sys.exit(code)


def _verdict(error: Exception) -> int:
    """Say what happened and return the exit code. A bug outweighs what it may have caused."""
    expected = _within(error)
    if expected is not None:
        click.echo(f"feedback-agent: error: {expected}", err=True)
        return expected.exit_code
    log.critical("invariant.broken", exc_info=error)
    return EXIT_INVARIANT


def _within(error: BaseException) -> AgentError | None:
    """Return the error, the first one of a group, where all of it was raised on purpose."""
    if isinstance(error, BaseExceptionGroup):
        inner = [_within(one) for one in error.exceptions]
        return inner[0] if all(inner) else None
    return error if isinstance(error, AgentError) else None


def _load(path: Path | None) -> config.Config:
    if path is None and config.PATH_DEFAULT.exists():
        path = config.PATH_DEFAULT
    return config.load(path, os.environ)


@click.group(cls=Commands, epilog=EPILOG)
@click.version_option(__version__, prog_name="feedback-agent")
def main() -> None:
    """Ship JSONL feedback files from this node to Kafka, at least once."""


@main.command()
@CONFIG
def run(config_path: Path | None) -> int:
    """Ship until SIGTERM or SIGINT, then drain for at most agent.drain_s seconds.

    A second signal stops at once. What was not acknowledged by then is read again at the next
    start. SIGHUP: look at secrets and rules of redaction now, and not within 10 seconds.

    \b
    Examples:
      feedback-agent run
      feedback-agent run --config /etc/feedback-agent/config.yaml
    """
    loaded = _load(config_path)
    from agent import assembly, logs, otlp_collector, redaction

    rules = assembly.in_force(loaded)
    if loaded.otlp.endpoint is not None:
        otlp_collector.require()
    shown = redaction.shown(lambda: rules.redaction.value)
    logs.setup(loaded.log.level, loaded.log.format, sys.stdout, shown=shown)
    from agent import pipeline

    return pipeline.run(loaded, rules)


@main.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of YAML.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file, for editors.")
@click.option(
    "--output-schema", is_flag=True, help="Print the JSON Schema of an event in the topic."
)
def check(config_path: Path | None, as_json: bool, schema: bool, output_schema: bool) -> None:
    """Validate the configuration and print all of it, defaults filled in, secrets masked.

    The files that it names are read: rules, schemas, keys, certificates and secrets. A mistake is
    one line on stderr and exit code 78: where it stands, what was found, what is allowed. Nothing
    is connected to.

    \b
    Examples:
      feedback-agent check --config config.yaml
      feedback-agent check --schema > feedback-agent.schema.json
      feedback-agent check --output-schema > feedback-event.schema.json
    """
    if schema:
        click.echo(_json(config.json_schema()))
        return
    if output_schema:
        from agent.core import output_schema as output

        click.echo(_json(output.json_schema()))
        return
    loaded = _load(config_path)
    _read_files(loaded)
    click.echo(_json(config.masked(loaded)) if as_json else config.as_yaml(loaded).rstrip("\n"))


@main.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after that.")
@click.option("--lines", type=click.IntRange(min=1), help="Lines to write.")
def demo(seconds: float | None, lines: int | None) -> int:
    """Show a crash without a loss: an app, the agent and a broker on this machine.

    \b
    Examples:
      feedback-agent demo
      feedback-agent demo --lines 100000
    """
    try:
        # By name: the demo is no part of the agent's import graph.
        show: Any = importlib.import_module("agent.demo.show")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "agent":
            raise
        needed = f"the demo needs {error.name}: pip install 'feedback-agent[demo]'"
        raise click.UsageError(needed) from None
    options = {"seconds": seconds, "lines": lines}
    code: int = show.main(**{k: v for k, v in options.items() if v is not None})
    return code


@main.group()
def audit() -> None:
    """Check or print the audit log; see docs/audit.md."""


@audit.command("verify")
@CONFIG
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--head", metavar="HASH", help="One seen before: it must be in the chain.")
@click.option("--against", type=COPY, help="All that this copy has must be in the chain.")
@click.option("--from-topic", type=COPY, help="Check this copy in place of the files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
      kcat -b kafka:9092 -C -t feedback-audit -e -K '\\t' | feedback-agent audit verify --against -
    """
    from agent import verify_audit, verify_topic

    if from_topic is not None:
        if path or head or against:
            raise click.UsageError("--from-topic goes with neither PATH, --head nor --against")
        copied = verify_topic.Copy(from_topic).verdict()
        _tell(copied, verify_topic.table(copied), as_json=as_json)
        return EXIT_OK if copied.whole else EXIT_FOUND
    path = path or _audit_path(config_path)
    verdict = verify_audit.verify(path, head)
    if against is not None:
        verdict = verdict.with_problems(verify_topic.Copy(against).missing_in(path))
    _tell(verdict, verify_audit.table(verdict), as_json=as_json)
    return EXIT_OK if verdict.whole else EXIT_FOUND


def _tell(verdict: object, table: Iterable[tuple[str, str]], *, as_json: bool) -> None:
    if as_json:
        click.echo(_json(verdict))
        return
    colour = {"whole": "green", "broken": "red"}
    for heading, text in table:
        click.echo(f"{click.style(f'{heading:<12}', fg=colour.get(heading))} {text}")


@audit.command("show")
@CONFIG
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
    from agent import verify_audit

    for record in verify_audit.records(path or _audit_path(config_path), since, event):
        click.echo(msgspec.json.encode(record))


def _audit_path(config_path: Path | None) -> Path:
    return _load(config_path).audit_path


def _read_files(loaded: config.Config) -> None:
    """Read what the agent would. Raises ``ConfigError``."""
    from agent import codecs, otlp_collector, redaction, schemas

    if loaded.otlp.endpoint is not None:
        otlp_collector.require()
    redaction.load(loaded.redact)
    schemas.load(loaded.schema)
    kafka = loaded.kafka
    codecs.codec(kafka.compression, kafka.compression_level)
    if kafka.tls.enabled or kafka.sasl.mechanism != "none":
        from agent import clock, credentials

        credentials.Credentials(kafka.tls, kafka.sasl, clock.SystemClock()).read()


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
