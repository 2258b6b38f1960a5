"""The control socket: what a command may ask of the agent that owns the state directory. Both ends.

One request a connection, JSON lines:

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
from typing import Any, BinaryIO, NamedTuple

from agent.errors import AgentError, NotRunning, StoreError
from agent.telemetry import event

log = logging.getLogger(__name__)

NAME = "control.sock"
VERSION = 1
REQUEST_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 256 * 1024 * 1024
"""Of one item, as the asker reads it: more is no agent."""
CONNECTIONS_MAX = 8
REQUEST_S = 5.0
"""Within which a request must have come."""
ANSWER_S = 60.0
"""Within which the next item must come, or be taken."""
ADDRESS_BYTES_MAX = 107
"""Of ``sun_path``, the NUL at its end left off (unix(7))."""
MODE = 0o600

_PEER = struct.Struct("iII")  # struct ucred: pid, uid, gid
_ASCII = json.JSONEncoder().encode  # and not msgspec: it takes a path that is not UTF-8


class Asker(NamedTuple):
    """Who asks, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int


Fields = Mapping[str, Any]
Answer = Callable[[Fields, Asker], AsyncIterator[object]]
"""Yields what JSON can hold. Raises ``AgentError`` with what to tell the asker."""


class Control:
    """Answers from ``run`` until that is cancelled.

    Only the owner of the state directory's lock may make one: a socket that lies there is stale.
    Where the file system has no sockets the agent goes on without.

    Args:
        answers: By what is asked. ``StoreError`` and a broken invariant end ``run``, and so the
            process; whatever else goes wrong is told to the asker.
    """

    def __init__(self, directory: Path, answers: Mapping[str, Answer]) -> None:
        self._directory = directory
        self._answers = answers
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        with contextlib.ExitStack() as keep:
            try:
                address = keep.enter_context(_address(self._directory))
                listening = keep.enter_context(_listening(address))
            except OSError as error:
                event(log, logging.WARNING, "control.unavailable", detail=error.strerror,
                      effect="commands that need the running agent do not work")  # fmt: skip
                return
            keep.callback(_remove, address)
            async with asyncio.TaskGroup() as serving:
                server = await asyncio.start_unix_server(
                    lambda reader, writer: self._accept(serving, reader, writer),
                    sock=listening,
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
                writer.write(_ASCII(line).encode() + b"\n")
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


def ask(directory: Path, question: str, /, **fields: object) -> Iterator[Any]:
    """Ask the agent that runs over the state directory ``directory``; yield its answer.

    Raises ``NotRunning`` where nobody listens, ``AgentError`` with what the agent says.
    """
    with contextlib.ExitStack() as keep:
        connection = keep.enter_context(_connected(directory))
        request = {"version": VERSION, "ask": question, "with": fields}
        with contextlib.suppress(BrokenPipeError):  # it said why, and did not listen
            connection.sendall(_ASCII(request).encode() + b"\n")
        lines: BinaryIO = keep.enter_context(connection.makefile("rb"))
        while True:
            try:
                line = lines.readline(ANSWER_BYTES_MAX)
            except TimeoutError:
                raise AgentError(f"the agent did not answer within {ANSWER_S:.0f} s") from None
            except ConnectionError:
                line = b""
            if not line.endswith(b"\n"):
                raise AgentError("the agent ended before it had answered: look at its log")
            said = json.loads(line)
            if "error" in said:
                raise AgentError(str(said["error"]))
            if "item" not in said:
                return
            yield said["item"]


def _connected(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_S)
    try:
        with _address(directory) as address:
            connection.connect(address)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise NotRunning(f"no agent answers at {directory / NAME}") from None
    except OSError as error:
        connection.close()
        why = f"{directory / NAME}: {error.strerror}: ask as the agent's own user, or as root"
        raise AgentError(why) from None
    return connection


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
    """Return the socket, bound. Nobody else may have it for a moment either."""
    _remove(address)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), MODE)  # before: bind() makes the file with it (unix(7))
        listening.bind(address)
        os.chmod(address, MODE)  # noqa: PTH101 - and whatever the umask was
    except BaseException:
        listening.close()
        raise
    return listening


def _remove(address: str) -> None:
    """Remove a socket; what is none was not made by an agent, and bind() will say so."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(address).st_mode):
            os.unlink(address)  # noqa: PTH108 - an address, in /proc perhaps


@contextlib.contextmanager
def _address(directory: Path) -> Iterator[str]:
    """Yield by what the socket can be reached, a short way where its own path is too long."""
    path = str(directory / NAME)
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield path
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)
