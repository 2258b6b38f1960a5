"""``feedback-agent run``, ``check`` and ``demo``."""

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from agent import config
from agent.cli.options import CONFIG, json_text, load


@click.command()
@CONFIG
def run(config_path: Path | None) -> int:
    """Ship until SIGTERM or SIGINT, then drain.

    That takes at most agent.drain_s seconds. A second signal stops at once. What was not
    acknowledged by then is read again at the next start. SIGHUP: look at secrets and rules of
    redaction now, and not within 10 seconds.

    \b
    Examples:
      feedback-agent run
      feedback-agent run --config /etc/feedback-agent/config.yaml
    """
    loaded = load(config_path)
    from agent import assembly, logs, otlp_collector, redaction

    rules = assembly.in_force(loaded)
    if loaded.otlp.endpoint is not None:
        otlp_collector.require()
    shown = redaction.shown(lambda: rules.redaction.value)
    logs.setup(loaded.log.level, loaded.log.format, sys.stdout, shown=shown)
    from agent import pipeline

    return pipeline.run(loaded, rules)


@click.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of YAML.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file, for editors.")
@click.option(
    "--output-schema", is_flag=True, help="Print the JSON Schema of an event in the topic."
)
def check(config_path: Path | None, as_json: bool, schema: bool, output_schema: bool) -> None:
    """Validate the configuration and print all of it.

    Defaults are filled in, secrets masked. The files that it names are read: rules, schemas, keys,
    certificates and secrets. A mistake is one line on stderr and exit code 78: where it stands,
    what was found, what is allowed. Nothing is connected to.

    \b
    Examples:
      feedback-agent check --config config.yaml
      feedback-agent check --schema > feedback-agent.schema.json
      feedback-agent check --output-schema > feedback-event.schema.json
    """
    if schema:
        click.echo(json_text(config.json_schema()))
        return
    if output_schema:
        from agent.core import output_schema as output

        click.echo(json_text(output.json_schema()))
        return
    loaded = load(config_path)
    read_files(loaded)
    click.echo(json_text(config.masked(loaded)) if as_json else config.as_yaml(loaded).rstrip("\n"))


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after that.")
@click.option("--lines", type=click.IntRange(min=1), help="Lines to write.")
def demo(seconds: float | None, lines: int | None) -> int:
    """Show a crash without a loss, on this machine alone.

    It has an app that writes, the agent, and a broker; then a table of what arrived.

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


def read_files(loaded: config.Config) -> None:
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
