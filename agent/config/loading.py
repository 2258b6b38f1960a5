"""From what was given to the configuration: defaults filled in, every value and bound checked."""

import math
import re
import socket
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as mi

from agent.config.checks import conflicts
from agent.config.keys import Key, allowed, bare, environment_name, groups, keys, members, within
from agent.config.reading import Given, from_environ, from_file
from agent.config.sections import Config
from agent.config.showing import plain, shown
from agent.errors import ConfigError

PATH_DEFAULT = Path("/etc/feedback-agent/config.yaml")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

NOTHING = Given(None, "")


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Return the checked configuration of the file and, stronger, the environment.

    ``path`` is None where the environment alone shall do. Raises ``ConfigError``, always one
    line, with the first mistake found.
    """
    given = {} if path is None else from_file(path)
    given |= from_environ(environ)
    if given.get("agent.node", NOTHING).value is None:
        node = environ.get("NODE_NAME")  # what the downward API is asked to set
        host = Given(socket.gethostname(), "host name: agent.node")
        given["agent.node"] = Given(node, "NODE_NAME: agent.node") if node else host
    config = _build(given, "environment" if path is None else plain(str(path)))
    for key, detail in conflicts(config, given):
        raise ConfigError(given[key].where if key in given else key, detail)
    return config


def _build(given: Mapping[str, Given], file: str) -> Config:
    made: dict[str, object] = {}
    for path, key in keys().items():
        if path in given:
            made[path] = _converted(given[path], path, key)
        elif key.default is NODEFAULT:
            detail = f"found nothing; allowed: {allowed(key.info)}; or {environment_name(path)}"
            raise ConfigError(f"{file}: {path}", detail)
    for group, struct in reversed(groups().items()):  # the innermost first
        paths = {name: within(group, name) for name in members(group)}
        made[group] = struct(**{name: made[p] for name, p in paths.items() if p in made})
    config = made[""]
    assert isinstance(config, Config)
    return config


def _converted(given: Given, path: str, key: Key) -> object:
    value = given.value
    if isinstance(value, str) and isinstance(key.info, mi.VarTupleType):
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    index = ""
    try:
        if not _tame(value):
            raise msgspec.ValidationError  # noqa: TRY301  one exit for everything illegal
        return msgspec.convert(value, key.hint, dec_hook=_absolute)
    except msgspec.ValidationError as error:
        item = re.search(r"`\$\[(\d+)\]`", str(error))
        if item and isinstance(value, list):
            index, value = f"[{item[1]}]", value[int(item[1])]
    unquoted = isinstance(value, bool | int | float | date) and not isinstance(
        bare(key.info), mi.IntType | mi.FloatType
    )
    hint = "; put it in quotes" if unquoted else ""
    found = shown(value, path)
    raise ConfigError(given.where + index, f"found {found}; allowed: {allowed(key.info)}{hint}")


def _tame(value: object) -> bool:
    """Whether it is free of control characters and infinite numbers, legal in no key."""
    match value:
        case str():
            return not CONTROLS.search(value)
        case float():
            return math.isfinite(value)
        case list():
            return all(_tame(item) for item in value if not isinstance(item, list))
        case _:
            return True


def _absolute(kind: type, value: object) -> Path:
    assert kind is Path
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError
    return Path(value)
