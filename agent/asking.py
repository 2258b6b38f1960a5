"""Asks a running agent over its control socket; ``agent.control`` is the other end."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from agent.control_wire import ANSWER_S, NAME, VERSION, address_in, encoded
from agent.errors import AgentError, NotRunning

ITEM_BYTES_MAX = 256 * 1024 * 1024
"""More is no agent."""


def ask(directory: Path, question: str, /, **fields: object) -> Iterator[Any]:
    """Ask the agent that runs over the state directory ``directory``; yield its answer.

    Raises ``NotRunning`` where nobody listens, ``AgentError`` with what the agent says.
    """
    with contextlib.ExitStack() as keep:
        connection = keep.enter_context(_connected(directory))
        request = {"version": VERSION, "ask": question, "with": fields}
        with contextlib.suppress(BrokenPipeError):  # it said why, and did not listen
            connection.sendall(encoded(request))
        lines: BinaryIO = keep.enter_context(connection.makefile("rb"))
        while True:
            try:
                line = lines.readline(ITEM_BYTES_MAX)
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
        with address_in(directory) as address:
            connection.connect(address)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        connection.close()
        raise NotRunning(f"no agent answers at {directory / NAME}") from None
    except OSError as error:
        connection.close()
        why = f"{directory / NAME}: {error.strerror}: ask as the agent's own user, or as root"
        raise AgentError(why) from None
    return connection
