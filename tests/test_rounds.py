"""What scans and the watcher complain of, once; and that scans find all where hints fail."""

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from agent import inotify, watcher
from agent.clock import SystemClock
from agent.core.discovery import FileKey, Scan, Seen
from agent.demo.broker import EmbeddedKafka
from agent.intake import Intake
from agent.rounds import Rounds
from agent.scanner import Scanner
from tests.patience import WITHIN_S
from tests.running import Agent, feedback, mock_topics
from tests.running import append as append_lines
from tests.test_watcher import QUEUED_MAX

INCLUDE = ("*.jsonl",)


class Taker:
    """As much of an intake as rounds need: it knows what it was handed."""

    def __init__(self) -> None:
        self.known: dict[FileKey, Seen] = {}
        self.remembered: Container[int] = ()
        self.rest_s = 0.005
        self.sizes: dict[str, int] = {}
        self.hinted: list[str | None] = []
        self.rounds: Rounds
        self._taken = asyncio.Event()

    async def take_in(self, scan: Scan) -> None:
        self.known |= {seen.key: seen for seen in scan.files}
        self.sizes = {seen.path: seen.size for seen in scan.files}
        self._taken.set()

    def hint(self, path: str | None) -> None:
        self.hinted.append(path)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds`` after some scan."""
        async with asyncio.timeout(WITHIN_S):
            while not holds():
                self._taken.clear()
                await self._taken.wait()

    async def scans(self, count: int) -> None:
        for _ in range(count):
            self._taken.clear()
            async with asyncio.timeout(WITHIN_S):
                await self._taken.wait()


@asynccontextmanager
async def rounds(root: Path, interval_s: float = 60.0, **limits: Any) -> AsyncIterator[Taker]:
    taker = Taker()
    with ThreadPoolExecutor(1) as executor:
        running = taker.rounds = Rounds(
            root,
            Scanner(root, INCLUDE, **limits),
            cast("Intake", taker),
            executor,
            interval_s=interval_s,
            clock=SystemClock(),
        )
        task = asyncio.create_task(running.run())
        await taker.scans(1)
        try:
            yield taker
        finally:
            task.cancel()
            await asyncio.wait({task})
            running.close()


def said(caplog: pytest.LogCaptureFixture, *names: str) -> list[dict[str, object]]:
    """Return what was logged under ``names``, each with its name."""
    return [
        {"event": record.getMessage(), **record.__dict__["fields"]}
        for record in caplog.records
        if record.getMessage() in names
    ]


def watching(caplog: pytest.LogCaptureFixture) -> list[str]:
    entries = said(caplog, "watcher.degraded", "watcher.restored")
    return [str(entry.get("problem", "restored")) for entry in entries]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # noqa: ASYNC110 - a log and a list have no event
            await asyncio.sleep(0.01)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("agent.rounds.SCAN_BLIND_S", 0.05)
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "a.jsonl").touch()
    return tmp_path


async def reads_by_polling(root: Path, taker: Taker) -> None:
    """Assert that growth and a new file in a new directory are found without any hint."""
    (root / "later").mkdir()
    for path in ("acme/a.jsonl", "later/b.jsonl"):
        append(root / path)
    await taker.until(lambda: {"acme/a.jsonl": 3, "later/b.jsonl": 3} == taker.sizes)


FULL = {
    "instances_exhausted": ("opened", errno.EMFILE),
    "watches_exhausted": ("add_watch", errno.ENOSPC),
    "unsupported": ("opened", errno.ENOSYS),
}


@pytest.mark.parametrize("problem", FULL)
async def test_without_hints_scans_find_everything_and_it_is_said_once(
    root: Path, problem: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once that it is over, when hints have come again."""
    caplog.set_level("INFO")
    call, code = FULL[problem]

    def full(*_: object) -> int:
        raise OSError(code, "full")

    with monkeypatch.context() as patch:
        patch.setattr(inotify, call, full)
        async with rounds(root) as taker:
            await reads_by_polling(root, taker)
            await taker.scans(3)
            assert [problem] == watching(caplog)
            patch.undo()
            await until(lambda: len(watching(caplog)) > 1)
            append(root / "acme" / "a.jsonl")
            await until(lambda: "acme/a.jsonl" in taker.hinted)

    assert [problem, "restored"] == watching(caplog)


async def test_directories_that_have_no_watch_are_said_and_watched_once_there_is_room(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    add = inotify.add_watch
    full = True

    def narrow(fd: int, directory: Path, mask: int) -> int:
        if full and directory.name == "later":
            raise OSError(errno.ENOSPC, "full")
        return add(fd, directory, mask)

    monkeypatch.setattr(inotify, "add_watch", narrow)
    async with rounds(root) as taker:
        await reads_by_polling(root, taker)
        await taker.scans(3)
        assert ["watches_exhausted"] == watching(caplog)
        full = False
        await until(lambda: len(watching(caplog)) > 1)
        append(root / "later" / "b.jsonl")
        await until(lambda: "later/b.jsonl" in taker.hinted)

    assert ["watches_exhausted", "restored"] == watching(caplog)


async def test_where_others_write_unnoticed_scans_come_often_and_it_is_said_once(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system: events of this host come, those of others never."""
    monkeypatch.setattr(inotify, "is_remote", lambda _: True)
    async with rounds(root) as taker:
        await reads_by_polling(root, taker)
        await taker.scans(3)

    (entry,) = said(caplog, "watcher.degraded")
    assert ("remote_filesystem", 0.05) == (entry["problem"], entry["scan_s"])


async def test_an_overflow_is_said_once_however_often_it_comes(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop stands still while more is written than the kernel's queue holds, twice."""
    caplog.set_level("INFO")
    monkeypatch.setattr(watcher, "OVERFLOW_QUIET_S", 3600.0)
    names = [root / "acme" / name for name in ("a.jsonl", "b.jsonl")]
    async with rounds(root) as taker:
        await taker.scans(1)  # both directories are watched
        two = [os.open(name, os.O_WRONLY | os.O_CREAT) for name in names]
        for flood in range(1, 3):
            for turn in range(QUEUED_MAX + 10):  # in turn: equal neighbours are merged
                os.write(two[turn % 2], b"x")
            size = flood * (QUEUED_MAX + 10) // 2
            await taker.until(lambda size=size: {size} == {*taker.sizes.values()})  # type: ignore[misc]
        for fd in two:
            os.close(fd)
        assert None in taker.hinted
        assert ["queue_overflow"] == watching(caplog)
        taker.rounds._watcher._overflow_until_s = 0.0  # an hour later
        await taker.until(lambda: "restored" in watching(caplog))

    assert ["queue_overflow", "restored"] == watching(caplog)


async def test_a_tree_that_never_rests_is_not_scanned_without_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes and removes names all the time gets a share of the scans' time, not all of it:
    a scan waits several times as long as the last one took."""
    took_s = 0.2
    walk = Scanner.scan
    starts: list[float] = []

    def slow(self: Scanner, *known: Any) -> Scan:
        starts.append(SystemClock().monotonic())
        found = walk(self, *known)
        while SystemClock().monotonic() < starts[-1] + took_s:
            append(root / "acme" / "a.jsonl")
            (root / "acme" / "n.jsonl").touch()
            (root / "acme" / "n.jsonl").unlink()
        return found

    monkeypatch.setattr(Scanner, "scan", slow)
    async with rounds(root) as taker:
        await taker.scans(2)

    assert all(later - one >= 4 * took_s for one, later in pairwise(starts))


# ---- a real agent, out of watches


CONFINED = ["unshare", "--user", "--map-root-user", "sh", "-c"]
WATCHES_MAX = "/proc/sys/user/max_inotify_watches"


def set_watches_max(pid: int, count: int) -> None:
    """Set the limit of the user namespace that ``pid`` lives in."""
    inside = ["nsenter", "--target", str(pid), "--user", "--preserve-credentials", "--"]
    subprocess.run([*inside, "sh", "-c", f"echo {count} >{WATCHES_MAX}"], check=True)


def test_an_agent_out_of_watches_reads_all_the_same(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """The kernel's own limit, in a namespace of its own; then it is raised."""
    set_limit = f"echo 3 >{WATCHES_MAX}"
    if subprocess.run([*CONFINED, set_limit], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces")
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        agent._prefix = [*CONFINED, f'{set_limit} && exec "$@"', "sh"]
        for n in range(10):
            append_lines(agent.root / f"c{n}/a.jsonl", [feedback(n)])
        agent.start()
        agent.until_delivered(10)
        for n in range(10):
            append_lines(agent.root / f"c{n}/a.jsonl", [feedback(10 + n)])
        agent.until_delivered(20)
        (entry,) = agent.log_entries("watcher.degraded")
        assert "watches_exhausted" == entry["problem"] == agent.status()["watcher"]

        assert agent._process is not None
        set_watches_max(agent._process.pid, 1000)
        agent.until(lambda: bool(agent.log_entries("watcher.restored")), "watcher.restored")
        assert agent.status()["watcher"] is None
        append_lines(agent.root / "c9/a.jsonl", [feedback(20)])
        agent.until_delivered(21)
        assert 0 == agent.stop()
        said = [entry["event"] for entry in agent.log_entries()]
        assert 1 == said.count("watcher.degraded") == said.count("watcher.restored")
