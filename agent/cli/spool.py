"""``feedback-agent spool``."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from agent.cli.options import AS_JSON, CONFIG, JSON_ANYWAY, load
from agent.config import Config
from agent.errors import EXIT_FOUND, EXIT_OK


@click.group()
def spool() -> None:
    """Look at what waits on this node until Kafka takes it.

    See docs/control.md.
    """


@spool.command("list")
@CONFIG
@AS_JSON
def spool_list(config_path: Path | None, as_json: bool) -> None:
    """Say how much waits in each queue, and since when.

    JSON prints an object a line.

    \b
    Examples:
      feedback-agent spool list
    """
    from agent.operator import spool_queues

    found = list(spool_queues.queues(load(config_path)))
    if as_json:
        for queue in found:
            click.echo(json.dumps(queue))
    else:
        spool_queues.show(found)


@spool.command("drain")
@CONFIG
@AS_JSON
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds until it gives up; a running agent does not.")  # fmt: skip
def spool_drain(config_path: Path | None, as_json: bool, wait_s: float) -> int:
    """Try Kafka now, and wait until the queues are empty.

    The running agent does that by itself; this spares the rest of a backoff or of the breaker's
    cooldown. Where no agent runs, this sends what waits, and nothing else. Exit code 1 if something
    is left.

    \b
    Examples:
      feedback-agent spool drain --wait 300
      feedback-agent spool drain --json
    """
    from agent.errors import NotRunning
    from agent.operator import spool_queues

    loaded = load(config_path)
    try:
        found = spool_queues.drain(loaded, wait_s)
    except NotRunning:
        found = _drain_down(loaded, wait_s)
    if as_json:
        for queue in found:
            click.echo(json.dumps(queue))
    else:
        spool_queues.show_drained(found)
    return EXIT_FOUND if spool_queues.left(found) else EXIT_OK


def _drain_down(loaded: Config, wait_s: float) -> list[dict[str, Any]]:
    from agent.operator import draining, spool_queues

    records = sum(queue["records"] for queue in spool_queues.queues(loaded))
    if records:
        click.echo("no agent runs: what waits is sent from here", err=True)
    return draining.drain(loaded, wait_s, records)


@spool.command("export")
@CONFIG
@JSON_ANYWAY
@click.option("--queue", default="events", show_default=True, help="Which one.",
              type=click.Choice(["events", "dead_letters"]))  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="A new file.  [default: stdout]")
def spool_export(config_path: Path | None, queue: str, output: Path | None) -> None:
    """Print the records of a queue as JSON lines, oldest first. Nothing is removed.

    They are redacted, as they will be in the topic. Still: whoever gets the file gets what users
    wrote.

    \b
    Examples:
      feedback-agent spool export --output spool.jsonl
    """
    from agent.operator import spool_queues

    loaded = load(config_path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        fd = None if output is None else os.open(output, flags, 0o600)
    except OSError as error:
        raise click.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from None
    with nullcontext() if fd is None else os.fdopen(fd, "w") as file:
        for record in spool_queues.exported(loaded, queue):
            click.echo(json.dumps(record), file=file)
