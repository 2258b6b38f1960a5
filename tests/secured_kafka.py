"""A real Kafka with a listener of every kind, its certificates, its users and its ACLs."""

import asyncio
import base64
import fcntl
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from agent.demo.scene import Topics
from tests import real_kafka, signed_tokens

HOST = "127.0.0.1"
USER, ROTATED, PASSWORD = "shipper", "rotated", "correct-horse-1"
OUTSIDER, NOBODY = "outsider", "nobody"
LISTENERS = {
    "TLS": "SSL",
    "MTLS": "SSL",
    "EXPIRED": "SSL",
    "OTHER": "SSL",
    "SASL": "SASL_SSL",
    "JWT": "SASL_SSL",
}
REAUTH_MS = 2000
MODULE = "org.apache.kafka.common.security"
# kinds of resources, permissions and operations of an ACL
TOPIC, CLUSTER, LITERAL = 2, 4, 3
DENY, ALLOW = 2, 3
ALL, WRITE, DESCRIBE, IDEMPOTENT_WRITE = 2, 4, 8, 12


class Secured(NamedTuple):
    """One cluster. ``plain`` is where everybody may do everything, for the tests themselves."""

    run: Path
    plain: str
    addresses: dict[str, str]

    @property
    def ca(self) -> Path:
        return self.run / "ca.pem"

    @property
    def cas(self) -> "Authorities":
        return Authorities(self.run)

    def topics(self) -> Topics:
        """Make two topics of a new name."""
        name = f"test-{uuid4().hex}"
        for topic in (name, f"{name}-dlq"):
            asyncio.run(real_kafka.create_topic(self.plain, topic, 3))
        return Topics(self.plain, name, f"{name}-dlq")

    def kafka(self, listener: str, topics: Topics, **sections: Any) -> dict[str, Any]:
        """Return the section ``kafka`` of an agent that comes in by ``listener``."""
        tls = {"enabled": True, "ca_file": str(self.ca), **sections.pop("tls", {})}
        return {
            "bootstrap_servers": self.addresses[listener],
            "topic": topics.events,
            "request_timeout_s": 30,
            "tls": tls,
            **sections,
        }

    def set_password(self, user: str, password: str) -> None:
        real_kafka.run_script(self.run, "scram", f"{user}={password}").check_returncode()

    @contextmanager
    def certificate(self, listener: str, file: Path) -> Iterator[None]:
        """Let a listener present another certificate until the end of the block.

        One block at a time, of all workers' tests: who sets one thing unsets the others.
        """
        key = f"listener.name.{listener.lower()}.ssl.keystore.location"
        with (self.run / "configured").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            asyncio.run(_configure(self.plain, {key: str(file)}))
            try:
                yield
            finally:
                asyncio.run(_configure(self.plain, {}))

    def allow(self, topic: str, user: str, *operations: int) -> None:
        """Once a topic has an ACL, nobody may use it who has none."""
        acls = [(TOPIC, topic, LITERAL, f"User:{user}", "*", o, ALLOW) for o in operations]
        asyncio.run(_create(self.plain, acls))

    def shut_out(self, user: str) -> None:
        """Let ``user`` have no producer id; to write to some topic by an ACL is one way to it.

        Whether somebody may write to any topic, brokers ask first of one that is named "hardcode".
        """
        cluster = CLUSTER, "kafka-cluster", LITERAL
        everybody = (*cluster, "User:*", "*", ALL, ALLOW)  # or the next one is for all others, too
        him = (*cluster, f"User:{user}", "*", IDEMPOTENT_WRITE, DENY)
        nowhere = (TOPIC, "hardcode", LITERAL, f"User:{user}", "*", WRITE, DENY)
        asyncio.run(_create(self.plain, [everybody, him, nowhere]))


async def _configure(bootstrap: str, configs: dict[str, str]) -> None:
    """Set what the broker takes while it runs, and nothing else."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        broker = ConfigResource(ConfigResourceType.BROKER, "1", configs)
        for answer in await admin.alter_configs([broker]):
            assert all(code == 0 for code, *_ in answer.resources), answer
    finally:
        await admin.close()


async def _create(bootstrap: str, acls: Iterable[tuple[int, str, int, str, str, int, int]]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        for acl in acls:
            answer = await admin._send_request(CreateAclsRequest(*acl))
            assert 0 == answer.creation_responses[0][0], answer
    finally:
        await admin.close()


class Authorities:
    """Two CAs that live in files: the one that is trusted, and another."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def make(self) -> None:
        for name in ("ca", "stranger"):
            ca = trustme.CA()
            ca.cert_pem.write_to_path(self._run / f"{name}.pem")
            ca.private_key_pem.write_to_path(self._run / f"{name}.key")

    def issue(self, into: Path, name: str, *, ca: str = "ca", expired: bool = False) -> Path:
        """Write a key and its chain into one file, replacing what is there at once."""
        made = trustme.CA.from_pem(
            *((self._run / f"{ca}{s}").read_bytes() for s in (".pem", ".key"))
        )
        now = datetime.now(UTC)  # noqa: TID251 - certificates are about the time of day
        leaf = made.issue_cert(
            name,
            common_name=name,
            not_before=now - timedelta(days=9),
            not_after=now + timedelta(days=-1 if expired else 9),
        )
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        replace(into, pem + b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return into


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another at once, as Kubernetes does."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.chmod(0o600)
    fresh.replace(path)


def start(run: Path) -> Secured:
    """Start it in ``run``, or find it running. One at a time of all who call."""
    run.mkdir(exist_ok=True)
    with (run / "made").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "cluster.json").exists():
            _certificates(run)
            signed_tokens.make(run)
        users = [f"--scram={user}={PASSWORD}" for user in (USER, ROTATED, OUTSIDER, NOBODY)]
        arguments = [f"--listener={name}={protocol}" for name, protocol in LISTENERS.items()]
        arguments += [f"--set={key}={value}" for key, value in _settings(run).items()]
        trusted = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={signed_tokens.keys(run)}"
        done = real_kafka.run_script(run, "start", *users, *arguments, java_options=trusted)
    assert 0 == done.returncode, done.stderr
    said = dict(line.split("=", 1) for line in done.stdout.splitlines())
    addresses = {name: said[f"{real_kafka.ADDRESS}_{name}"] for name in LISTENERS}
    return Secured(run, said[real_kafka.ADDRESS], addresses)


def _certificates(run: Path) -> None:
    cas = Authorities(run)
    cas.make()
    cas.issue(run / "broker.pem", HOST)
    cas.issue(run / "expired.pem", HOST, expired=True)
    cas.issue(run / "other.pem", "kafka.example")


def _settings(run: Path) -> dict[str, str]:
    plain = " ".join([f"{MODULE}.plain.PlainLoginModule required", f'user_{USER}="{PASSWORD}";'])
    scram = f"{MODULE}.scram.ScramLoginModule required;"
    mechanisms = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
    bearer = (
        f'{MODULE}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="b";'
    )
    sasl = "listener.name.sasl"
    return {
        "log.retention.ms": "-1",  # as in real_kafka.start
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(run / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(run / "ca.pem"),
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.expired.ssl.keystore.location": str(run / "expired.pem"),
        "listener.name.other.ssl.keystore.location": str(run / "other.pem"),
        **{
            f"listener.name.{listener}.ssl.{key}": value
            for listener in ("expired", "other")
            for key, value in (
                ("keystore.type", "PEM"),
                ("allow.dn.changes", "true"),
                ("allow.san.changes", "true"),
            )
        },
        f"{sasl}.sasl.enabled.mechanisms": ",".join(mechanisms),
        f"{sasl}.plain.sasl.jaas.config": plain,
        f"{sasl}.scram-sha-256.sasl.jaas.config": scram,
        f"{sasl}.scram-sha-512.sasl.jaas.config": scram,
        f"{sasl}.oauthbearer.sasl.jaas.config": bearer,
        f"{sasl}.scram-sha-256.connections.max.reauth.ms": str(REAUTH_MS),
        f"{sasl}.oauthbearer.connections.max.reauth.ms": str(REAUTH_MS),
        **_of_signed_tokens(run),
        "connection.failed.authentication.delay.ms": "100",
    }


def _of_signed_tokens(run: Path) -> dict[str, str]:
    """Return what the listener JWT asks of a token.

    Without the validator's name Kafka 4.1 takes one that is for clients and checks no signature.
    """
    listener, of_all = "listener.name.jwt", "sasl.oauthbearer"
    handler = f"{MODULE}.oauthbearer.OAuthBearerValidatorCallbackHandler"
    login = f"{MODULE}.oauthbearer.OAuthBearerLoginModule required;"
    return {
        f"{listener}.sasl.enabled.mechanisms": "OAUTHBEARER",
        f"{listener}.oauthbearer.sasl.jaas.config": login,
        f"{listener}.oauthbearer.sasl.server.callback.handler.class": handler,
        f"{listener}.oauthbearer.connections.max.reauth.ms": str(REAUTH_MS),
        f"{of_all}.jwt.validator.class": f"{MODULE}.oauthbearer.BrokerJwtValidator",
        f"{of_all}.jwks.endpoint.url": signed_tokens.keys(run),
        f"{of_all}.expected.issuer": signed_tokens.ISSUER,
        f"{of_all}.expected.audience": signed_tokens.AUDIENCE,
        f"{of_all}.clock.skew.seconds": "0",
    }


def bearer_token(lifetime_s: float, user: str = USER) -> str:
    """Return an unsecured JWS, which Kafka's own validator for tests takes while it is good."""
    now_s = time.time()  # noqa: TID251 - the broker compares it with the time of day
    parts: tuple[dict[str, object], ...] = (
        {"alg": "none"},
        {"sub": user, "iat": now_s - 1, "exp": now_s + lifetime_s},
    )
    return ".".join([*(_encoded(part) for part in parts), ""])


def _encoded(part: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
