"""``feedback-agent verify``."""

from pathlib import Path

import click

from agent.cli.options import AS_JSON, CONFIG, instant, json_text, load
from agent.errors import EXIT_FOUND, EXIT_OK


@click.command()
@CONFIG
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--consumer-config",
    "consumer_path",
    type=click.Path(path_type=Path),
    help="A YAML file whose section kafka says how to connect to read.  [default: as the agent]",
)
@click.option("--scan", is_flag=True, help="Read all of the topics, whatever the receipts name.")
@click.option(
    "--since",
    callback=instant,
    metavar="TIME",
    help="Read all that was appended from then on, as 2026-01-31 or 2026-01-31T12:00Z.",
)
@click.option("--topic", "topics", multiple=True, metavar="NAME", help="Read this one as well.")
@AS_JSON
def verify(
    *,
    config_path: Path | None,
    paths: tuple[Path, ...],
    consumer_path: Path | None,
    scan: bool,
    since: float | None,
    topics: tuple[str, ...],
    as_json: bool,
) -> int:
    """Prove from Kafka that the lines on disk were delivered. Exit code 1 if one is missing.

    PATHS are files or directories, packed ones too; without them, all that the agent reads. Each
    line is looked for by the header "source" of the records in both topics. The agent may be
    running; nothing of it is touched. A node's own principal may only write: --consumer-config
    names one that may read. See docs/verify.md.

    \b
    Examples:
      feedback-agent verify
      feedback-agent verify --consumer-config reader.yaml feedback/acme
      feedback-agent verify --since 2026-01-31T12:00Z --json
    """
    import asyncio
    import logging

    from agent.config import loading
    from agent.operator import screen
    from agent.operator import verify as proof

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it says, the error says again
    config = load(config_path)
    kafka = config.kafka if consumer_path is None else loading.load(consumer_path, {}).kafka
    options = proof.Options(scan, since, topics)
    with screen.progress(screen.console(stderr=True)) as bar:
        task = bar.add_task("looking at files", total=None, rate="")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        verdict = asyncio.run(proof.verify(config, kafka, paths, options, progress))
    if as_json:
        click.echo(json_text(verdict))
    else:
        proof.show(verdict, screen.console())
    return EXIT_OK if verdict.whole else EXIT_FOUND
