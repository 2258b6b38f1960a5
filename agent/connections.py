"""Connections to brokers: what each one is made with, and why one could not be made.

aiokafka makes them wherever it needs one, with what its client was given at the start, and keeps to
itself why it could not: a wrong password looks like a broker that is away. All of them come
through here: each is made with what the secret files hold by then, a failed handshake is kept
for whoever asks, and nothing but an ``OSError`` or a ``KafkaError`` gets out, for anything else
ends aiokafka's metadata task without a word.
"""

import re
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

import aiokafka.client
import aiokafka.conn
from aiokafka import errors

from agent.answers import HandshakeFailed, handshake_failure

Address = tuple[str, int]
STATUS = re.compile(rb'"status"\s*:\s*"([A-Za-z_ -]{1,64})"')


class Security(Protocol):
    """Who we are to brokers, and how we know them."""

    async def current(self) -> Mapping[str, object]:
        """Return what ``aiokafka.conn.create_conn`` takes for it, as the files have it now.

        Raises ``HandshakeFailed`` where there is nothing to go with. Bounded in time.
        """

    def refused(self) -> None:
        """Note that a broker refused it: the next one gets nothing that was kept from before."""


class Connections:
    """Those of one producer. None for ``security``: neither TLS nor SASL."""

    def __init__(self, security: Security | None) -> None:
        self._security = security
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()
        self._failures: dict[Address, HandshakeFailed] = {}

    def failure(self, address: Address | None = None) -> HandshakeFailed | None:
        """Return why the last try failed, to ``address`` or at all, if in the handshake."""
        if address is not None:
            return self._failures.get(address)
        return next(reversed(self._failures.values()), None)

    def close(self) -> None:
        for connection in list(self._made):
            connection.close()

    async def make(self, host: str, port: int, **given: Any) -> Any:
        self._failures.pop((host, port), None)
        security = {} if self._security is None else await self._current((host, port))
        try:
            connection = await _create(host, port, **{**given, **security})
        except Exception as error:
            failed = handshake_failure(error, f"{host}:{port}")
            if failed is None:
                raise
            if self._security is not None and failed.reason == "authentication":
                self._security.refused()
            self._failures[host, port] = failed
            raise failed from error
        self._made.add(connection)  # one whose maker is cancelled is in nobody's hands
        return connection

    async def _current(self, address: Address) -> Mapping[str, object]:
        assert self._security is not None
        try:
            return await self._security.current()
        except HandshakeFailed as failed:
            self._failures[address] = failed
            raise


_ours: ContextVar[Connections | None] = ContextVar("connections", default=None)


def begin(security: Security | None) -> Connections:
    """Look after what is connected from now on in this context, and in tasks made in it."""
    connections = Connections(security)
    _ours.set(connections)
    return connections


class _BearerAuthenticator(aiokafka.conn.OAuthAuthenticator):  # type: ignore[misc]  # no types
    """A broker says no to a token in an answer without an error code (RFC 7628, section 3.2.2).

    aiokafka does not read it and takes itself to be let in; the next request is not answered.
    """

    async def step(self, payload: bytes | None) -> object:
        if payload:  # nothing at the first step, and after a token that is good
            status = STATUS.search(payload)
            said = status[1].decode() if status else "no reason given"
            raise errors.SaslAuthenticationFailed(f"the token was refused: {said}")
        return await super().step(payload)


aiokafka.conn.OAuthAuthenticator = _BearerAuthenticator

_create = aiokafka.client.create_conn


async def _create_conn(host: str, port: int, **given: Any) -> Any:
    connections = _ours.get()
    if connections is None:  # a consumer in this process looks after its own
        return await _create(host, port, **given)
    return await connections.make(host, port, **given)


aiokafka.client.create_conn = _create_conn
