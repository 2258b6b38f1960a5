"""``feedback-agent status``."""

import contextlib
import json
from pathlib import Path

import click

from agent.cli.options import AS_JSON, CONFIG, load
from agent.errors import EXIT_FOUND, EXIT_OK


@click.command()
@CONFIG
@click.option(
    "--url", metavar="URL", help="Where an agent answers, in place of http.host:http.port."
)
@click.option("--watch", is_flag=True, help="Draw it anew again and again, until Ctrl-C.")
@click.option(
    "--every", "every_s", default=2.0, show_default=True, metavar="SECONDS",
    type=click.FloatRange(min=0.1), help="Seconds between two looks of --watch.",
)  # fmt: skip
@click.option(
    "--files", default=15, show_default=True, metavar="N", type=click.IntRange(min=0),
    help="How many files to name, those most behind first.",
)  # fmt: skip
@AS_JSON
def status(
    *,
    config_path: Path | None,
    url: str | None,
    watch: bool,
    every_s: float,
    files: int,
    as_json: bool,
) -> int:
    """Say how far everything is: sinks, clients, files, lag.

    Sinks have a breaker and a spool, files an offset. Asks the running agent over HTTP. Where none
    answers, reads the state directory and looks at the files on disk: what is to be sent once it
    runs again. That touches nothing of either.

    Exit code 1 if no agent answers, or it is not healthy or not ready.

    \b
    Examples:
      feedback-agent status
      feedback-agent status --watch --every 1
      feedback-agent status --url http://10.0.3.7:9108
      feedback-agent status --json | jq '.clients[] | select(.lag_bytes > 1e6)'
    """
    from agent import redaction
    from agent.operator import screen
    from agent.operator import status as room

    config = None if url else load(config_path)
    rules = None if config is None else redaction.load(config.redact)
    shown = redaction.shown(lambda: rules)

    def look() -> dict[str, object]:
        return room.found(config, url, shown)

    if watch and as_json:
        raise click.UsageError("--watch is for people: call it with --json again and again")
    console = screen.console()
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            room.watch(look, console, every_s, files)
        return EXIT_OK
    found = look()
    if as_json:
        click.echo(json.dumps(found, indent=2))  # and not msgspec: names need not be UTF-8
    else:
        console.print(room.drawn(found, files))
    return EXIT_OK if room.well(found) else EXIT_FOUND
