"""``feedback-agent validate``."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from msgspec.structs import replace

from agent import config
from agent.cli.options import AS_JSON, CONFIG, json_text
from agent.config.keys import environment_name
from agent.errors import EXIT_FOUND, EXIT_OK

LONG_BYTES = 8 << 20
"""From this size on a file has a bar of its own."""


@click.command()
@CONFIG
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option("--show", is_flag=True, help="Print each record that would go out, as JSON lines.")
@click.option(
    "--limit", default=100, show_default=True, metavar="N", type=click.IntRange(min=0),
    help="How many rejections of a file to name; all are counted.",
)  # fmt: skip
@AS_JSON
def validate(
    *, config_path: Path | None, files: tuple[str, ...], show: bool, limit: int, as_json: bool
) -> int:
    """Say which lines would be rejected and why. Sends nothing.

    FILE is one that an app wrote, also compressed (.gz, .zst); - reads stdin. Lines go through the
    same rooms as when they are shipped: decoded, redacted, enriched. Rejections have the number of
    the line and its bytes. No broker has to be configured, and none is asked: what a topic alone
    would refuse is not seen.

    --show prints topic, key, headers and value of each record on stdout, always redacted, and the
    rest on stderr. Exit code 1 if anything would be rejected or cannot be read.

    \b
    Examples:
      feedback-agent validate /var/lib/feedback/checkout/events.jsonl
      feedback-agent validate rotated/*.jsonl.gz --json
      my-app --once | feedback-agent validate --show - | jq .value
    """
    from agent.operator import screen
    from agent.operator import validate as room
    from agent.operator.validate import show as said

    if show and as_json:
        raise click.UsageError("--show prints JSON lines as it is: leave out --json")
    loaded = _load(config_path)
    if show and not loaded.redact.enabled:
        click.echo("redact.enabled is false: shown redacted all the same", err=True)
        loaded = replace(loaded, redact=replace(loaded.redact, enabled=True))
    validation = room.Validation(loaded, limit)
    console = screen.console(stderr=show)
    verdicts: list[room.Verdict] = []
    with screen.progress(screen.console(stderr=True)) as bars:
        for name in files:
            on_record = _print_record if show else None
            on_bytes = _bar(bars, name)
            verdict = validation.judge(name, sys.stdin.buffer, show=on_record, progress=on_bytes)
            verdicts.append(verdict)
            if not as_json:
                console.print(said.of_file(verdict))
    good = all(verdict.good for verdict in verdicts)
    if as_json:
        click.echo(json_text({"good": good, "files": verdicts}))
    else:
        console.print(said.summary(verdicts))
    return EXIT_OK if good else EXIT_FOUND


def _print_record(record: Mapping[str, Any]) -> None:
    from agent.operator.validate import show

    click.echo(show.json_line(record))


def _bar(bars: Any, name: str) -> Callable[[int], None] | None:
    """Return what moves a bar, where the file is worth one. A packed one does not say how long."""
    try:
        size = Path(name).stat().st_size
    except (OSError, ValueError):
        return None
    if size < LONG_BYTES:
        return None
    total = None if name.endswith((".gz", ".zst")) else size
    bar = bars.add_task(Path(name).name, total=total, rate="bytes")
    return lambda done: bars.update(bar, completed=done)


def _load(path: Path | None) -> config.Config:
    """Return the configuration; who writes an app has no brokers, and none is asked."""
    if path is None and config.PATH_DEFAULT.exists():
        path = config.PATH_DEFAULT
    nobody = {environment_name("kafka.bootstrap_servers"): "not-asked:9092"}
    return config.load(path, {**nobody, **os.environ} if path is None else os.environ)
