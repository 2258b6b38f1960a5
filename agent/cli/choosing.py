"""Options that choose dead letters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agent.cli.options import CONFIG, completes, instant
from agent.core.reasons import REASONS

F = TypeVar("F", bound=Callable[..., Any])


def _ms(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    at_s = instant(ctx, param, value)
    return None if at_s is None else int(at_s * 1000)


def matching(command: F) -> F:
    """Give a command what tells dead letters from one another."""
    for option in (
        click.option("--until", "until_ms", metavar="TIME", callback=_ms, help="Read before."),
        click.option("--since", "since_ms", metavar="TIME", callback=_ms, help="Read from then."),
        click.option("--client", metavar="NAME", help="Of this one."),
        click.option("--reason", metavar="NAME", help="With this one, as schema or oversize.",
                     shell_complete=completes(*REASONS)),
    ):  # fmt: skip
        command = option(command)
    return command


def selecting(command: F) -> F:
    """Give a command what chooses dead letters, wherever they lie."""
    for option in (
        matching,
        click.option(
            "--from", "origin", default="all", type=click.Choice(["all", "topic", "store"]),
            help="The topic, this node's store, or both.",
        ),
        click.option(
            "--consumer-config", "consumer_path", type=click.Path(path_type=Path),
            help="Read the topic by the section kafka of this YAML file: brokers, TLS, SASL. A "
            "node's own account may only write.",
        ),
        CONFIG,
    ):  # fmt: skip
        command = option(command)
    return command
