import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from agent import config
from agent.errors import ConfigError

MINIMAL = "kafka:\n  bootstrap_servers: [kafka:9092]\n"
DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"
BROKERS = {"FEEDBACK_AGENT_KAFKA__BOOTSTRAP_SERVERS": "kafka:9092"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


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
        config.Config(kafka=config.Kafka(bootstrap_servers=("kafka:9092",))), enc_hook=str
    )
    plain = msgspec.json.decode(msgspec.json.encode(plain))
    return {f"{s}.{k}": value for s, keys in plain.items() for k, value in keys.items()}


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


SIX = "kafka:\n  bootstrap_servers: [kafka:9092]\n  compression: none\n  compression_level: 6\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            MINIMAL + "batch:\n  age_min_s: 5\n  age_max_s: 2\n",
            "config.yaml:4: batch.age_min_s: found 5; allowed: at most batch.age_max_s, "
            "which is 2: the wait adapts between the two",
            id="batch ages",
        ),
        pytest.param(
            MINIMAL + "batch:\n  age_max_s: 0.001\n",
            "config.yaml:4: batch.age_max_s: found 0.001; allowed: at least batch.age_min_s, "
            "which is 0.01: the wait adapts between the two",
            id="the blame goes to the key that was given",
        ),
        pytest.param(
            MINIMAL + "retry:\n  backoff_s: 31\n",
            "config.yaml:4: retry.backoff_s: found 31; allowed: at most retry.backoff_max_s, "
            "which is 30: the wait grows from one to the other",
            id="backoffs",
        ),
        pytest.param(
            MINIMAL + "source: {line_bytes_max: 1048576}\nin_flight: {bytes_max: 1048576}\n",
            "config.yaml:3: source.line_bytes_max: found 1048576; allowed: less than "
            "in_flight.bytes_max, which is 1048576: one line must fit in flight",
            id="a line in flight",
        ),
        pytest.param(
            MINIMAL + "in_flight: {bytes_max: 1048576}\nbatch: {bytes_max: 1048577}\n",
            "config.yaml:4: batch.bytes_max: found 1048577; allowed: at most "
            "in_flight.bytes_max, which is 1048576: a full batch must fit in flight",
            id="a batch in flight",
        ),
        pytest.param(
            MINIMAL + "dlq:\n  topic: feedback-events\n",
            "config.yaml:4: dlq.topic: found 'feedback-events'; allowed: another one than "
            "kafka.topic: a dead letter among the events would be read as one",
            id="one topic for both",
        ),
        pytest.param(
            MINIMAL + "agent:\n  state_dir: /var/lib/feedback/state\n",
            "config.yaml:4: agent.state_dir: found '/var/lib/feedback/state'; allowed: neither "
            "inside source.root, which is '/var/lib/feedback', nor around it: who may write "
            "feedback must not reach checkpoints",
            id="state inside of the root",
        ),
        pytest.param(
            MINIMAL + "source:\n  root: /var/lib/feedback-agent/../feedback-agent/in\n",
            "config.yaml:4: source.root: found '/var/lib/feedback-agent/../feedback-agent/in'; "
            "allowed: neither inside agent.state_dir, which is '/var/lib/feedback-agent', nor "
            "around it: who may write feedback must not reach checkpoints",
            id="root inside of the state",
        ),
        pytest.param(
            SIX,
            "config.yaml:4: kafka.compression_level: found 6; allowed: only with "
            "kafka.compression gzip, which is none",
            id="a level without compression",
        ),
    ],
)
def test_values_that_do_not_go_together(file: Path, text: str, said: str) -> None:
    assert said == complaint(file, text)


def test_a_link_does_not_hide_that_the_state_lies_inside_of_the_root(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "root")
    text = f"{MINIMAL}source: {{root: {tmp_path}/root}}\nagent: {{state_dir: {tmp_path}/elsewhere}}"

    assert "config.yaml:4: agent.state_dir" in complaint(file, text)


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "kafka:\n  toppic: x\n",
            (
                "config.yaml:2: kafka.toppic: unknown key; did you mean "
                "kafka.topic? allowed: bootstrap_servers, topic, client_id"
            ),
        ),
        ("kafka:\n  cooldown_s: 1\n", "did you mean breaker.cooldown_s?"),
        (
            "kafak:\n  topic: x\n",
            (
                "config.yaml:1: kafak: unknown key; did you mean kafka? allowed: "
                "agent, source, schema, batch, in_flight, retry, breaker, kafka, dlq, http, log"
            ),
        ),
        ("bootstrap_servers: x\n", "unknown key; did you mean kafka.bootstrap_servers?"),
        ("spool: {}\n", "config.yaml:1: spool: unknown key; allowed: agent"),
        ("1: {}\n", "config.yaml:1: 1: unknown key"),
        ('"\\e[2J": {}\n', "config.yaml:1: \\x1b[2J: unknown key"),
        (
            "log:\n  level: info\n  format: json\n  level: debug\n",
            "config.yaml:4: log.level: found twice, the first on line 2; allowed: once",
        ),
        ("log: {}\nhttp: {}\nlog: {}\n", "config.yaml:3: log: found twice, the first on line 1"),
        ("- kafka\n", "config.yaml:1: found a list; allowed: a mapping of agent, source"),
        ("log: debug\n", "config.yaml:1: log: found a single value; allowed: a mapping of level"),
        ("log:\n  level: [\n", "config.yaml:3: found no valid YAML"),
        ("a: 1\n---\nb: 2\n", "config.yaml:2: found no valid YAML"),
        ("log:\n  level: *nowhere\n", "config.yaml:2: found no valid YAML: found undefined alias"),
        (
            "log:\n  # \x1b[2J\n",
            ("config.yaml:2: found a character that YAML does not allow: '\\x1b'"),
        ),
        ("[" * 5000, "config.yaml: found values nested too deeply"),
    ],
)
def test_a_mistake_in_the_file_names_its_line(file: Path, text: str, said: str) -> None:
    assert said in complaint(file, text)


def test_a_section_with_every_key_commented_out_is_an_empty_one(file: Path) -> None:
    file.write_text(MINIMAL + "batch:\n  # records_max: 5\n")

    assert 100 == config.load(file, {}).batch.records_max


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: no such file"):
        config.load(tmp_path / "absent.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        config.load(tmp_path, {})


def test_bytes_that_are_not_utf8_are_located(file: Path) -> None:
    file.write_bytes(b"log:\n  level: \xff\n")

    with pytest.raises(ConfigError, match=r"config\.yaml:2: found bytes that are not UTF-8"):
        config.load(file, {})


def test_a_file_has_an_end(file: Path) -> None:
    file.write_text("#" * (config.FILE_BYTES_MAX + 1))

    with pytest.raises(ConfigError, match="found more than 1048576 bytes"):
        config.load(file, {})


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
    assert config.is_secret("kafka.sasl_password")
    assert config.is_secret("otlp.TOKEN")
    assert not config.is_secret("kafka.sasl_password_file")
    assert not config.is_secret("kafka.key")


# ---- environment


def test_the_environment_alone_is_enough() -> None:
    assert ("kafka:9092",) == config.load(None, BROKERS).kafka.bootstrap_servers


def test_the_environment_is_stronger_than_the_file(file: Path) -> None:
    file.write_text(MINIMAL + "  topic: from-file\n")

    loaded = config.load(file, {"FEEDBACK_AGENT_KAFKA__TOPIC": "from-environment"})

    assert "from-environment" == loaded.kafka.topic


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("agent.node", "007", "007"),
        ("agent.node", "on", "on"),
        ("agent.node", "'quoted'", "quoted"),
        ("agent.drain_s", "5", 5.0),
        ("source.client", "null", None),
        ("source.exclude", "", ()),
        ("source.exclude", "*.tmp, *.bak", ("*.tmp", "*.bak")),
        ("source.exclude", "['a,b', c]", ("a,b", "c")),
        ("source.include", "*.jsonl", ("*.jsonl",)),
        ("source.root", "/srv/feed back", Path("/srv/feed back")),
        ("kafka.key", "none", "none"),
        ("http.port", "0", 0),
    ],
)
def test_a_variable_is_read_for_the_type_it_sets(key: str, text: str, value: object) -> None:
    section, name = key.split(".")

    loaded = config.load(None, {**BROKERS, config.environment_name(key): text})

    assert value == getattr(getattr(loaded, section), name)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("HTTP__PORT", "x", "FEEDBACK_AGENT_HTTP__PORT: http.port: found 'x'; allowed: a whole"),
        ("HTTP__PORT", "", "http.port: found nothing; allowed: a whole number"),
        ("HTTP__PORT", "[1", "http.port: found '[1'; allowed: a whole number"),
        ("DLQ__TOPIC", "a\x1b[2J", "dlq.topic: found 'a\\x1b[2J'; allowed: a topic name"),
        ("AGENT__NODE", "\udcff", "agent.node: found '\\udcff'; allowed: text"),
        (
            "KAFKA__TOPPIC",
            "hunter2",
            (
                "FEEDBACK_AGENT_KAFKA__TOPPIC: unknown variable; did you "
                "mean FEEDBACK_AGENT_KAFKA__TOPIC?"
            ),
        ),
        ("kafka__topic", "x", "did you mean FEEDBACK_AGENT_KAFKA__TOPIC?"),
        ("QQQ__WWW", "x", "unknown variable; allowed: FEEDBACK_AGENT_<SECTION>__<KEY>"),
    ],
)
def test_a_mistake_in_the_environment_names_its_variable(name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(None, {**BROKERS, f"FEEDBACK_AGENT_{name}": text})

    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert "hunter2" not in str(caught.value)


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_mistake() -> None:
    ours = {
        "FEEDBACK_AGENT_SERVICE_HOST": "10.0.0.1",
        "FEEDBACK_AGENT_PORT_9108_TCP_ADDR": "10.0.0.1",
        "FEEDBACK_AGENT_CONFIG": "/etc/x",
    }

    assert config.load(None, BROKERS | ours) == config.load(None, BROKERS)


def test_the_node_is_the_configured_one_else_the_downward_apis_else_the_host(file: Path) -> None:
    file.write_text(MINIMAL + "agent: {node: pinned}\n")

    assert "pinned" == config.load(file, {"NODE_NAME": "node-7"}).node
    assert "node-7" == config.load(None, {**BROKERS, "NODE_NAME": "node-7"}).node
    assert config.load(None, BROKERS).node


# ---- whatever the text

SCALARS = st.sampled_from(
    ["1", "x", "''", "null", "[a]", "{a: 1}", "!!int", "!!timestamp x", "&a [*a]",
     "0x" + "f" * 4000, "2024-13-45", "!!binary x", "!!python/object:os.system x", "1e3", ".inf",
     "<<"]
)  # fmt: skip
DOCUMENTS = st.lists(st.tuples(st.sampled_from(sorted(config.keys())), SCALARS), max_size=5)


def document(pairs: list[tuple[str, str]]) -> Iterator[str]:
    yield MINIMAL
    for key, scalar in pairs:
        section, name = key.split(".")
        yield f"{section}:\n  {name}: {scalar}\n"


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


# ---- what is printed and shipped


def test_what_is_printed_reads_back_the_same(file: Path, tmp_path: Path) -> None:
    file.write_text(MINIMAL + "source: {exclude: ['*.tmp'], client: app}\nagent: {node: n}\n")
    loaded = config.load(file, {})
    again = tmp_path / "again.yaml"
    again.write_text(config.as_yaml(loaded))

    assert loaded == config.load(again, {})


def test_the_example_loads_and_names_every_key_with_its_true_default() -> None:
    example_file = resources.files("agent") / "config.example.yaml"
    shown = yaml.safe_load(example_file.read_text("utf-8"))

    flat = {f"{s}.{k}": value for s, keys in shown.items() for k, value in keys.items()}

    assert defaults() == flat
    assert list(config.keys()) == list(flat)
    with resources.as_file(example_file) as path:
        config.load(path, {})


def test_every_key_has_a_meaning() -> None:
    assert list(config.keys()) == [key for key, meaning in config.meanings().items() if meaning]


def test_the_json_schema_knows_every_key_its_default_and_its_meaning() -> None:
    schema = json.loads(json.dumps(config.json_schema()))

    for key, value in defaults().items():
        section, name = key.split(".")
        known = schema["properties"][section]["properties"][name]
        assert known["description"].startswith(config.meanings()[key])
        if key != "kafka.bootstrap_servers":
            assert value == known["default"]
    assert schema["additionalProperties"] is False


def table() -> str:
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key, value in defaults().items():
        default = "required" if key == "kafka.bootstrap_servers" else f"`{json.dumps(value)}`"
        name, bounds = config.environment_name(key), config.allowed(config.keys()[key].info)
        rows.append(f"| `{key}`<br>`{name}` | {bounds} | {default} | {config.meanings()[key]} |")
    return "\n".join(rows)


def test_the_document_says_of_every_key_what_the_code_says() -> None:
    """Where it fails, put what ``table()`` returns into the document."""
    text = DOCS.read_text("utf-8")

    written = "\n".join(re.findall(r"^\|.*\|$", text.partition("## Exit codes")[0], re.MULTILINE))

    assert table() == written
