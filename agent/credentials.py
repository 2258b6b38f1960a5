"""Who the agent is to brokers and which brokers it trusts, as the files say it by now.

A secret that changes counts for the next connection. What is connected stays: the broker has
accepted it, and to end it would only send a few lines twice. A broker that ends it (a session that
has expired) is met again by the same producer, which loses nothing and sends nothing twice.
"""

import logging
import ssl
import stat
from pathlib import Path

from aiokafka.abc import AbstractTokenProvider

from agent.answers import HandshakeFailed
from agent.clock import Clock
from agent.config.sections import Sasl, Tls
from agent.oauth import Endpoint, EndpointTokens, FileTokens, Tokens, secret_of
from agent.secret_files import SecretFile, SecretMissing, problem, say_exposed
from agent.telemetry import event

log = logging.getLogger(__name__)

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Stamp = tuple[tuple[int, int, int], ...]


class Credentials:
    """``connections.Security`` from the configuration; one for all producers."""

    def __init__(self, tls: Tls, sasl: Sasl, clock: Clock) -> None:
        self._trust = Trust(tls) if tls.enabled else None
        self._sasl = sasl
        self._password = None if sasl.password_file is None else SecretFile(sasl.password_file)
        self._tokens = _tokens(sasl, clock)

    async def current(self) -> dict[str, object]:
        encryption = "PLAINTEXT" if self._trust is None else "SSL"
        given: dict[str, object] = {"security_protocol": encryption}
        if self._trust is not None:
            given["ssl_context"] = self._trust.context()
        if self._sasl.mechanism == "none":
            return given
        given["security_protocol"] = f"SASL_{encryption}"
        given["sasl_mechanism"] = self._sasl.mechanism
        if self._tokens is not None:
            given["sasl_oauth_token_provider"] = _Ready(await self._tokens.token())
        else:
            assert self._password is not None, "checked with the configuration"
            given["sasl_plain_username"] = self._sasl.username
            given["sasl_plain_password"] = secret_of(self._password)
        return given

    def refused(self) -> None:
        if self._tokens is not None:
            self._tokens.refused()


def _tokens(sasl: Sasl, clock: Clock) -> Tokens | None:
    if sasl.token_file is not None:
        return FileTokens(sasl.token_file)
    if sasl.token_url is None:
        return None
    assert sasl.client_id is not None
    assert sasl.client_secret_file is not None
    endpoint = Endpoint(
        url=sasl.token_url,
        ca_file=sasl.token_ca_file,
        client_id=sasl.client_id,
        client_secret=SecretFile(sasl.client_secret_file),
        scope=sasl.scope,
    )
    return EndpointTokens(endpoint, clock)


class _Ready(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """A token that we have already: getting one may fail in ways that aiokafka cannot take."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token


class Trust:
    """The context of TLS, built anew when one of its files is another than before."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._password = (
            None if tls.key_password_file is None else SecretFile(tls.key_password_file)
        )
        self._built: tuple[Stamp, ssl.SSLContext] | None = None
        self._said: str | None = None
        self._exposed = False

    def context(self) -> ssl.SSLContext:
        """Return it as the files have it, else the last good one. Raises ``HandshakeFailed``."""
        try:
            stamp = self._stamp()
            if self._built is None or self._built[0] != stamp:
                changed = self._built is not None
                self._built = stamp, self._build()
                if changed:
                    event(log, logging.INFO, "secret.changed", file=self._tls.cert_file or "CA")
            self._said = None
        except (OSError, ValueError, SecretMissing) as error:
            wrong = str(error)
            if self._built is None:
                raise HandshakeFailed("tls", wrong) from None
            if wrong != self._said:
                event(log, logging.WARNING, "secret.unusable", file="TLS", detail=wrong)
            self._said = wrong
        return self._built[1]

    def _build(self) -> ssl.SSLContext:
        tls = self._tls
        try:
            context = ssl.create_default_context(cafile=tls.ca_file)
        except ssl.SSLError as error:
            raise ValueError(f"{tls.ca_file}: no certificates ({error.reason})") from None
        context.minimum_version = VERSIONS[tls.min_version]
        if tls.cert_file is not None:
            # Without a password OpenSSL would ask for it at the terminal.
            password = "" if self._password is None else self._password.text()
            try:
                context.load_cert_chain(tls.cert_file, tls.key_file, password)
            except ssl.SSLError as error:
                pair = f"{tls.cert_file}, {tls.key_file or 'its key'}"
                raise ValueError(f"{pair}: do not go together ({error.reason})") from None
        return context

    def _stamp(self) -> Stamp:
        """Return what tells one state of the files from another."""
        tls = self._tls
        paths = (tls.ca_file, tls.cert_file, tls.key_file, tls.key_password_file)
        key_file = tls.key_file or tls.cert_file
        return tuple(self._one(p, secret=p == key_file) for p in paths if p is not None)

    def _one(self, path: Path, *, secret: bool) -> tuple[int, int, int]:
        try:
            found = path.stat()
        except OSError as error:
            raise ValueError(f"{path}: {problem(error)}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path}: not a regular file")
        if secret and not self._exposed and found.st_mode & stat.S_IROTH:
            self._exposed = True
            say_exposed(path, found.st_mode)
        return found.st_ino, found.st_size, found.st_mtime_ns
