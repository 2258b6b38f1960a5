from pathlib import Path

import pytest

from agent import config
from tests.config.samples import MINIMAL, complaint

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
            MINIMAL + "audit:\n  topic: feedback-events-dlq\n",
            "config.yaml:4: audit.topic: found 'feedback-events-dlq'; allowed: another one than "
            "dlq.topic: records of the audit log are neither events nor dead letters",
            id="the audit log among dead letters",
        ),
        pytest.param(
            MINIMAL + "audit:\n  topic: feedback-audit\n  enabled: false\n",
            "config.yaml:4: audit.topic: found 'feedback-audit'; allowed: only with audit.enabled "
            "true, which is false",
            id="a copy of nothing",
        ),
        pytest.param(
            MINIMAL + "audit:\n  path: /var/lib/feedback/x/audit.jsonl\n",
            "config.yaml:4: audit.path: found '/var/lib/feedback/x/audit.jsonl'; allowed: not "
            "inside source.root, which is '/var/lib/feedback': the agent would read what it writes",
            id="audit inside of the root",
        ),
        pytest.param(
            MINIMAL + "schema:\n  dir: /var/lib/feedback/x\n",
            "config.yaml:4: schema.dir: found '/var/lib/feedback/x'; allowed: not inside "
            "source.root, which is '/var/lib/feedback': who may write feedback must not say what "
            "is allowed",
            id="schemas inside of the root",
        ),
        pytest.param(
            MINIMAL + "source:\n  depth_max: 2\n  client_depth: 3\n",
            "config.yaml:5: source.client_depth: found 3; allowed: at most source.depth_max, "
            "which is 2: files must lie where they are read",
            id="clients below what is read",
        ),
        pytest.param(
            MINIMAL + "source:\n  start_at: end\n  delete_after_s: 60\n",
            "config.yaml:5: source.delete_after_s: found 60; allowed: only with source.start_at "
            "beginning, which is end: what is passed over at the start would be deleted unsent",
            id="deletion of what is passed over",
        ),
        pytest.param(
            SIX,
            "config.yaml:4: kafka.compression_level: found 6; allowed: only with "
            "kafka.compression gzip, zstd or lz4, which is none",
            id="a level without compression",
        ),
        pytest.param(
            SIX.replace("none", "snappy"),
            "config.yaml:4: kafka.compression_level: found 6; allowed: only with "
            "kafka.compression gzip, zstd or lz4, which is snappy",
            id="a level of a codec that has none",
        ),
        pytest.param(
            SIX.replace("none", "gzip").replace("6", "10"),
            "config.yaml:4: kafka.compression_level: found 10; allowed: 0 to 9 with "
            "kafka.compression gzip",
            id="a level beyond gzip's",
        ),
        pytest.param(
            SIX.replace("none", "zstd").replace("6", "0"),
            "config.yaml:4: kafka.compression_level: found 0; allowed: 1 to 19 with "
            "kafka.compression zstd",
            id="a level below zstd's",
        ),
        pytest.param(
            SIX.replace("none", "lz4").replace("6", "13"),
            "config.yaml:4: kafka.compression_level: found 13; allowed: 1 to 12 with "
            "kafka.compression lz4",
            id="a level beyond lz4's",
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


USER = "{mechanism: SCRAM-SHA-256, username: u, password_file: /p}"
ENDPOINT = "mechanism: OAUTHBEARER, token_url: 'https://t/t'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls: {ca_file: /ca}", "found '/ca'; allowed: only with kafka.tls.enabled true"),
        (
            "tls: {enabled: true, key_file: /k}",
            "found '/k'; allowed: only with kafka.tls.ce",
        ),
        ("tls: {enabled: true, min_version: 1.3}", "put it in quotes"),
        (
            "sasl: {mechanism: PLAIN, username: u, password_file: /p}",
            "kafka.sasl.mechanism: found 'PLAIN'; allowed: PLAIN only with kafka.tls.enabled true",
        ),
        (
            "sasl: {mechanism: SCRAM-SHA-256, username: u}",
            "password_file: found nothing; allowed: required with kafka.sasl.mechanism SCRAM-SHA",
        ),
        ("sasl: {username: u}", "username: found a value; allowed: null with kafka.sasl.mechanism"),
        (
            "sasl: {mechanism: OAUTHBEARER}",
            "token_url: found nothing; allowed: either kafka.sasl.token_file or kafka.sasl.tok",
        ),
        ("sasl: {" + ENDPOINT + ", token_file: /t}", "kafka.sasl.token_url: found both"),
        ("sasl: {" + ENDPOINT + ", client_id: c}", "client_secret_file: found nothing"),
        ("sasl: {mechanism: OAUTHBEARER, token_url: 'http://t'}", "allowed: an https:// address"),
        ("sasl: {mechanism: OAUTHBEARER, token_file: /t, scope: s}", "scope: found a value"),
        ("sasl: {password_file: p}", "found 'p'; allowed: an absolute path"),
        ("sasl: {password: hunter2}", "kafka.sasl.password: unknown key"),
    ],
)
def test_a_way_to_the_brokers_has_exactly_the_keys_it_needs(
    file: Path, text: str, said: str
) -> None:
    assert said in complaint(file, MINIMAL + f"  {text}\n")


@pytest.mark.parametrize(
    "text",
    [
        f"sasl: {USER}",
        "tls: {enabled: true}\n  sasl: {mechanism: PLAIN, username: u, password_file: /p}",
        "sasl: {mechanism: PLAIN, username: u, password_file: /p, allow_plaintext: true}",
        "tls: {enabled: true, min_version: '1.2', cert_file: /c, key_file: /k}",
        "tls: {enabled: true}\n  sasl: {" + ENDPOINT + ", client_id: c, client_secret_file: /s}",
        "tls: {enabled: true}\n  sasl: {mechanism: OAUTHBEARER, token_file: /t}",
    ],
)
def test_every_way_to_the_brokers_can_be_configured(file: Path, text: str) -> None:
    file.write_text(MINIMAL + f"  {text}\n")
    shown = config.as_yaml(config.load(file, {}))
    assert "***" not in shown
    assert "/p" in shown or "password_file: null" in shown
