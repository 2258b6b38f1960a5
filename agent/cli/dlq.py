"""``feedback-agent dlq``."""

import json
import logging
import os
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import click

from agent import config
from agent.cli.choosing import matching, selecting
from agent.cli.options import AS_JSON, CONFIG, JSON_ANYWAY, load
from agent.errors import EXIT_FOUND, EXIT_OK

SCREEN_LETTERS = 50
T = TypeVar("T")


@click.group()
def dlq() -> None:
    """Look at dead letters, send them again, drop them.

    See docs/dead-letters.md.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it says, the error says again


@dlq.command("list")
@selecting
@AS_JSON
@click.option("--limit", type=click.IntRange(min=1), help="The newest so many.  [default: 50]")
def dlq_list(*, as_json: bool, limit: int | None, **selected: Any) -> None:
    """List dead letters, oldest first, and count them.

    They are counted by reason and client. JSON prints an object a line, all of them unless --limit
    says less.

    \b
    Examples:
      feedback-agent dlq list --consumer-config reader.yaml
      feedback-agent dlq list --reason schema --since 2026-01-31 --json
      feedback-agent dlq list --from store
    """
    from agent.operator import dead_letters

    where, wanted = _where(selected)
    if as_json and limit is None:
        _run(_print(where, wanted, payload=False))
        return
    found = _run(dead_letters.newest(where, wanted, limit or SCREEN_LETTERS))
    if as_json:
        for letter in found.letters:
            click.echo(json.dumps(dead_letters.as_json(letter, payload=False)))
    else:
        dead_letters.show_list(found)


@dlq.command("show")
@selecting
@AS_JSON
@click.argument("id", metavar="ID")
@click.option("--raw", is_flag=True, help="Print the value alone, byte by byte.")
def dlq_show(*, as_json: bool, id: str, raw: bool, **selected: Any) -> None:  # noqa: A002
    """Show one dead letter with its headers. ID is one of the list, as 0:17 or store:4.

    \b
    Examples:
      feedback-agent dlq show 0:17 --consumer-config reader.yaml
      feedback-agent dlq show store:4 --raw
    """
    from agent.operator import dead_letters

    where, wanted = _where(selected)
    letter = _run(dead_letters.one(where, wanted, id))
    if raw:
        sys.stdout.buffer.write(letter.value)
    elif as_json:
        click.echo(json.dumps(dead_letters.as_json(letter, payload=True), indent=2))
    else:
        dead_letters.show(letter)


@dlq.command("export")
@selecting
@JSON_ANYWAY
@click.option("--output", type=click.Path(path_type=Path), help="A new file.  [default: stdout]")
def dlq_export(*, output: Path | None, **selected: Any) -> None:
    """Print dead letters with their payload as JSON lines. Nothing is removed.

    Payload is redacted as it is in the topic. Still: whoever gets the file gets what users wrote.

    \b
    Examples:
      feedback-agent dlq export --reason schema --output dead.jsonl
    """
    where, wanted = _where(selected)
    if output is None:
        _run(_print(where, wanted, payload=True))
        return
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise click.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from None
    with os.fdopen(fd, "w") as file:
        _run(_print(where, wanted, payload=True, file=file))


@dlq.command("replay")
@selecting
@AS_JSON
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--schema", "schema_dir", type=click.Path(path_type=Path, exists=True),
              help="Decode by this directory in place of schema.dir.")  # fmt: skip
@click.option("--record", "record_path", type=click.Path(path_type=Path),
              help="Notes replays.  [default: replayed.db in agent.state_dir]")  # fmt: skip
@click.option("--force", is_flag=True, help="What was replayed before, too.")
@click.option("--dry-run", is_flag=True, help="Send nothing; say what would become of each.")
def dlq_replay(
    *, as_json: bool, ids: tuple[str, ...], schema_dir: Path | None, record_path: Path | None,
    force: bool, dry_run: bool, **selected: Any,
) -> int:  # fmt: skip
    """Send dead letters again that are events by now.

    They go to the events' topic, as the present rules make them. Without ID all that are selected.
    The topic keeps dead letters: what was replayed is noted, and left out the next time. Exit code
    1 if any could not be sent.

    \b
    Examples:
      feedback-agent dlq replay --reason schema --dry-run
      feedback-agent dlq replay --reason unknown_type --schema ./schemas
      feedback-agent dlq replay 0:17 0:18 --force
    """
    from agent.operator import replay_letters

    where, wanted = _where(selected)
    path = record_path or where.config.agent.state_dir / "replayed.db"
    if not path.parent.is_dir():
        hint = "there is no state directory here: say with --record where to note what was replayed"
        raise click.UsageError(f"{path.parent}: {hint}")
    wish = replay_letters.Wish(path, schema_dir, force=force, dry_run=dry_run)
    told = replay_letters.Told(as_json=as_json)
    counts = _run(replay_letters.replay(where, wanted, ids, wish, told.one))
    told.all(counts)
    return EXIT_OK if set(counts) <= replay_letters.GOOD else EXIT_FOUND


@dlq.command("purge")
@matching
@CONFIG
@AS_JSON
@click.option("--dry-run", is_flag=True, help="Drop nothing; say how many it would be.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def dlq_purge(
    *, config_path: Path | None, as_json: bool, dry_run: bool, yes: bool, **matched: Any
) -> None:
    """Drop dead letters of this node's store. They are lost.

    They are those that the topic has not got. Without --reason, --client, --since or --until all of
    them. Those in the topic are Kafka's: retention.ms deletes them, or kafka-delete-records.sh. The
    audit log says who dropped how many.

    \b
    Examples:
      feedback-agent dlq export --from store --output before.jsonl
      feedback-agent dlq purge
      feedback-agent dlq purge --reason schema --until 2026-01-31 --dry-run
      feedback-agent dlq purge --client app --yes --json
    """
    from agent.operator import dead_letters, screen

    loaded, wanted = load(config_path), _wanted(matched)
    if not (yes or dry_run):
        found = dead_letters.purge(loaded, wanted, dry_run=True)
        if found.records:
            what = screen.counted(found.records, "dead letter")
            whom = "it" if found.records == 1 else "them"
            asked = f"Drop {what} of the store? Nobody else has {whom}"
            click.confirm(asked, abort=True, err=True)
    made = dead_letters.purge(loaded, wanted, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(made._asdict()))
    else:
        dead_letters.show_purged(made)


def _where(selected: dict[str, Any]) -> tuple[Any, Any]:
    from agent.letters import Where

    own = load(selected["config_path"])
    named, origin = selected["consumer_path"], selected["origin"]
    reader = own.kafka if named is None else config.load(named, {}).kafka
    where = Where(own, reader, topic=origin != "store", store=origin != "topic")
    return where, _wanted(selected)


def _wanted(matched: dict[str, Any]) -> Any:
    from agent.core.revival import Wanted

    return Wanted(matched["reason"], matched["client"], matched["since_ms"], matched["until_ms"])


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio  # not for --version

    return asyncio.run(work)


async def _print(where: Any, wanted: Any, *, payload: bool, file: Any = None) -> None:
    from agent import letters
    from agent.operator import dead_letters

    async with aclosing(letters.letters(where, wanted)) as found:
        async for letter in found:
            click.echo(json.dumps(dead_letters.as_json(letter, payload=payload)), file=file)
