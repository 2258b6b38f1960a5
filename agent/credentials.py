"""Who the agent is to brokers and which brokers it trusts, as the files say it by now.

A secret that changes counts for the next connection. ``agent.reloading`` sees it change, and then
``agent.sink`` replaces what is connected, once nothing is under way. Where a broker ends a session
before that, the same producer connects again, which loses nothing and sends nothing twice.
"""

import ssl
import stat
from pathlib import Path

from aiokafka.abc import AbstractTokenProvider

from agent.answers import HandshakeFailed
from agent.clock import Clock
from agent.config.sections import Sasl, Tls
from agent.errors import ConfigError
from agent.oauth import (
    Endpoint,
    EndpointTokens,
    FileTokens,
    Tokens,
    no_certificates,
    read_secret,
    secret_of,
)
from agent.regular import problem
from agent.reloaded import Files, Reloaded
from agent.secret_files import SecretFile, say_exposed

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Stamp = tuple[tuple[int, int, int], ...]


class Credentials:
    """``connections.Security`` from the configuration; one for all producers."""

    def __init__(self, tls: Tls, sasl: Sasl, clock: Clock) -> None:
        self._tls = tls
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

    def secrets(self) -> Reloaded[None]:
        """Return what connections are made with, to be reloaded; tokens apart.

        It may be missing at first: then there is no connection, which says why.
        """
        tls = self._tls
        of_tls = (tls.ca_file, tls.cert_file, tls.key_file, tls.key_password_file)
        files = Files(*of_tls, self._sasl.password_file)
        return Reloaded("secrets", files, self._read_secrets, value=None)

    def tokens(self) -> Reloaded[None]:
        """Return the same of tokens: they change all the time, and brokers end sessions by them."""
        sasl = self._sasl
        files = Files(sasl.token_file, sasl.client_secret_file, sasl.token_ca_file)
        return Reloaded("tokens", files, self._read_tokens, value=None)

    def read(self) -> None:
        """Read every file that a connection takes. Raises ``ConfigError``."""
        self._read_secrets()
        self._read_tokens()

    def _read_secrets(self) -> None:
        if self._trust is not None:
            self._trust.read()
        if self._password is not None:
            read_secret(self._password, "kafka.sasl.password_file")

    def _read_tokens(self) -> None:
        if self._tokens is not None:
            self._tokens.read()

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
        self._exposed = False

    def context(self) -> ssl.SSLContext:
        """Return it as the files have it, else the last good one. Raises ``HandshakeFailed``."""
        try:
            return self.read()
        except ConfigError as error:
            if self._built is None:
                raise HandshakeFailed("tls", error.detail) from None
            return self._built[1]

    def read(self) -> ssl.SSLContext:
        """Return it as the files have it. Raises ``ConfigError``."""
        stamp = self._stamp()
        if self._built is None or self._built[0] != stamp:
            self._built = stamp, self._build()
        return self._built[1]

    def _build(self) -> ssl.SSLContext:
        tls = self._tls
        try:
            context = ssl.create_default_context(cafile=tls.ca_file)
        except OSError as error:  # ssl.SSLError too
            raise ConfigError(
                "kafka.tls.ca_file", f"{tls.ca_file}: {no_certificates(error)}"
            ) from None
        context.minimum_version = VERSIONS[tls.min_version]
        if tls.cert_file is not None:
            # Without a password OpenSSL would ask for it at the terminal.
            password = (
                ""
                if self._password is None
                else read_secret(self._password, "kafka.tls.key_password_file")
            )
            try:
                context.load_cert_chain(tls.cert_file, tls.key_file, password)
            except OSError as error:
                wrong = (
                    f"do not go together ({error.reason})"
                    if isinstance(error, ssl.SSLError)
                    else problem(error)
                )
                pair = f"{tls.cert_file}, {tls.key_file or 'its key'}"
                raise ConfigError("kafka.tls.cert_file", f"{pair}: {wrong}") from None
        return context

    def _stamp(self) -> Stamp:
        """Return what tells one state of the files from another. Raises ``ConfigError``."""
        keys = ("ca_file", "cert_file", "key_file", "key_password_file")
        paths = ((f"kafka.tls.{key}", getattr(self._tls, key)) for key in keys)
        return tuple(self._one(key, path) for key, path in paths if path is not None)

    def _one(self, key: str, path: Path) -> tuple[int, int, int]:
        try:
            found = path.stat()
        except OSError as error:
            raise ConfigError(key, f"{path}: {problem(error)}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(key, f"{path}: not a regular file")
        secret = path == (self._tls.key_file or self._tls.cert_file)
        if secret and not self._exposed and found.st_mode & stat.S_IROTH:
            self._exposed = True
            say_exposed(path, found.st_mode)
        return found.st_ino, found.st_size, found.st_mtime_ns
