"""Brokers that let the agent in only with the right credentials, and an agent that checks them.

What is wrong is said once, with one reason, and a corrected file is enough.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509

from agent.clock import SystemClock
from agent.config.sections import Sasl, Tls
from agent.credentials import Credentials
from tests import real_kafka, signed_tokens
from tests.patience import WITHIN_S
from tests.running import Agent, append, assert_each_once, feedback
from tests.secured_kafka import (
    DESCRIBE,
    HOST,
    OUTSIDER,
    PASSWORD,
    ROTATED,
    USER,
    WRITE,
    Secured,
    bearer_token,
    replace,
)
from tests.sending import arrived, sending
from tests.token_endpoint import Endpoint, token_endpoint

pytestmark = pytest.mark.kafka

LINES = 50
SECRETS = (PASSWORD, "battery-staple", "endpoint-secret", "correct-horse")
IMPATIENT: dict[str, Any] = {
    "retry": {"backoff_s": 0.2, "backoff_max_s": 0.5},
    "breaker": {"cooldown_s": 0.5},
    "batch": {"age_max_s": 0.1},
}


def secret(path: Path, text: str) -> str:
    replace(path, text.encode())
    return str(path)


def sasl(work: Path, mechanism: str, password: str = PASSWORD, user: str = USER) -> dict[str, str]:
    file = secret(work / "password", password)
    return {"mechanism": mechanism, "username": user, "password_file": file}


def bearing(work: Path, lifetime_s: float) -> dict[str, str]:
    file = secret(work / "token", bearer_token(lifetime_s))
    return {"mechanism": "OAUTHBEARER", "token_file": file}


def bearing_signed(secured: Secured, work: Path, **token: Any) -> dict[str, str]:
    signed = signed_tokens.signed(secured.run, USER, token.pop("lifetime_s", 3600), **token)
    return {"mechanism": "OAUTHBEARER", "token_file": secret(work / "token", signed)}


def asking(secured: Secured, work: Path, server: Endpoint, password: str) -> dict[str, str]:
    return {
        "mechanism": "OAUTHBEARER",
        "token_url": f"https://{HOST}:{server.server_address[1]}/token",
        "token_ca_file": str(secured.ca),
        "client_id": "the agent",
        "client_secret_file": secret(work / "client-secret", password),
    }


@contextmanager
def shipping(secured: Secured, work: Path, listener: str, **kafka: Any) -> Iterator[Agent]:
    """Run an agent that has ``LINES`` lines to ship and comes in by ``listener``."""
    topics = kafka.pop("topics", None) or secured.topics()
    section = secured.kafka(listener, topics, **kafka)
    with Agent(work, topics, kafka=section, **IMPATIENT) as agent:
        append(agent.root / "app/a.jsonl", map(feedback, range(LINES)))
        yield agent.start()
        assert not [word for word in SECRETS if word in agent.log_text()]
        assert "Traceback" not in agent.log_text()
        assert 0 == agent.stop()


def refusals(agent: Agent, reason: str = "authentication") -> float:
    return agent.metric("send_failures_total", sink="events", reason=reason)


def until_refused(agent: Agent, reason: str, detail: str) -> None:
    """Wait until the agent says why; then it has tried more than once and said it once."""
    agent.until(lambda: refusals(agent, reason) > 2, reason)
    said = [e for e in agent.log_entries("sink.down") if e["sink"] == "events"]
    assert [reason] == [entry["reason"] for entry in said]
    assert detail in said[0]["detail"]
    spooling = f"events: spooling ({reason})"
    agent.until(lambda: [spooling] == [r for r in agent.reasons() if "events" in r], spooling)


def assert_recovers(agent: Agent) -> None:
    """Without a restart everything arrives, once."""
    agent.until(lambda: agent.mode() == "live" and not agent.not_ready(), "live again")
    agent.until(lambda: agent.metric("events_delivered_total") >= LINES, "delivered")
    assert_each_once(agent, LINES)


WAYS = (
    "TLS",
    "TLS 1.2",
    "MTLS",
    "PLAIN",
    "SCRAM-SHA-256",
    "SCRAM-SHA-512",
    "token",
    "signed token",
    "endpoint",
)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_in_works(secured: Secured, tmp_path: Path, way: str) -> None:
    with token_endpoint(secured.cas, tmp_path) as server:
        listener, kafka = "SASL", dict[str, Any]()
        match way:
            case "TLS" | "TLS 1.2":
                listener = "TLS"
                kafka["tls"] = {"min_version": way.removeprefix("TLS ") if " " in way else "1.3"}
            case "MTLS":
                listener = "MTLS"
                own = secured.cas.issue(tmp_path / "own.pem", "agent")
                kafka["tls"] = {"cert_file": str(own)}
            case "token":
                kafka["sasl"] = bearing(tmp_path, 3600)
            case "signed token":
                listener = "JWT"
                kafka["sasl"] = bearing_signed(secured, tmp_path)
            case "endpoint":
                kafka["sasl"] = asking(secured, tmp_path, server, server.secret)
            case _:
                kafka["sasl"] = sasl(tmp_path, way)
        with shipping(secured, tmp_path, listener, **kafka) as agent:
            agent.until_delivered(LINES)
            assert [] == agent.log_entries("sink.down", "secret.exposed")
        assert_each_once(agent, LINES)
        assert (1 if way == "endpoint" else 0) == server.granted, "one token for all connections"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password(secured: Secured, tmp_path: Path, mechanism: str) -> None:
    wrong = sasl(tmp_path, mechanism, "battery-staple")
    with shipping(secured, tmp_path, "SASL", sasl=wrong) as agent:
        until_refused(agent, "authentication", "SaslAuthenticationFailed")
        secret(tmp_path / "password", PASSWORD)
        assert_recovers(agent)


def test_a_password_file_that_is_not_there_yet(secured: Secured, tmp_path: Path) -> None:
    missing = sasl(tmp_path, "PLAIN")
    (tmp_path / "password").unlink()
    with shipping(secured, tmp_path, "SASL", sasl=missing) as agent:
        until_refused(agent, "authentication", "password: no such file or directory")
        secret(tmp_path / "password", PASSWORD)
        assert_recovers(agent)


def test_a_token_that_has_expired(secured: Secured, tmp_path: Path) -> None:
    with shipping(secured, tmp_path, "SASL", sasl=bearing(tmp_path, -60)) as agent:
        until_refused(agent, "authentication", "SaslAuthenticationFailed")
        secret(tmp_path / "token", bearer_token(3600))
        assert_recovers(agent)


SIGNED_WRONG: dict[str, dict[str, Any]] = {
    "expired": {"lifetime_s": -60},
    "signature": {"key": "stranger", "named": "one"},
    "key": {"key": "stranger"},
    "audience": {"audience": "somebody else"},
}
OTHERWISE_WRONG = sorted({*SIGNED_WRONG, "not signed"} - {"signature"})


@pytest.mark.parametrize(
    "wrong", ["signature", *(pytest.param(one, marks=pytest.mark.long) for one in OTHERWISE_WRONG)]
)
def test_a_signed_token_that_is_not_good(secured: Secured, tmp_path: Path, wrong: str) -> None:
    """What is wrong with it the broker does not say."""
    way = bearing_signed(secured, tmp_path, **SIGNED_WRONG.get(wrong, {}))
    if wrong == "not signed":
        way = bearing(tmp_path, 3600)
    with shipping(secured, tmp_path, "JWT", sasl=way) as agent:
        until_refused(agent, "authentication", "SaslAuthenticationFailed")
        bearing_signed(secured, tmp_path)
        assert_recovers(agent)


@pytest.mark.long
def test_signed_tokens_of_another_key_while_lines_flow(secured: Secured, tmp_path: Path) -> None:
    """Whoever issues them changes keys; the broker knows both. Nobody hears of it."""
    way = bearing_signed(secured, tmp_path)
    with shipping(secured, tmp_path, "JWT", sasl=way) as agent:
        agent.until_delivered(LINES)
        with writing(agent.root / "app/b.jsonl") as written:
            bearing_signed(secured, tmp_path, key="two")
            agent.until(lambda: bool(agent.log_entries("reload.adopted")), "the other one")
        agent.until(lambda: not agent.behind_bytes(), "all")
        assert [] == agent.log_entries("sink.down")
    assert_each_once(agent, LINES + len(written))


def test_a_token_endpoint_that_does_not_know_us(secured: Secured, tmp_path: Path) -> None:
    with token_endpoint(secured.cas, tmp_path) as server:
        wrong = asking(secured, tmp_path, server, "battery-staple")
        with shipping(secured, tmp_path, "SASL", sasl=wrong) as agent:
            until_refused(agent, "authentication", "HTTP 401 invalid_client")
            secret(tmp_path / "client-secret", server.secret)
            assert_recovers(agent)


def test_a_ca_that_did_not_sign_the_brokers_certificate(secured: Secured, tmp_path: Path) -> None:
    ca = secret(tmp_path / "ca.pem", (secured.run / "stranger.pem").read_text())
    with shipping(secured, tmp_path, "TLS", tls={"ca_file": ca}) as agent:
        until_refused(agent, "tls", "wrong CA: ")
        secret(tmp_path / "ca.pem", secured.ca.read_text())
        assert_recovers(agent)


@pytest.mark.parametrize(
    ("listener", "detail"),
    [("EXPIRED", "certificate has expired"), ("OTHER", "wrong host name: ")],
)
def test_a_certificate_of_the_broker_that_is_not_good(
    secured: Secured, tmp_path: Path, listener: str, detail: str
) -> None:
    """It is the broker that is mended here."""
    with shipping(secured, tmp_path, listener) as agent:
        until_refused(agent, "tls", detail)
        with secured.certificate(listener, secured.run / "broker.pem"):
            assert_recovers(agent)


@pytest.mark.parametrize("wrong", ["none", "expired", "stranger"])
def test_a_certificate_of_ours_that_is_not_good(
    secured: Secured, tmp_path: Path, wrong: str
) -> None:
    own, good = tmp_path / "own.pem", tmp_path / "good.pem"
    secured.cas.issue(good, "agent")
    authority = "stranger" if wrong == "stranger" else "ca"
    secured.cas.issue(own, "agent", ca=authority, expired=wrong == "expired")
    if wrong == "none":
        own.unlink()
    with shipping(secured, tmp_path, "MTLS", tls={"cert_file": str(own)}) as agent:
        until_refused(agent, "tls", "own.pem" if wrong == "none" else "the broker refused ours")
        replace(own, good.read_bytes())
        assert_recovers(agent)


@pytest.mark.parametrize("granted", [(), (DESCRIBE,)], ids=["nothing", "describe"])
def test_an_acl_that_is_missing(secured: Secured, tmp_path: Path, granted: tuple[int, ...]) -> None:
    """What docs/security.md lists is enough: Describe and Write, and no Create."""
    topics = secured.topics()
    secured.allow(topics.events, "somebody", DESCRIBE)
    secured.allow(topics.events, USER, *granted)
    way = sasl(tmp_path, "SCRAM-SHA-512")
    with shipping(secured, tmp_path, "SASL", sasl=way, topics=topics) as agent:
        until_refused(agent, "topic_denied", topics.events)
        secured.allow(topics.events, USER, DESCRIBE, WRITE)
        assert_recovers(agent)


def test_an_acl_of_a_certificate(secured: Secured, tmp_path: Path) -> None:
    """Its subject is the principal."""
    own = secured.cas.issue(tmp_path / "own.pem", "agent")
    certificate = x509.load_pem_x509_certificates(own.read_bytes())[0]
    topics = secured.topics()
    secured.allow(topics.events, "somebody", DESCRIBE)
    with shipping(secured, tmp_path, "MTLS", tls={"cert_file": str(own)}, topics=topics) as agent:
        until_refused(agent, "topic_denied", topics.events)
        subject = certificate.subject.rfc4514_string().replace("#", r"\#")  # as Java writes it
        secured.allow(topics.events, subject, DESCRIBE, WRITE)
        assert_recovers(agent)


def test_an_acl_of_the_cluster_that_is_missing(secured: Secured, tmp_path: Path) -> None:
    """No producer id for who may write nowhere by name; Write on the topic is enough for one."""
    secured.shut_out(OUTSIDER)
    topics = secured.topics()
    way = sasl(tmp_path, "SCRAM-SHA-512", user=OUTSIDER)
    with shipping(secured, tmp_path, "SASL", sasl=way, topics=topics) as agent:
        until_refused(agent, "cluster_denied", "")
        secured.allow(topics.events, OUTSIDER, DESCRIBE, WRITE)
        assert_recovers(agent)


@contextmanager
def writing(path: Path) -> Iterator[list[int]]:
    """Append to ``path`` until the end of the block; the list holds one entry a line by then."""
    stopped, written = threading.Event(), list[int]()

    def write() -> None:
        while not stopped.wait(0.02):
            append(path, [feedback(1000 + len(written))])
            written.append(0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stopped.set()
        writer.join()


def test_a_password_that_is_rotated_while_lines_flow(secured: Secured, tmp_path: Path) -> None:
    """The broker ends sessions after a while; the next begins with the password of then."""
    way = sasl(tmp_path, "SCRAM-SHA-256", user=ROTATED)
    with shipping(secured, tmp_path, "SASL", sasl=way) as agent:
        agent.until_delivered(LINES)
        with writing(agent.root / "app/b.jsonl") as written:
            secured.set_password(ROTATED, "correct-horse-2")
            agent.until(lambda: refusals(agent) > 0, "refused")
            secret(tmp_path / "password", "correct-horse-2")
            agent.until(lambda: agent.mode() == "live" and not agent.not_ready(), "live again")
        agent.until(lambda: agent.metric("lag_bytes") == 0 and not agent.behind_bytes(), "all")
        downs = [e["reason"] for e in agent.log_entries("sink.down") if e["sink"] == "events"]
        assert ["authentication"] == downs
    assert_each_once(agent, LINES + len(written))


def ask(agent: Agent, *events: str, times: int = 2) -> None:
    """Send SIGHUP and wait until the log has ``events``, once for each sink."""
    agent.signal(signal.SIGHUP)
    agent.until(lambda: len(agent.log_entries(*events)) == times, str(events))


def assert_never_down(agent: Agent) -> None:
    assert [] == agent.log_entries("sink.down")
    assert 0 == agent.metric("producer_retirements_total")


@pytest.mark.long
def test_a_password_that_is_rotated_in_both_places_costs_nothing(
    secured: Secured, tmp_path: Path
) -> None:
    """The session would have no end: the agent itself connects anew, with nothing under way."""
    user = f"rotated-{uuid4().hex}"
    secured.set_password(user, PASSWORD)
    way = sasl(tmp_path, "SCRAM-SHA-512", user=user)
    with shipping(secured, tmp_path, "SASL", sasl=way) as agent:
        agent.until_delivered(LINES)
        with writing(agent.root / "app/b.jsonl") as written:
            for number in range(3, 6):
                secured.set_password(user, f"correct-horse-{number}")
                secret(tmp_path / "password", f"correct-horse-{number}")
                ask(agent, "sink.renewed", times=2 * (number - 2))
            sent = len(written)
            agent.until(lambda: len(written) > sent + LINES, "more lines")
        agent.until(lambda: agent.metric("lag_bytes") == 0 and not agent.behind_bytes(), "all")
        assert_never_down(agent)
        assert 3 == agent.metric("reloads_total", what="secrets", outcome="adopted")
    assert_each_once(agent, LINES + len(written))


def test_a_password_that_is_wrong_by_now_leaves_what_is_connected_alone(
    secured: Secured, tmp_path: Path
) -> None:
    """It is said before a connection has to be made with it."""
    way = sasl(tmp_path, "SCRAM-SHA-512")
    with shipping(secured, tmp_path, "SASL", sasl=way) as agent:
        agent.until_delivered(LINES)
        with writing(agent.root / "app/b.jsonl") as written:
            secret(tmp_path / "password", "battery-staple")
            ask(agent, "sink.not_renewed")
            sent = len(written)
            agent.until_delivered(LINES + sent)
            secret(tmp_path / "password", PASSWORD)
            ask(agent, "sink.renewed")
        agent.until(lambda: agent.metric("lag_bytes") == 0 and not agent.behind_bytes(), "all")
        said = agent.log_entries("sink.not_renewed")
        assert {"authentication"} == {entry["reason"] for entry in said}
        assert_never_down(agent)
    assert_each_once(agent, LINES + len(written))


def test_a_certificate_that_is_rotated_while_lines_flow(secured: Secured, tmp_path: Path) -> None:
    """A bad one is said at once and not used; a good one is used at once."""
    own = secured.cas.issue(tmp_path / "own.pem", "agent")
    with shipping(secured, tmp_path, "MTLS", tls={"cert_file": str(own)}) as agent:
        agent.until_delivered(LINES)
        with writing(agent.root / "app/b.jsonl") as written:
            for _ in range(2):
                replace(own, b"-----BEGIN CERTIFICATE-----")
                ask(agent, "reload.refused", times=1)
            secured.cas.issue(own, "agent", ca="stranger")
            ask(agent, "sink.not_renewed")
            secured.cas.issue(own, "agent")
            ask(agent, "sink.renewed")
            sent = len(written)
            agent.until_delivered(LINES + sent)
        agent.until(lambda: agent.metric("lag_bytes") == 0 and not agent.behind_bytes(), "all")
        (said,) = agent.log_entries("reload.refused")
        assert ("secrets", "kafka.tls.cert_file") == (said["what"], said["key"])
        assert "do not go together" in said["reason"]
        assert {"version": None, "problem": None} == agent.status()["reloaded"]["secrets"]
        assert_never_down(agent)
    assert_each_once(agent, LINES + len(written))


@pytest.mark.long
def test_tokens_that_expire_while_lines_flow(secured: Secured, tmp_path: Path) -> None:
    """A session lasts as long as its token; nobody hears of the next one."""
    with token_endpoint(secured.cas, tmp_path) as server:
        server.lifetime_s = 2.0
        way = asking(secured, tmp_path, server, server.secret)
        with shipping(secured, tmp_path, "SASL", sasl=way) as agent:
            with writing(agent.root / "app/b.jsonl") as written:
                agent.until(lambda: server.granted > 2, "tokens")
            agent.until(lambda: not agent.behind_bytes(), "all")
            assert [] == agent.log_entries("sink.down")
        assert_each_once(agent, LINES + len(written))


async def test_a_certificate_that_is_rotated_counts_for_the_next_connection(
    secured: Secured, tmp_path: Path
) -> None:
    """The same producer goes on with it, and nothing goes twice. A bad one is said until mended."""
    topic = f"test-{uuid4().hex}"
    await real_kafka.create_topic(secured.plain, topic, 1)
    own, good = (secured.cas.issue(tmp_path / f"{name}.pem", "agent") for name in ("own", "good"))
    tls = Tls(enabled=True, ca_file=secured.ca, cert_file=own)
    credentials = Credentials(tls, Sasl(), SystemClock())
    address = secured.addresses["MTLS"]
    async with sending(address, topic, timeout_s=30.0, security=credentials) as node:
        node.admit(b"before")
        await node.until_empty(WITHIN_S)
        first = (await credentials.current())["ssl_context"]
        replace(own, good.read_bytes())
        node.cut()
        node.admit(b"after")
        await node.until_empty(WITHIN_S)
        assert first is not (await credentials.current())["ssl_context"]
        assert (0, []) == (node.retirements, node.heard)

        secured.cas.issue(own, "agent", expired=True)
        node.cut()
        node.admit(b"refused")
        await node.until(lambda: len(node.heard) > 1, WITHIN_S)
        replace(own, good.read_bytes())
        await node.until_empty(WITHIN_S)
    assert {"tls"} == {heard.reason for heard in node.heard}
    assert {0: [b"before", b"after", b"refused"]} == await arrived(secured.plain, topic)
