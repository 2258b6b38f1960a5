"""What of a configuration may be shown, in an error or on request, and how."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import msgspec
import yaml
from msgspec import NODEFAULT
from msgspec import inspect as mi

from agent.config.keys import allowed, groups, keys, members, within
from agent.config.sections import Config

SHOWN_MAX = 60
INDENT = 2
SECRET = re.compile(r"(password|passphrase|secret|token|credential)", re.IGNORECASE)


def plain(text: str) -> str:
    """Make it safe for one line on a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def is_secret(path: str) -> bool:
    """Whether the name of a key says that its value is a secret; where to find one is none."""
    return bool(SECRET.search(path)) and not path.endswith(("_file", "_dir", "_path", "_url"))


def shown(value: object, path: str = "") -> str:
    """Quote what was found at ``path``, short, on one line, and never a secret."""
    match value:
        case None:
            return "nothing"
        case list() | dict():
            return "a list" if isinstance(value, list) else "a mapping"
        case bool():
            return str(value).lower()
        case int() if abs(value) > 1 << 63:
            return "a number beyond 64 bits"
    text = str(value)
    if is_secret(path) or "@" in text:  # user:password@host
        return "a value that is not shown"
    text = text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."
    return repr(text) if isinstance(value, str | bytes) else plain(text)


def masked(config: Config) -> dict[str, object]:
    """Return the full configuration as plain values, defaults filled in, secrets as ``***``."""
    return _masked("", msgspec.to_builtins(config, enc_hook=str))


def _masked(group: str, values: Mapping[str, Any]) -> dict[str, object]:
    full: dict[str, object] = {}
    for name, value in values.items():
        path = within(group, name)
        if path in groups():
            full[name] = _masked(path, value)
        else:
            full[name] = "***" if value and is_secret(path) else value
    return full


def as_yaml(config: Config) -> str:
    """Print the full configuration so that ``load`` reads it back, secrets apart."""
    values = msgspec.json.decode(msgspec.json.encode(masked(config)))  # tuples to lists
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


@cache
def meanings() -> Mapping[str, str]:
    """Return what each key means: the comment above it in the example, the one place for it.

    A group may have a meaning too, or an empty one.
    """
    text = resources.files("agent").joinpath("config.example.yaml").read_text("utf-8")
    found: dict[str, str] = {}
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("# "):
            comment.append(bare[2:])
            continue
        if bare:
            depth = (len(line) - len(line.lstrip())) // INDENT
            path = [*path[:depth], bare.partition(":")[0]]
            found[".".join(path)] = " ".join(comment)
        comment = []
    return found


def json_schema() -> dict[str, object]:
    """Return a JSON Schema of the file, for editors. ``load`` alone does the cross-checks."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "feedback-agent configuration",
        **_schema_of(""),
    }


def _schema_of(path: str) -> dict[str, Any]:
    if path in groups():
        inner = {name: _schema_of(within(path, name)) for name in members(path)}
        said = {"description": meaning} if (meaning := meanings().get(path)) else {}
        return {"type": "object", "additionalProperties": False, **said, "properties": inner}
    key = keys()[path]
    one = msgspec.json.schema(key.hint, schema_hook=lambda _: {"type": "string"})
    if isinstance(key.info, mi.VarTupleType):
        one = {"anyOf": [one, {"type": "string"}]}
    one["description"] = f"{meanings()[path]} Allowed: {allowed(key.info)}."
    if key.default is not NODEFAULT:
        one["default"] = msgspec.to_builtins(key.default, enc_hook=str)
    return one
