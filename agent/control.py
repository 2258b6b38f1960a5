"""The control socket: what a command may ask of the agent that owns the state directory.

``agent.asking`` is the other end. One request a connection, JSON lines:

    -> {"version": 1, "ask": "explain", "with": {"path": "app/x.jsonl"}}
    <- {"item": ...}                          as often as there is something
    <- {"done": true}, or {"error": "..."}    last

Whoever may connect is the agent's own user or root, by the mode of the socket and by what the
kernel says of the peer. Everything is bounded: bytes of a request, seconds, connections.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agent.control_wire import ANSWER_S, VERSION, address_in, encoded
from agent.errors import AgentError, StoreError
from agent.telemetry import event

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 8
REQUEST_S = 5.0
"""Within which a request must have come."""
MODE = 0o600

_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Asker(NamedTuple):
    """Who asks, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int


Fields = Mapping[str, Any]
Answer = Callable[[Fields, Asker], AsyncIterator[object]]
"""Yields what JSON can hold. Raises ``AgentError`` with what to tell the asker."""


class Control:
    """Answers whoever connects to the socket that ``listening`` opens.

    Only the owner of the state directory's lock may make one: a socket that lies there is stale.
    Where the file system has no sockets the agent goes on without.

    Args:
        answers: By what is asked. ``StoreError`` and a broken invariant end ``run``, and so the
            process; whatever else goes wrong is told to the asker.
    """

    def __init__(self, directory: Path, answers: Mapping[str, Answer]) -> None:
        self._directory = directory
        self._answers = answers
        self._socket: socket.socket | None = None
        self._open: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let commands connect. Those that do before ``run`` wait for it."""
        with contextlib.ExitStack() as keep:
            try:
                address = keep.enter_context(address_in(self._directory))
                self._socket = keep.enter_context(_listening(address))
            except OSError as error:
                event(log, logging.WARNING, "control.unavailable", detail=error.strerror,
                      effect="commands that need the running agent do not work")  # fmt: skip
            else:
                keep.callback(_remove, address)
            yield

    async def run(self) -> None:
        """Answer until cancelled; at once done where nothing can be listened at."""
        if self._socket is None:
            return
        async with asyncio.TaskGroup() as serving:
            server = await asyncio.start_unix_server(
                lambda reader, writer: self._accept(serving, reader, writer),
                sock=self._socket,
                limit=REQUEST_BYTES_MAX,
            )
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                server.close()

    def _accept(
        self, serving: asyncio.TaskGroup, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = serving.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in self._lines(reader, _asker(writer.get_extra_info("socket"))):
                writer.write(encoded(line))
                async with asyncio.timeout(ANSWER_S):
                    await writer.drain()
            writer.close()
            async with asyncio.timeout(ANSWER_S):
                await writer.wait_closed()
        except (TimeoutError, OSError):
            pass  # who asked is gone, or slow; there is nobody to tell
        finally:
            writer.transport.abort()

    async def _lines(
        self, reader: asyncio.StreamReader, asker: Asker
    ) -> AsyncIterator[dict[str, object]]:
        if asker.uid not in {0, os.geteuid()}:
            event(log, logging.WARNING, "control.denied", uid=asker.uid, pid=asker.pid)
            yield {"error": f"only root and the agent's own user may ask, not uid {asker.uid}"}
            return
        try:
            question, fields = await _request(reader)
        except AgentError as error:
            yield {"error": str(error)}
            return
        answer = self._answers.get(question)
        if answer is None:
            yield {"error": f"this agent does not know {question!r}: is it an older version?"}
            return
        try:
            async for item in answer(fields, asker):
                yield {"item": item}
        except (StoreError, AssertionError):
            raise
        except AgentError as error:
            yield {"error": str(error)}
        except Exception as error:
            log.exception("control.failed")
            yield {"error": f"{type(error).__name__}: the agent's log says more"}
        else:
            yield {"done": True}


async def _request(reader: asyncio.StreamReader) -> tuple[str, Fields]:
    try:
        async with asyncio.timeout(REQUEST_S):
            line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise AgentError(f"a request has at most {REQUEST_BYTES_MAX} bytes") from None
    except asyncio.IncompleteReadError:
        raise AgentError("a request is one line, with its end") from None
    said = _parsed(line)
    match said:
        case {"version": version, "ask": str(question), "with": dict(fields)}:
            pass
        case _:
            raise AgentError("a request is an object with version, ask and with")
    if version != VERSION:
        what = f"this agent speaks version {VERSION} of the control protocol, not {version!r}"
        raise AgentError(f"{what}: use the command of the agent's own version")
    return question, fields


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _asker(connection: socket.socket) -> Asker:
    got = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _gid = _PEER.unpack(got)
    return Asker(pid, uid)


def _listening(address: str) -> socket.socket:
    """Return the socket, open to all that may have it. Nobody else may for a moment either."""
    _remove(address)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), MODE)  # before: bind() makes the file with it (unix(7))
        listening.bind(address)
        os.chmod(address, MODE)  # noqa: PTH101 - and whatever the umask was
        listening.listen(CONNECTIONS_MAX)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove(address: str) -> None:
    """Remove a socket; what is none was not made by an agent, and bind() will say so."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(address).st_mode):
            os.unlink(address)  # noqa: PTH108 - an address, in /proc perhaps
