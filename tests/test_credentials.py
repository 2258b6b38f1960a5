"""Secrets out of files and tokens out of an endpoint, without a broker."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from agent import oauth
from agent.answers import HandshakeFailed, handshake_failure
from agent.config.sections import Sasl, Tls
from agent.credentials import Credentials, Trust
from agent.errors import ConfigError
from agent.secret_files import SECRET_BYTES_MAX, SecretFile, SecretMissing
from tests.fakes import FakeClock
from tests.secured_kafka import HOST, Authorities, replace
from tests.token_endpoint import Endpoint, token_endpoint

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("agent.")]


@pytest.fixture
def cas(tmp_path: Path) -> Authorities:
    made = Authorities(tmp_path)
    made.make()
    return made


@pytest.fixture
def server(cas: Authorities, tmp_path: Path) -> Iterator[Endpoint]:
    with token_endpoint(cas, tmp_path) as serving:
        yield serving


# ---- files


def test_a_secret_is_what_its_file_holds_now(tmp_path: Path) -> None:
    path = tmp_path / "password"
    replace(path, b"one\r\n")
    file = SecretFile(path)
    assert "one" == file.text()
    replace(path, "zw\u00f6lf".encode())
    assert "zw\u00f6lf" == file.text()


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"a\nb", "more than one line"),
        (b"\xff\xfe", "not UTF-8"),
        (b"x" * (SECRET_BYTES_MAX + 1), "more than"),
        (None, "no such file"),
    ],
)
def test_the_last_good_secret_stays_while_its_file_is_bad(
    tmp_path: Path, content: bytes | None, wrong: str
) -> None:
    """What is wrong is said, and never what is there."""
    path = tmp_path / "password"
    replace(path, b"good")
    file = SecretFile(path)
    assert "good" == file.text()
    path.unlink()
    if content is not None:
        replace(path, content)
    assert "good" == file.text()
    for strict in (file.read, SecretFile(path).text):
        with pytest.raises(SecretMissing, match=wrong):
            strict()


def test_a_fifo_in_the_place_of_a_secret_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "password")
    with pytest.raises(SecretMissing, match="not a regular file"):
        SecretFile(tmp_path / "password").text()


def test_a_secret_that_everybody_may_read_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "password"
    path.write_text("good")
    path.chmod(0o644)
    file = SecretFile(path)
    assert ["good", "good"] == [file.text(), file.text()]
    assert ["secret.exposed"] == said(caplog)


# ---- TLS


def test_a_context_checks_names_and_chains_and_speaks_nothing_old(
    cas: Authorities, tmp_path: Path
) -> None:
    for version in ("1.2", "1.3"):
        tls = Tls(enabled=True, ca_file=tmp_path / "ca.pem", min_version=version)
        context = Trust(tls).context()
        assert context.check_hostname
        assert ssl.CERT_REQUIRED is context.verify_mode
        assert f"TLSv1_{version[-1]}" == context.minimum_version.name


def test_a_context_is_made_anew_when_a_file_is_another(cas: Authorities, tmp_path: Path) -> None:
    """Half of a new pair is no reason to give up the old one."""
    own, key = cas.issue(tmp_path / "own.pem", "agent"), tmp_path / "own.key"
    replace(key, own.read_bytes())
    trust = Trust(Tls(enabled=True, ca_file=tmp_path / "ca.pem", cert_file=own, key_file=key))
    first = trust.context()
    assert first is trust.context()

    cas.issue(own, "agent")
    assert first is trust.context()
    with pytest.raises(ConfigError, match=r"kafka\.tls\.cert_file: .* do not go together"):
        trust.read()

    replace(key, own.read_bytes())
    assert first is not trust.context()


def test_an_encrypted_key_needs_its_password(cas: Authorities, tmp_path: Path) -> None:
    """OpenSSL would ask for it at the terminal."""
    own, key = cas.issue(tmp_path / "own.pem", "agent"), tmp_path / "own.key"
    private = load_pem_private_key(own.read_bytes(), None)
    locked = BestAvailableEncryption(b"open sesame")
    replace(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    replace(tmp_path / "word", b"open sesame")
    ca = tmp_path / "ca.pem"
    with pytest.raises(HandshakeFailed, match="do not go together"):
        Trust(Tls(enabled=True, ca_file=ca, cert_file=own, key_file=key)).context()
    word = tmp_path / "word"
    tls = Tls(enabled=True, ca_file=ca, cert_file=own, key_file=key, key_password_file=word)
    Trust(tls).context()


# ---- tokens


def credentials(server: Endpoint, work: Path, clock: FakeClock) -> Credentials:
    replace(work / "client-secret", server.secret.encode())
    sasl = Sasl(
        mechanism="OAUTHBEARER",
        token_url=f"https://{HOST}:{server.server_address[1]}/token",
        token_ca_file=work / "ca.pem",
        client_id="the agent",
        client_secret_file=work / "client-secret",
    )
    return Credentials(Tls(), sasl, clock)


async def token(given: Credentials) -> str:
    provider = (await given.current())["sasl_oauth_token_provider"]
    found: str = await provider.token()  # type: ignore[attr-defined]  # aiokafka has no types
    return found


async def test_a_token_is_asked_for_anew_before_it_expires(
    server: Endpoint, tmp_path: Path
) -> None:
    clock = FakeClock()
    given = credentials(server, tmp_path, clock)
    server.lifetime_s = 100.0
    first = await token(given)
    clock.advance(59)
    assert first == await token(given)
    clock.advance(32)
    await token(given)
    assert 2 == server.granted


async def test_a_token_is_used_to_its_end_while_the_endpoint_fails(
    server: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    given = credentials(server, tmp_path, clock)
    server.lifetime_s = 100.0
    first = await token(given)
    server.raw = b"HTTP/1.1 503 no\r\n\r\n{}"
    clock.advance(95)
    assert first == await token(given)
    assert ["token.not_refreshed"] == said(caplog)
    clock.advance(6)
    with pytest.raises(HandshakeFailed, match="HTTP 503"):
        await token(given)


async def test_a_token_that_a_broker_refused_is_not_used_again(
    server: Endpoint, tmp_path: Path
) -> None:
    given = credentials(server, tmp_path, FakeClock())
    await token(given)
    given.refused()
    await token(given)
    assert 2 == server.granted


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        (b"", "BadStatusLine|RemoteDisconnected"),
        (OK + b"hunter2", "not JSON"),
        (OK + b"[1]", "an answer without a token"),
        (OK + b'{"access_token": "a\\u0001b"}', "an answer without a token"),
        (b"HTTP/1.1 400 no\r\n\r\n" + b'{"error": "hunter2 hunter2"}', "HTTP 400$"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "IncompleteRead"),
        (OK + b" " * 2 * oauth.ANSWER_BYTES_MAX, "not JSON"),
    ],
)
async def test_whatever_an_endpoint_says_is_bounded_and_never_quoted(
    server: Endpoint, tmp_path: Path, raw: bytes, wrong: str
) -> None:
    server.raw = raw
    with pytest.raises(HandshakeFailed, match=wrong) as failed:
        await token(credentials(server, tmp_path, FakeClock()))
    assert "hunter2" not in str(failed.value)


async def test_an_endpoint_with_a_certificate_of_another_ca_gets_no_secret(
    server: Endpoint, tmp_path: Path
) -> None:
    given = credentials(server, tmp_path, FakeClock())
    replace(tmp_path / "ca.pem", (tmp_path / "stranger.pem").read_bytes())
    with pytest.raises(HandshakeFailed, match="cannot be verified"):
        await token(given)
    assert 0 == server.granted


@pytest.mark.parametrize("error", [ValueError("hunter2"), KeyError("r"), AssertionError()])
def test_an_answer_to_sasl_that_cannot_be_one_has_a_reason(error: Exception) -> None:
    """aiokafka lets out what it stumbles over, and that would end its metadata task."""
    failed = handshake_failure(error, "kafka:9092")
    assert failed is not None
    assert "authentication" == failed.reason
    assert "hunter2" not in str(failed)
