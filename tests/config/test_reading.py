from operator import attrgetter
from pathlib import Path

import pytest

from agent import config
from agent.config.keys import environment_name, keys
from agent.config.reading import FILE_BYTES_MAX
from agent.errors import ConfigError
from tests.config.samples import BROKERS, MINIMAL, complaint


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
                "agent, source, schema, redact, batch, in_flight, retry, breaker, kafka, spool, "
                "dlq, quota, audit, receipts, http, otlp, log"
            ),
        ),
        (
            "quota:\n  client:\n    event_per_s: 1\n",
            (
                "config.yaml:3: quota.client.event_per_s: unknown key; did you mean "
                "quota.client.events_per_s? allowed: events_per_s, bytes_per_s, burst_s"
            ),
        ),
        (
            "quota:\n  events_per_s: 1\n",
            (
                "config.yaml:2: quota.events_per_s: unknown key; did you mean "
                "quota.client.events_per_s? allowed: client"
            ),
        ),
        ("quota:\n  cleint: {}\n", "did you mean quota.client? allowed: client"),
        ("client: {}\n", "did you mean source.client or quota.client?"),
        ("quota: {client.burst_s: 1}\n", "config.yaml:1: quota.client.burst_s: unknown key"),
        ("kafka.topic: x\n", "config.yaml:1: kafka.topic: unknown key; did you mean kafka"),
        (
            "quota:\n  client:\n    burst_s: 1\n  client: {}\n",
            "config.yaml:4: quota.client: found twice, the first on line 2; allowed: once",
        ),
        (
            "quota:\n  client: 5\n",
            "config.yaml:2: quota.client: found a single value; allowed: a mapping of events_per_s",
        ),
        ("bootstrap_servers: x\n", "unknown key; did you mean kafka.bootstrap_servers?"),
        ("sparrow: {}\n", "config.yaml:1: sparrow: unknown key; allowed: agent"),
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


def test_a_group_with_every_key_commented_out_is_an_empty_one(file: Path) -> None:
    file.write_text(MINIMAL + "quota:\n  client:\n    # burst_s: 5\n")

    assert 2.0 == config.load(file, {}).quota.client.burst_s


def test_no_two_keys_have_one_variable() -> None:
    assert len(keys()) == len({environment_name(key) for key in keys()})


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
    file.write_text("#" * (FILE_BYTES_MAX + 1))

    with pytest.raises(ConfigError, match="found more than 1048576 bytes"):
        config.load(file, {})


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
        ("quota.client.events_per_s", "2.5", 2.5),
        ("audit.path", "/srv/audit.jsonl", Path("/srv/audit.jsonl")),
        ("audit.path", "null", None),
    ],
)
def test_a_variable_is_read_for_the_type_it_sets(key: str, text: str, value: object) -> None:
    loaded = config.load(None, {**BROKERS, environment_name(key): text})

    assert value == attrgetter(key)(loaded)


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
        (
            "QUOTA__CLIENT__BURST_S",
            "0",
            (
                "FEEDBACK_AGENT_QUOTA__CLIENT__BURST_S: quota.client.burst_s: found 0; allowed: a "
                "number above 0 up to 3600"
            ),
        ),
        ("QUOTA__CLIENT__BURST", "1", "did you mean FEEDBACK_AGENT_QUOTA__CLIENT__BURST_S?"),
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
