"""The agent's read-only face: a page, /metrics, /healthz, /readyz and /status over HTTP/1.1.

One request a connection, GET or HEAD, nothing to write, so nothing to protect but ourselves:
every request is bounded in bytes and seconds, every connection counted.
"""

import asyncio
import errno
import json
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from agent.errors import ConfigError

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 8192
CONNECTIONS_MAX = 64
TIMEOUT_S = 5.0
JSON, PLAIN, HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"


class Health(NamedTuple):
    ok: bool
    reasons: tuple[str, ...] = ()
    """Constant words for people and alerts; may be there although ``ok`` ("spooling")."""


class Page(NamedTuple):
    """A document, and the Content-Security-Policy to send with it."""

    html: str
    policy: str


class _Request(NamedTuple):
    method: str
    path: str
    accept: str


class _Answer(NamedTuple):
    status: HTTPStatus
    content_type: str
    body: bytes
    more: tuple[str, ...] = ()
    """Header lines beyond the usual ones."""


class Admin:
    """Answers on ``host``:``port`` from ``start()`` to ``close()``; port 0 takes any free one.

    ``health``, ``ready``, ``status`` and ``page`` are called on the event loop for each request:
    they must not block. One that raises costs a 500 and a log line, never the server.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        health: Callable[[], Health],
        ready: Callable[[], Health],
        status: Callable[[], Mapping[str, object]],
        page: Callable[[], Page],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._host = host
        self._port = port
        self._registry = registry
        self._timeout_s = timeout_s
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._routes: dict[str, Callable[[_Request], _Answer]] = {
            "/": lambda _: _html(page()),
            "/metrics": self._metrics,
            "/healthz": lambda _: _verdict(health()),
            "/readyz": lambda _: _verdict(ready()),
            "/status": lambda _: _json(HTTPStatus.OK, status()),
        }

    @property
    def port(self) -> int:
        """The port that is really listened on. Only between ``start()`` and ``close()``."""
        assert self._server is not None, "not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen. Raise ``ConfigError`` where the address or port cannot be had."""
        assert self._server is None, "started twice"
        try:
            self._server = await asyncio.start_server(
                self._accept, self._host, self._port, limit=REQUEST_BYTES_MAX
            )
        except OSError as error:  # gaierror too, whose errno is none of errno's
            raise _unusable(self._host, self._port, error) from None

    async def close(self) -> None:
        """Stop listening and drop what is open. Once closed, closing again does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: asyncio logs an error for each one of its own that close() cancels.
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                writer.write(await self._exchange(reader))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError):
            pass  # a client that is gone or slow; there is nobody to tell
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes:
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _bytes(_text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), head=False)
        except asyncio.IncompleteReadError as torn:
            return _bytes(_text(HTTPStatus.BAD_REQUEST), head=False) if torn.partial else b""
        request = _parsed(raw)
        if request is None:
            return _bytes(_text(HTTPStatus.BAD_REQUEST), head=False)
        return _bytes(self._answer(request), head=request.method == "HEAD")

    def _answer(self, request: _Request) -> _Answer:
        route = self._routes.get(request.path)
        if route is None:
            return _text(HTTPStatus.NOT_FOUND)
        if request.method not in {"GET", "HEAD"}:
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
        try:
            return route(request)
        except Exception:
            log.exception("admin.failed", extra={"fields": {"path": request.path}})
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _metrics(self, request: _Request) -> _Answer:
        encode, content_type = choose_encoder(request.accept)
        return _Answer(HTTPStatus.OK, content_type, encode(self._registry))


def _parsed(raw: bytes) -> _Request | None:
    """Return the request, or None where it is not HTTP/1.x (RFC 9112, 3)."""
    first, *lines = raw.decode("latin-1")[:-4].split("\r\n")
    try:
        method, target, version = first.split(" ")
        path = urlsplit(target).path
    except ValueError:
        return None
    if version not in {"HTTP/1.1", "HTTP/1.0"} or not method.isalpha() or not path:
        return None
    accept = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            return None
        if name.lower() == "accept":
            accept.append(value.strip())
    return _Request(method, path, ",".join(accept))


def _verdict(health: Health) -> _Answer:
    status = HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return _json(status, {"ok": health.ok, "reasons": list(health.reasons)})


def _html(page: Page) -> _Answer:
    policy = f"Content-Security-Policy: {page.policy}"
    return _Answer(
        HTTPStatus.OK, HTML, page.html.encode(), (policy, "Referrer-Policy: no-referrer")
    )


def _json(status: HTTPStatus, body: Mapping[str, object]) -> _Answer:
    # json and not msgspec: it takes a path that is not UTF-8, as an ASCII escape
    return _Answer(status, JSON, json.dumps(body, default=str).encode() + b"\n")


def _text(status: HTTPStatus, *more: str) -> _Answer:
    return _Answer(status, PLAIN, f"{status.value} {status.phrase}\n".encode(), more)


def _bytes(answer: _Answer, *, head: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        *answer.more,
        "Connection: close",
    )
    start = "\r\n".join((*lines, "", "")).encode("latin-1")
    return start if head else start + answer.body


def _unusable(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError("http.port", f"found {port}, already in use; allowed: a free one, or 0")
    if error.errno == errno.EACCES:
        return ConfigError("http.port", f"found {port}, not permitted; allowed: 1024 or more")
    return ConfigError("http.host", f"found {host!r}; allowed: an address of this machine")
