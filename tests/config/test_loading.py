from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent import config
from agent.config.keys import keys
from agent.errors import ConfigError
from tests.config.samples import BROKERS, MINIMAL, complaint


def test_everything_has_a_default_but_the_brokers(file: Path) -> None:
    file.write_text(MINIMAL)

    loaded = config.load(file, {})

    assert ("kafka:9092",) == loaded.kafka.bootstrap_servers
    assert 786_432 == loaded.source.line_bytes_max
    assert Path("/var/lib/feedback") == loaded.source.root
    assert (100, 262_144, 0.01, 10.0) == (
        loaded.batch.records_max,
        loaded.batch.bytes_max,
        loaded.batch.age_min_s,
        loaded.batch.age_max_s,
    )


def test_without_brokers_the_error_says_where_they_can_be_given(file: Path) -> None:
    said = complaint(file, "")

    assert said.startswith("config.yaml: kafka.bootstrap_servers: found nothing; allowed: ")
    assert said.endswith("or FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS")


@pytest.mark.parametrize(
    ("section", "line", "said"),
    [
        ("batch", "records_max: 0", "batch.records_max: found 0; allowed: a whole number from 1"),
        (
            "batch",
            "records_max: '5'",
            "batch.records_max: found '5'; allowed: a whole number from 1",
        ),
        ("batch", "age_max_s: .nan", "found nan; allowed: a number above 0 up to 60"),
        ("breaker", "cooldown_s: .inf", "found inf; allowed: a number above 0"),
        (
            "agent",
            "node: 007",
            (
                "agent.node: found 7; allowed: text of 1 to 249 characters, or null"
                "; put it in quotes"
            ),
        ),
        ("agent", "node: 2024-01-01", "found 2024-01-01; allowed"),
        ("agent", "state_dir: relative/path", "found 'relative/path'; allowed: an absolute path"),
        ("audit", "path: audit.jsonl", "found 'audit.jsonl'; allowed: an absolute path, or null"),
        (
            "quota",
            "client: {events_per_s: 0}",
            "quota.client.events_per_s: found 0; allowed: a number above 0, or null",
        ),
        (
            "quota",
            "client: {burst_s: !!float x}",
            "quota.client.burst_s: found no value of its YAML type; allowed: a number above 0",
        ),
        ("source", "client_depth: 0", "allowed: a whole number from 1 to 16"),
        ("source", "client: ../up", "found '../up'; allowed: 1 to 249 of a-z"),
        ("source", 'client: "a\\nb"', "found 'a\\nb'; allowed: 1 to 249 of a-z"),
        ("source", "include: []", "found a list; allowed: a list of at least 1, each a file name"),
        ("source", "include: [a, b/c]", "source.include[1]: found 'b/c'; allowed: a list"),
        ("source", "exclude: ['']", "source.exclude[0]: found ''; allowed: a list"),
        ("source", "start_at: middle", "found 'middle'; allowed: one of beginning, end"),
        ("dlq", "topic: no/slash", "found 'no/slash'; allowed: a topic name: 1 to 249"),
        ("dlq", "topic: ..", "found '..'; allowed: a topic name"),
        ("dlq", 'topic: "legal\\n"', "found 'legal\\n'; allowed: a topic name"),
        ("dlq", f"topic: {'a' * 250}", f"found '{'a' * 60}...'; allowed: a topic name"),
        ("http", "port: 65536", "found 65536; allowed: a whole number from 0 to 65535"),
        ("http", "port: true", "found true; allowed: a whole number"),
        ("http", "port:", "http.port: found nothing; allowed: a whole number"),
        ("log", "level: {a: 1}", "found a mapping; allowed: one of"),
        ("http", "port: !!int x", "http.port: found no value of its YAML type; allowed: a whole"),
    ],
)
def test_a_value_out_of_bounds_says_found_and_allowed(
    file: Path, section: str, line: str, said: str
) -> None:
    got = complaint(file, f"{MINIMAL}{section}:\n  {line}\n")

    assert got.startswith(f"config.yaml:4: {section}.")
    assert said in got


@pytest.mark.parametrize(
    "broker",
    ["kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "http://k:9092", "a b:1", "::1:9092"],
)
def test_a_broker_is_host_and_port(file: Path, broker: str) -> None:
    got = complaint(file, f"kafka:\n  bootstrap_servers: ['ok:9092', '{broker}']\n")

    assert got.startswith(f"config.yaml:2: kafka.bootstrap_servers[1]: found '{broker}'; allowed: ")


def test_brokers_may_be_one_text_with_commas(file: Path) -> None:
    file.write_text("kafka:\n  bootstrap_servers: a:1, b.example.:65535 ,[::1]:9092\n")

    loaded = config.load(file, {})

    assert ("a:1", "b.example.:65535", "[::1]:9092") == loaded.kafka.bootstrap_servers


def test_the_node_is_the_configured_one_else_the_downward_apis_else_the_host(file: Path) -> None:
    file.write_text(MINIMAL + "agent: {node: pinned}\n")

    assert "pinned" == config.load(file, {"NODE_NAME": "node-7"}).node
    assert "node-7" == config.load(None, {**BROKERS, "NODE_NAME": "node-7"}).node
    assert config.load(None, BROKERS).node


SCALARS = st.sampled_from(
    ["1", "x", "''", "null", "[a]", "{a: 1}", "!!int", "!!timestamp x", "&a [*a]",
     "0x" + "f" * 4000, "2024-13-45", "!!binary x", "!!python/object:os.system x", "1e3", ".inf",
     "<<"]
)  # fmt: skip
DOCUMENTS = st.lists(st.tuples(st.sampled_from(sorted(keys())), SCALARS), max_size=5)


def document(pairs: list[tuple[str, str]]) -> Iterator[str]:
    yield MINIMAL
    for key, scalar in pairs:
        *above, name = key.split(".")
        for depth, group in enumerate(above):
            yield f"{'  ' * depth}{group}:\n"
        yield f"{'  ' * len(above)}{name}: {scalar}\n"


@given(st.text(max_size=200) | DOCUMENTS.map(lambda pairs: "".join(document(pairs))))
@example("? [a, b]\n: c\n")
@example("log:\n  ? {a: b}\n  : c\n")
def test_any_text_is_a_configuration_or_one_line_of_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config.load(file, {})
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017  both outcomes are legal
