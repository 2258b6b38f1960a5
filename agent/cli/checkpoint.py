"""``feedback-agent checkpoint`` and ``explain``."""

import json
from pathlib import Path

import click

from agent.cli.options import AS_JSON, CONFIG, completes, load
from agent.errors import EXIT_FOUND, EXIT_OK

YES = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@CONFIG
@AS_JSON
@click.argument("file", type=click.Path())
def explain(config_path: Path | None, as_json: bool, file: str) -> int:
    """Say how far FILE is, and why it is read or not.

    FILE is a path, or one below source.root as /status has it. A running agent answers itself;
    with the agent down its checkpoints and the rules are asked. Exit code 1 where it is not read.

    \b
    Examples:
      feedback-agent explain /var/lib/feedback/app/events.jsonl
      feedback-agent explain app/events.jsonl --json
    """
    from agent.operator import checkpoints

    found = checkpoints.explained(load(config_path), file)
    if as_json:
        click.echo(json.dumps(checkpoints.as_json(found), indent=2))
    else:
        checkpoints.show(found)
    return EXIT_FOUND if found.verdict.state == "not_read" else EXIT_OK


@click.group()
def checkpoint() -> None:
    """List checkpoints, or let a file begin elsewhere.

    See docs/control.md.
    """


@checkpoint.command("list")
@CONFIG
@AS_JSON
@click.argument("pattern", required=False)
@click.option("--all", "every", is_flag=True, help="Files that are gone, and older lives, too.")
def checkpoint_list(
    config_path: Path | None, as_json: bool, pattern: str | None, every: bool
) -> None:
    """List how far files are settled on disk.

    JSON prints an object a line. PATTERN is one of paths below source.root; * stands for / too.

    \b
    Examples:
      feedback-agent checkpoint list
      feedback-agent checkpoint list 'app/*' --all --json
    """
    from agent.operator import checkpoints

    rows = checkpoints.chosen(checkpoints.listed(load(config_path)), pattern or "*", every=every)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    checkpoints.show_rows(rows)


@checkpoint.command("reset")
@CONFIG
@AS_JSON
@click.argument("file", type=click.Path())
@click.option("--to", required=True, metavar="start|end|OFFSET", help="Where a line begins.",
              shell_complete=completes("start", "end"))  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it would do.")
@YES
def checkpoint_reset(
    *, config_path: Path | None, as_json: bool, file: str, to: str, dry_run: bool, yes: bool
) -> int:
    """Let reading of FILE begin at another place.

    It begins a new generation of it. Lines that are sent again have the same event_id only where
    the app gave them one. Lines that are passed over are never sent. A running agent does it
    itself, between two reads; else its state directory is changed. The audit log says who wanted
    it.

    \b
    Examples:
      feedback-agent checkpoint reset app/events.jsonl --to start
      feedback-agent checkpoint reset app/events.jsonl --to end --dry-run
    """
    from agent.operator import checkpoints
    from agent.positions import parsed

    if parsed(to) is None:
        raise click.BadParameter(f"found {to!r}; allowed: start, end, or bytes", param_hint="--to")
    config = load(config_path)
    made = checkpoints.reset(config, file, to, dry_run=True)
    if made.changed and not dry_run:
        if not yes:
            checkpoints.say(made, "would begin", stderr=True)
            click.confirm("Do it?", abort=True, err=True)
        made = checkpoints.reset(config, file, to, dry_run=False)
    if as_json:
        fields = {name: getattr(made, name) for name in made.__struct_fields__}
        click.echo(json.dumps({**fields, "dry_run": dry_run}, indent=2))
    else:
        checkpoints.say(made, "would begin" if dry_run else "begins")
    return EXIT_OK
