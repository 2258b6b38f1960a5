"""The control socket, both ends, on a real socket."""

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.asking import ask
from agent.control import REQUEST_BYTES_MAX, Answer, Asker, Control, Fields
from agent.control_wire import NAME
from agent.errors import AgentError, NotRunning, StoreError
from tests.patience import WITHIN_S

PONG = b'{"version":1,"ask":"count","with":{"to":1}}\n'


async def count(fields: Fields, asker: Asker) -> AsyncIterator[object]:
    assert (os.getpid(), os.getuid()) == asker
    for number in range(fields["to"]):
        yield number


async def refuse(fields: Fields, _asker: Asker) -> AsyncIterator[object]:
    yield "begun"
    raise AgentError(f"no: {fields['why']}")


async def stumble(_fields: Fields, _asker: Asker) -> AsyncIterator[object]:
    raise OSError(5, "the disk")
    yield


async def lose_disk(_fields: Fields, _asker: Asker) -> AsyncIterator[object]:
    raise StoreError("fsync")
    yield


ANSWERS: dict[str, Answer] = {
    "count": count, "refuse": refuse, "stumble": stumble, "lose_disk": lose_disk,
}  # fmt: skip


@asynccontextmanager
async def listening(directory: Path) -> AsyncIterator[asyncio.Task[None]]:
    control = Control(directory, ANSWERS)
    with control.listening():
        running = asyncio.create_task(control.run())
        try:
            yield running
        finally:
            running.cancel()
            await asyncio.wait([running])


async def asked(directory: Path, question: str, **fields: object) -> list[Any]:
    return await asyncio.to_thread(lambda: list(ask(directory, question, **fields)))


async def said(directory: Path, request: bytes) -> bytes:
    """Return what is answered to raw bytes."""

    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(directory / NAME))
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    return await asyncio.to_thread(talk)


async def test_an_answer_is_as_many_items_as_there_are(tmp_path: Path) -> None:
    async with listening(tmp_path):
        assert [0, 1, 2] == await asked(tmp_path, "count", to=3)
        assert [] == await asked(tmp_path, "count", to=0)


async def test_what_the_agent_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    async with listening(tmp_path):
        with pytest.raises(AgentError, match="no: because"):
            await asked(tmp_path, "refuse", why="because")


async def test_a_failure_is_told_and_the_next_one_is_served(tmp_path: Path) -> None:
    """Whatever a question runs into, the agent goes on."""
    async with listening(tmp_path):
        with pytest.raises(AgentError, match="log says more"):
            await asked(tmp_path, "stumble")
        with pytest.raises(AgentError, match="KeyError"):
            await asked(tmp_path, "count")
        assert [0] == await asked(tmp_path, "count", to=1)


async def test_a_disk_that_fails_ends_the_process(tmp_path: Path) -> None:
    """After a failed commit later ones claim success: nobody may go on."""
    async with listening(tmp_path) as running:
        with pytest.raises(AgentError, match="ended before"):
            await asked(tmp_path, "lose_disk")
        await asyncio.wait([running], timeout=WITHIN_S)
        with pytest.raises(ExceptionGroup) as raised:
            running.result()
        assert raised.group_contains(StoreError)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b"{}\n", b"an object with version, ask and with"),
        (b"[" * 50_000 + b"\n", b"an object with version"),
        (b'"ask"\n', b"an object with version"),
        (b"\xff\n", b"an object with version"),
        (PONG[:-1], b"one line, with its end"),
        (PONG.replace(b"1", b"2", 1), b"speaks version 1 of the control protocol, not 2"),
        (PONG.replace(b"count", b"sing"), b"does not know 'sing'"),
        (b" " * (REQUEST_BYTES_MAX + 1) + PONG, b"at most 65536 bytes"),
    ],
)
async def test_a_request_that_is_none_is_answered_with_why(
    tmp_path: Path, request_: bytes, why: bytes
) -> None:
    async with listening(tmp_path):
        answer = await said(tmp_path, request_)
        assert why in answer
        assert answer.startswith(b'{"error": ')
        assert b'{"item": 0}\n{"done": true}\n' == await said(tmp_path, PONG)


async def test_only_its_user_may_open_it_and_nothing_is_left_behind(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with listening(tmp_path):
            mode = (tmp_path / NAME).stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert 0o600 == stat.S_IMODE(mode)
    finally:
        os.umask(before)
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - nothing else is running
    with pytest.raises(NotRunning):
        await asked(tmp_path, "count", to=1)


async def test_the_socket_of_a_life_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / NAME))
    with pytest.raises(NotRunning):
        await asked(tmp_path, "count", to=1)
    async with listening(tmp_path):
        assert [0] == await asked(tmp_path, "count", to=1)


async def test_a_command_that_comes_before_anybody_answers_is_answered(tmp_path: Path) -> None:
    """It may be typed as soon as ``agent.started`` is read."""
    control = Control(tmp_path, ANSWERS)
    with control.listening(), socket.socket(socket.AF_UNIX) as early:
        early.connect(str(tmp_path / NAME))
        early.settimeout(WITHIN_S)
        early.sendall(b'{"version": 1, "ask": "count", "with": {"to": 1}}\n')
        running = asyncio.create_task(control.run())
        assert b'{"item": 0}\n' in await asyncio.to_thread(early.recv, 100)
        running.cancel()
        await asyncio.wait([running])


async def test_what_is_no_socket_is_left_alone_and_the_agent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_text("mine")

    control = Control(tmp_path, ANSWERS)
    with control.listening():
        await control.run()

    assert "mine" == (tmp_path / NAME).read_text()
    assert ["control.unavailable"] == [record.getMessage() for record in caplog.records]


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """An address has room for 107 bytes, and a state directory may lie deeper."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with listening(deep):
        assert [0, 1] == await asked(deep, "count", to=2)
        assert (deep / NAME).is_socket()
    assert not (deep / NAME).exists()


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_is_refused_whatever_the_mode_of_the_socket_says(
    open_to_all: Path,
) -> None:
    """The kernel says who asks; a mode that somebody has changed does not."""
    talk = (
        "import socket; s = socket.socket(socket.AF_UNIX); "
        f"s.connect({str(open_to_all / NAME)!r}); print(s.recv(9999).decode())"
    )
    stranger = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-I", "-c", talk]

    def asked_by_stranger() -> subprocess.CompletedProcess[str]:
        return subprocess.run(stranger, capture_output=True, text=True, check=False, cwd="/")

    async with listening(open_to_all):
        refused = await asyncio.to_thread(asked_by_stranger)
        assert "PermissionError" in refused.stderr
        (open_to_all / NAME).chmod(0o666)
        answered = await asyncio.to_thread(asked_by_stranger)
        assert "not uid 65534" in answered.stdout, answered.stderr
        assert "item" not in answered.stdout
