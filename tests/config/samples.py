"""What the tests of the configuration share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import config
from agent.config.keys import groups, within
from agent.config.sections import Kafka
from agent.errors import ConfigError

MINIMAL = "kafka:\n  bootstrap_servers: [kafka:9092]\n"
BROKERS = {"FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"}


def complaint(file: Path, text: str, environ: dict[str, str] | None = None) -> str:
    """Return the error without the directory, after checking what holds for every error."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(file, environ or {})
    assert 78 == caught.value.exit_code
    said = str(caught.value)
    assert said.isprintable(), "one line, safe on a terminal"
    return said.replace(f"{file.parent}/", "")


def defaults() -> dict[str, object]:
    plain = msgspec.to_builtins(
        config.Config(kafka=Kafka(bootstrap_servers=("kafka:9092",))), enc_hook=str
    )
    plain = msgspec.json.decode(msgspec.json.encode(plain))
    return flat(plain)


def flat(values: Mapping[str, Any], group: str = "") -> dict[str, object]:
    """Return plain values by the paths of their keys."""
    found: dict[str, object] = {}
    for name, value in values.items():
        path = within(group, name)
        found |= flat(value, path) if path in groups() else {path: value}
    return found
