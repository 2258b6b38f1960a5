"""``feedback-agent backfill``."""

import os
from pathlib import Path

import click
import msgspec

from agent.cli.options import AS_JSON, CONFIG, instant, json_text, load
from agent.errors import EXIT_FOUND, EXIT_OK


@click.command()
@CONFIG
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--client", metavar="NAME", help="Whose files these are.  [default: as below --root]")
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="The directory below which each client has its own.  [default: source.root]",
)
@click.option("--include", metavar="PATTERN", multiple=True,
              help="Names to take in directories.  [default: source.include]")  # fmt: skip
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Names to leave out there.")
@click.option("--since", metavar="TIME", callback=instant,
              help="Events of then and later, by their own time.")  # fmt: skip
@click.option("--until", metavar="TIME", callback=instant,
              help="Events before then, by their own time.")  # fmt: skip
@click.option("--topic", metavar="NAME", help="Where to send.  [default: kafka.topic]")
@click.option("--rate", metavar="N", type=click.FloatRange(min=0, min_open=True),
              help="Lines in a second, at most.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Read and count; connect to nothing, keep nothing.")
@click.option("--force", is_flag=True, help="Send what was sent before, or the agent sends.")
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to remember how far it is.  [default: a directory in agent.state_dir/backfill]",
)
@AS_JSON
def backfill(
    *,
    config_path: Path | None,
    paths: tuple[str, ...],
    client: str | None,
    root: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    since: float | None,
    until: float | None,
    topic: str | None,
    rate: float | None,
    dry_run: bool,
    force: bool,
    state: Path | None,
    as_json: bool,
) -> int:
    """Send files that the agent does not follow, as archives.

    PATH is a file, or a directory of which all matching files are taken, .gz and .zst too. A client
    is the first directory below --root, as with the agent. The same command again goes on where it
    was, after any end of it; nothing that was sent is sent again without --force.

    Ctrl-C waits for what is on its way. Exit code 1 if not all of it was sent. What ids lines get,
    and what else to know, is in docs/backfill.md.

    \b
    Examples:
      feedback-agent backfill /var/lib/feedback/checkout/old.jsonl.gz --dry-run
      feedback-agent backfill /mnt/archive --root /mnt/archive --rate 5000
      feedback-agent backfill lost.jsonl --client checkout --since 2026-01-31
      feedback-agent backfill /mnt/old --root /mnt/old --topic again --json
    """
    loaded = load(config_path)
    from agent import assembly
    from agent.operator import screen
    from agent.operator.backfill import shipping, telling
    from agent.operator.backfill.job import Asked
    from agent.operator.backfill.selection import Wanted

    wanted = Wanted(
        paths=tuple(sorted({os.path.realpath(path) for path in paths})),
        root=None if root is None else os.path.realpath(root),
        client=_checked(client, "--client"),
        include=include,
        exclude=exclude,
    )
    asked = Asked(
        wanted=wanted,
        topic=_checked(topic, "--topic") or loaded.kafka.topic,
        since_s=since,
        until_s=until,
    )
    job = shipping.Backfill(
        loaded,
        assembly.in_force(loaded),
        asked,
        again=force,
        state=state,
        rate=rate,
        of=screen.console(stderr=True),
    )
    summary = job.rehearse() if dry_run else job.ship()
    if as_json:
        click.echo(json_text(summary))
    else:
        telling.told(summary, screen.console())
    return EXIT_OK if summary.complete else EXIT_FOUND


def _checked(name: str | None, option: str) -> str | None:
    """Hold a name to what the configuration allows. Raises ``click.UsageError``."""
    from agent.config import sections

    if name is None:
        return None
    kinds = {"--client": sections.ClientName, "--topic": sections.TopicName}
    try:
        return msgspec.convert(name, kinds[option], strict=True)
    except msgspec.ValidationError:
        allowed = "1 to 249 of a-z A-Z 0-9 . _ -"
        raise click.UsageError(f"{option}: found {name!r}; allowed: {allowed}") from None
