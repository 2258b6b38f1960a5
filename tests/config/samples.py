"""What the tests of the configuration share."""

from pathlib import Path

import msgspec
import pytest

from agent import config
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
    return {f"{s}.{k}": value for s, values in plain.items() for k, value in values.items()}
