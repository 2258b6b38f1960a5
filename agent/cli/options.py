"""Options that several commands have, and how all of them print."""

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from agent import config

CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="FEEDBACK_AGENT_CONFIG",
    show_envvar=True,
    help=f"The YAML file.  [default: {config.PATH_DEFAULT}; where that is missing, the "
    "environment alone]",
)

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

JSON_ANYWAY = click.option(
    "--json", is_flag=True, expose_value=False, help="Nothing else: JSON is all that it prints."
)
"""Of what has no other way to print: a script may give it to every command."""


def completes(*words: str) -> Callable[..., list[str]]:
    """Return what a shell offers at TAB where other words are allowed too."""

    def offered(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
        return [word for word in words if word.startswith(begun)]

    return offered


def load(path: Path | None) -> config.Config:
    """Return the configuration. Raises ``ConfigError``."""
    if path is None and config.PATH_DEFAULT.exists():
        path = config.PATH_DEFAULT
    return config.load(path, os.environ)


def instant(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return seconds since 1970 UTC of a day or a moment; one without an offset is UTC."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        said = f"{value!r} is no time, as 2026-01-31 or 2026-01-31T12:00Z"
        raise click.BadParameter(said, ctx, param) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def json_text(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def tell(verdict: object, table: Iterable[tuple[str, str]], *, as_json: bool) -> None:
    if as_json:
        click.echo(json_text(verdict))
        return
    colour = {"whole": "green", "broken": "red"}
    for heading, text in table:
        click.echo(f"{click.style(f'{heading:<12}', fg=colour.get(heading))} {text}")
