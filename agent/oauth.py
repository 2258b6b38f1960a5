"""Tokens for OAUTHBEARER: out of a file that something else keeps fresh, or from an endpoint.

The endpoint is asked by the client credentials grant (RFC 6749, section 4.4) over HTTPS. Over
asyncio and not in a thread: a thread that an endpoint holds up could not be stopped.
"""

import asyncio
import base64
import io
import logging
import random
import re
import ssl
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec

from agent.answers import HandshakeFailed
from agent.clock import Clock
from agent.errors import ConfigError
from agent.regular import problem
from agent.secret_files import SecretFile, SecretMissing
from agent.telemetry import event

log = logging.getLogger(__name__)

FETCH_S = 10.0
AGAIN_S = 1.0
"""For so long a failure is the answer to whoever asks: one connect asks once for each broker."""
LIFETIME_S = 300.0
"""Of a token whose endpoint does not say."""
ANSWER_BYTES_MAX = 256 << 10
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750, section 2.1: anything else could end the message that it is put into."""
ERROR_CODE = re.compile(r"[a-z_]{1,64}")


class Tokens(Protocol):
    async def token(self) -> str:
        """Return one that is good now. Raises ``HandshakeFailed``; bounded in time."""

    def read(self) -> None:
        """Read the files that it takes. Raises ``ConfigError``."""

    def refused(self) -> None:
        """Note that a broker did not take it."""


class FileTokens:
    """Whatever the file holds by then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = SecretFile(path)

    async def token(self) -> str:
        token = secret_of(self._file)
        if not TOKEN.fullmatch(token):
            raise HandshakeFailed("authentication", f"{self._path}: not a bearer token")
        return token

    def read(self) -> None:
        key = "kafka.sasl.token_file"
        if not TOKEN.fullmatch(read_secret(self._file, key)):
            raise ConfigError(key, f"{self._path}: not a bearer token")

    def refused(self) -> None:
        pass


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    ca_file: Path | None
    client_id: str
    client_secret: SecretFile
    scope: str | None


class EndpointTokens:
    """One token for all connections. Asked for anew some time before it expires."""

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._asking = asyncio.Lock()
        self._token: str | None = None
        self._refresh_s = self._expires_s = 0.0
        self._failed: HandshakeFailed | None = None
        self._again_s = 0.0

    async def token(self) -> str:
        async with self._asking:
            now_s = self._clock.monotonic()
            if self._token is not None and now_s < self._refresh_s:
                return self._token
            try:
                return await self._fresh(now_s)
            except HandshakeFailed as failed:
                if self._token is None or now_s >= self._expires_s:
                    raise
                event(log, logging.WARNING, "token.not_refreshed", detail=str(failed))
                return self._token

    def read(self) -> None:
        read_secret(self._endpoint.client_secret, "kafka.sasl.client_secret_file")
        try:
            ssl.create_default_context(cafile=self._endpoint.ca_file)
        except OSError as error:  # ssl.SSLError too
            raise ConfigError(
                "kafka.sasl.token_ca_file", f"{self._endpoint.ca_file}: {no_certificates(error)}"
            ) from None

    def refused(self) -> None:
        self._token = None

    async def _fresh(self, now_s: float) -> str:
        if self._failed is not None and now_s < self._again_s:
            raise HandshakeFailed(self._failed.reason, self._failed.detail)
        try:
            token, lifetime_s = await _granted(self._endpoint)
        except HandshakeFailed as failed:
            self._failed, self._again_s = failed, now_s + AGAIN_S
            raise
        # Spread: nodes that got theirs together shall not ask for the next together.
        self._refresh_s = now_s + lifetime_s * random.uniform(0.6, 0.9)  # noqa: S311
        self._token, self._expires_s, self._failed = token, now_s + lifetime_s, None
        return token


async def _granted(endpoint: Endpoint) -> tuple[str, float]:
    """Return a token and for how many seconds it is good."""
    secret = secret_of(endpoint.client_secret)
    try:
        async with asyncio.timeout(FETCH_S):
            status, body = await _post(endpoint, secret)
        answer = msgspec.json.decode(body)
    except (OSError, HTTPException, msgspec.DecodeError, ValueError) as error:
        wrong = _problem(error)
        raise HandshakeFailed("authentication", f"{endpoint.url}: {wrong}") from None
    fields = answer if isinstance(answer, dict) else {}
    token, lifetime_s = fields.get("access_token"), fields.get("expires_in", LIFETIME_S)
    if status != 200:  # noqa: PLR2004 - OK
        code = fields.get("error")
        said = f" {code}" if isinstance(code, str) and ERROR_CODE.fullmatch(code) else ""
        raise HandshakeFailed("authentication", f"{endpoint.url}: HTTP {status}{said}")
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise HandshakeFailed("authentication", f"{endpoint.url}: an answer without a token")
    good = isinstance(lifetime_s, int | float) and lifetime_s > 0
    return token, float(lifetime_s if good else LIFETIME_S)


def _problem(error: Exception) -> str:
    """Say what went wrong without quoting an answer: it may hold a token."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return f"no answer within {FETCH_S:.0f} s"
    return "not JSON" if isinstance(error, msgspec.DecodeError) else type(error).__name__


async def _post(endpoint: Endpoint, secret: str) -> tuple[int, bytes]:
    """Ask once; return the status and the body. Raises ``OSError`` or ``HTTPException``."""
    context = ssl.create_default_context(cafile=endpoint.ca_file)
    at = urlsplit(endpoint.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port or 443, ssl=context)
    try:
        writer.write(_request(endpoint, secret))
        raw = b""
        while len(raw) <= ANSWER_BYTES_MAX and (more := await reader.read(1 << 16)):
            raw += more
    finally:
        writer.transport.abort()
    response = HTTPResponse(cast(Any, _Received(raw)))
    response.begin()
    return response.status, response.read()


def _request(endpoint: Endpoint, secret: str) -> bytes:
    at = urlsplit(endpoint.url)
    form = {"grant_type": "client_credentials"}
    body = urlencode(form if endpoint.scope is None else {**form, "scope": endpoint.scope})
    user = f"{quote_plus(endpoint.client_id)}:{quote_plus(secret)}"  # RFC 6749, section 2.3.1
    head = (
        f"POST {at.path or '/'}{'?' + at.query if at.query else ''} HTTP/1.1",
        f"Host: {at.netloc}",
        f"Authorization: Basic {base64.b64encode(user.encode()).decode()}",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
        "Accept: application/json",
        "Connection: close",
    )
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


class _Received:
    """What the standard library's parser takes for a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def secret_of(file: SecretFile) -> str:
    try:
        return file.text()
    except SecretMissing as missing:
        raise HandshakeFailed("authentication", str(missing)) from None


def read_secret(file: SecretFile, key: str) -> str:
    """Return what ``file``, the value of ``key``, holds now. Raises ``ConfigError``."""
    try:
        return file.read()
    except SecretMissing as missing:
        raise ConfigError(key, str(missing)) from None


def no_certificates(error: OSError) -> str:
    """Say why a file of CAs is none."""
    if isinstance(error, ssl.SSLError):
        return f"no certificates ({error.reason})"
    return problem(error)
