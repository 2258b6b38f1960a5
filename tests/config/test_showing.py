import json
import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

from agent import config
from agent.config.keys import allowed, environment_name, groups, keys
from agent.config.showing import is_secret, meanings
from tests.config.samples import MINIMAL, complaint, defaults, flat

DOCS = Path(__file__).parent.parent.parent / "docs" / "configuration.md"


@pytest.mark.parametrize(
    "text",
    [
        "kafka:\n  bootstrap_servers: user:hunter2@kafka:9092\n",
        "kafka:\n  password: hunter2\n",
        "sasl:\n  password: hunter2\n",
    ],
)
def test_a_secret_is_never_quoted(file: Path, text: str) -> None:
    assert "hunter2" not in complaint(file, text)


def test_a_key_that_names_a_secret_is_one_and_the_path_of_a_file_is_not() -> None:
    assert is_secret("kafka.sasl_password")
    assert is_secret("otlp.TOKEN")
    assert not is_secret("kafka.sasl_password_file")
    assert not is_secret("kafka.key")


def test_what_is_printed_reads_back_the_same(file: Path, tmp_path: Path) -> None:
    file.write_text(
        MINIMAL + "source: {exclude: ['*.tmp'], client: app}\n"
        "agent: {node: n}\nquota: {client: {events_per_s: 5}}\n"
    )
    loaded = config.load(file, {})
    again = tmp_path / "again.yaml"
    again.write_text(config.as_yaml(loaded))

    assert loaded == config.load(again, {})


def test_the_example_loads_and_names_every_key_with_its_true_default() -> None:
    example_file = resources.files("agent") / "config.example.yaml"
    shown = flat(yaml.safe_load(example_file.read_text("utf-8")))

    assert defaults() == shown
    assert list(keys()) == list(shown)
    with resources.as_file(example_file) as path:
        config.load(path, {})


def test_every_key_has_a_meaning() -> None:
    said = [path for path, meaning in meanings().items() if meaning and path not in groups()]

    assert list(keys()) == said


def test_the_json_schema_knows_every_key_its_default_and_its_meaning() -> None:
    schema = json.loads(json.dumps(config.json_schema()))

    for key, value in defaults().items():
        known = schema
        for name in key.split("."):
            assert known["additionalProperties"] is False
            known = known["properties"][name]
        assert known["description"].startswith(meanings()[key])
        if key != "kafka.bootstrap_servers":
            assert value == known["default"]


def table() -> str:
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key, value in defaults().items():
        default = "required" if key == "kafka.bootstrap_servers" else f"`{json.dumps(value)}`"
        name, bounds = environment_name(key), allowed(keys()[key].info)
        rows.append(f"| `{key}`<br>`{name}` | {bounds} | {default} | {meanings()[key]} |")
    return "\n".join(rows)


def test_the_document_says_of_every_key_what_the_code_says() -> None:
    """Where it fails, put what ``table()`` returns into the document."""
    text = DOCS.read_text("utf-8")

    written = "\n".join(re.findall(r"^\|.*\|$", text.partition("## Exit codes")[0], re.MULTILINE))

    assert table() == written
