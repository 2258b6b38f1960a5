import asyncio
import ctypes
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent import inotify
from agent.watcher import EVERYTHING, Watcher
from tests.patience import WITHIN_S
from tests.test_opener import descriptors

QUEUED_MAX = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text("ascii"))


class Listener:
    """Keeps what it was told, and insists on the thread it is told on."""

    def __init__(self) -> None:
        self.written: list[str | None] = []
        self.changes = 0
        self._thread = threading.get_ident()
        self._told = asyncio.Event()

    def on_data(self, path: str | None) -> None:
        assert self._thread == threading.get_ident()
        self.written.append(path)
        self._told.set()

    def on_change(self) -> None:
        assert self._thread == threading.get_ident()
        self.changes += 1
        self._told.set()

    async def until(self, satisfied: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not satisfied():
                self._told.clear()
                await self._told.wait()

    async def quiet(self) -> None:
        """Wait until nothing has been said for a while, then forget what was."""
        while True:
            before = self.changes, len(self.written)
            await asyncio.sleep(0.1)
            if before == (self.changes, len(self.written)):
                break
        self.changes = 0
        self.written.clear()


class Watched:
    """A root, its watcher, and who listens."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listener = Listener()
        self.watcher = self.of(root)

    def of(self, root: Path, rest_s: float = 0.005) -> Watcher:
        return Watcher(
            root,
            on_data=self.listener.on_data,
            on_change=self.listener.on_change,
            rest_s=lambda: rest_s,
        )

    def start(self) -> None:
        self.watcher.start(asyncio.get_running_loop())

    def append(self, path: str, data: bytes = b"{}\n") -> None:
        with (self.root / path).open("ab") as file:
            file.write(data)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    root = tmp_path / "root"
    (root / "client").mkdir(parents=True)
    (root / "client" / "a.jsonl").touch()
    watched = Watched(root)
    watched.start()
    assert watched.watcher.problem is None
    watched.watcher.watch_directory("client")
    await watched.listener.quiet()
    yield watched
    watched.watcher.close()


async def test_an_append_names_the_file(watched: Watched) -> None:
    watched.append("client/a.jsonl")
    await watched.listener.until(lambda: bool(watched.listener.written))

    assert ["client/a.jsonl"] == watched.listener.written


async def test_a_truncation_is_a_data_hint(watched: Watched) -> None:
    watched.append("client/a.jsonl")
    await watched.listener.quiet()
    os.truncate(watched.root / "client" / "a.jsonl", 0)
    await watched.listener.until(lambda: "client/a.jsonl" in watched.listener.written)


async def test_a_hot_file_is_named_once_for_all_that_came_meanwhile(tmp_path: Path) -> None:
    """500 writes within one damping: one hint each for two files, not five hundred."""
    watched = Watched(tmp_path)
    watched.watcher = watched.of(tmp_path, rest_s=0.3)
    watched.start()
    await watched.listener.quiet()
    watched.append("seed.jsonl")
    await watched.listener.until(lambda: bool(watched.listener.written))
    for _ in range(250):
        watched.append("a.jsonl")
        watched.append("b.jsonl")
    await watched.listener.until(lambda: "b.jsonl" in watched.listener.written)

    assert ["seed.jsonl", "a.jsonl", "b.jsonl"] == watched.listener.written
    watched.watcher.close()


async def test_a_file_that_is_written_all_the_time_is_not_waited_for_anew(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each rest there is something: then it is read, and the loop has nothing to watch."""
    loop, waits = asyncio.get_running_loop(), 0
    add_reader = loop.add_reader

    def counted(*arguments: Any) -> None:
        nonlocal waits
        waits += 1
        add_reader(*arguments)

    monkeypatch.setattr(loop, "add_reader", counted)
    while len(watched.listener.written) < 20:
        watched.append("client/a.jsonl")
        await asyncio.sleep(0)
    assert 0 == waits

    await watched.listener.quiet()
    assert 1 == waits, "once nothing came, it is waited for"


async def test_after_a_drain_the_next_write_is_heard_again(watched: Watched) -> None:
    for _ in range(3):
        watched.append("client/a.jsonl")
        await watched.listener.until(lambda: bool(watched.listener.written))
        await watched.listener.quiet()


@pytest.mark.parametrize("action", ["create", "move", "delete", "move_out", "move_in"])
async def test_every_change_of_names_asks_for_a_scan(watched: Watched, action: str) -> None:
    file, outside = watched.root / "client" / "a.jsonl", watched.root.parent / "b.jsonl"
    if action == "create":
        (watched.root / "client" / "new.jsonl").touch()
    elif action == "move":
        file.rename(file.with_suffix(".jsonl.1"))
    elif action == "delete":
        file.unlink()
    elif action == "move_out":
        file.rename(outside)
    else:
        outside.touch()
        outside.rename(watched.root / "client" / "b.jsonl")

    await watched.listener.until(lambda: watched.listener.changes > 0)


async def test_a_new_directory_is_watched_at_once(watched: Watched) -> None:
    """With a scan asked for, since what was made before the watch stood has no event."""
    (watched.root / "later" / "deep").mkdir(parents=True)
    await watched.listener.until(lambda: watched.listener.changes > 0)
    watched.watcher.watch_all(["", "client", "later", "later/deep"])  # as that scan does
    await watched.listener.quiet()

    watched.append("later/b.jsonl")
    watched.append("later/deep/c.jsonl")

    wanted = {"later/b.jsonl", "later/deep/c.jsonl"}
    await watched.listener.until(lambda: wanted <= set(watched.listener.written))


async def test_watches_grow_with_what_scans_met_not_with_what_clients_made(tmp_path: Path) -> None:
    """A client may make a million directories; a scan stops at a bound, and so do the watches."""
    for number in range(500):
        (tmp_path / "flood" / f"{number}").mkdir(parents=True)
    watched = Watched(tmp_path)
    watched.start()
    watched.watcher.watch_all(["", "flood", *(f"flood/{n}" for n in range(3))])
    (tmp_path / "flood" / "more").mkdir()
    await watched.listener.quiet()
    watched.watcher.watch_all(["", "flood", "flood/0"])

    assert {"", "flood", "flood/0"} == set(watched.watcher._watched.values())
    assert watched.watcher._lifecycle is not None
    assert 1 == len(watched.watcher._lifecycle._observer._inotify_fd._watch_for_wd)  # type: ignore[attr-defined]
    watched.watcher.close()


async def test_a_moved_directory_hints_under_its_new_name(watched: Watched) -> None:
    (watched.root / "client").rename(watched.root / "moved")
    await watched.listener.until(lambda: watched.listener.changes > 0)
    await watched.listener.quiet()

    watched.append("moved/a.jsonl")
    await watched.listener.until(lambda: bool(watched.listener.written))

    assert {"moved/a.jsonl"} == set(watched.listener.written)


async def test_a_directory_moved_out_of_the_root_is_heard_no_more(watched: Watched) -> None:
    outside = watched.root.parent / "outside"
    (watched.root / "client").rename(outside)
    await watched.listener.until(lambda: watched.listener.changes > 0)
    await watched.listener.quiet()

    (outside / "a.jsonl").write_bytes(b"{}\n")
    watched.append("marker.jsonl")
    await watched.listener.until(lambda: "marker.jsonl" in watched.listener.written)

    assert ["marker.jsonl"] == watched.listener.written


async def test_a_linked_directory_is_not_watched(watched: Watched) -> None:
    outside = watched.root.parent / "outside"
    outside.mkdir()
    (watched.root / "linked").symlink_to(outside, target_is_directory=True)
    watched.watcher.watch_directory("linked")
    await watched.listener.quiet()

    (outside / "x.jsonl").write_bytes(b"{}\n")
    watched.append("marker.jsonl")
    await watched.listener.until(lambda: "marker.jsonl" in watched.listener.written)

    assert ["marker.jsonl"] == watched.listener.written


async def test_names_that_are_not_text_come_through_whole(watched: Watched) -> None:
    for name in (b"a\nb", b"\x1b[2J", b"\xff\xfe"):
        path = f"client/{os.fsdecode(name)}.jsonl"
        watched.append(path)
        await watched.listener.until(partial(watched.listener.written.__contains__, path))


async def test_an_overflowed_queue_is_a_hint_for_everything(watched: Watched) -> None:
    """The kernel keeps ``max_queued_events`` and drops the rest: any file may have grown."""
    two = [os.open(watched.root / "client" / n, os.O_WRONLY | os.O_CREAT) for n in ("x", "y")]
    # The loop does not run meanwhile. Two files in turn, because equal neighbours are merged.
    for turn in range(QUEUED_MAX + 10):
        os.write(two[turn % 2], b"x")
    for fd in two:
        os.close(fd)

    await watched.listener.until(lambda: EVERYTHING in watched.listener.written)
    assert watched.listener.changes > 0
    await watched.listener.quiet()
    watched.append("client/a.jsonl")
    await watched.listener.until(lambda: "client/a.jsonl" in watched.listener.written)


async def test_a_missing_root_is_a_problem_that_a_later_start_solves(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "root")
    before = descriptors()
    watched.start()
    assert "root_missing" == watched.watcher.problem
    assert not watched.watcher.running
    assert before == descriptors()

    watched.root.mkdir()
    watched.start()
    assert watched.watcher.problem is None
    await watched.listener.quiet()
    watched.append("a.jsonl")
    await watched.listener.until(lambda: "a.jsonl" in watched.listener.written)
    watched.watcher.close()


@pytest.mark.parametrize("action", ["delete", "move"])
async def test_a_root_that_leaves_is_a_problem_and_can_come_back(
    tmp_path: Path, action: str
) -> None:
    (tmp_path / "root").mkdir()
    watched = Watched(tmp_path / "root")
    watched.start()
    await watched.listener.quiet()
    if action == "delete":
        watched.root.rmdir()
    else:
        watched.root.rename(tmp_path / "elsewhere")

    await watched.listener.until(lambda: watched.watcher.problem == "root_missing")
    assert not watched.watcher.running

    watched.root.mkdir()
    watched.start()
    await watched.listener.quiet()
    watched.append("a.jsonl")
    await watched.listener.until(lambda: "a.jsonl" in watched.listener.written)
    watched.watcher.close()


@pytest.mark.parametrize(
    ("call", "code", "problem"),
    [
        ("opened", 24, "instances_exhausted"),
        ("add_watch", 28, "watches_exhausted"),
        ("opened", 38, "unsupported"),
    ],
)
async def test_a_limit_of_the_kernel_is_a_problem_and_no_error(
    tmp_path: Path, call: str, code: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE, ENOSPC, ENOSYS: the answers of inotify(7). The limits belong to the whole user."""

    def full(*_: object) -> int:
        raise OSError(code, "full")

    monkeypatch.setattr(inotify, call, full)
    watched, before = Watched(tmp_path), descriptors()
    watched.start()

    assert (problem, False) == (watched.watcher.problem, watched.watcher.running)
    watched.watcher.watch_directory("client")
    assert before == descriptors()


async def test_one_directory_too_many_is_a_problem_and_the_others_go_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(inotify, "add_watch", full)
    watched.watcher.watch_directory("another")

    assert ("watches_exhausted", True) == (watched.watcher.problem, watched.watcher.running)
    watched.append("client/a.jsonl")
    await watched.listener.until(lambda: "client/a.jsonl" in watched.listener.written)


async def test_where_watches_are_short_each_client_has_one_for_its_own_directory(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is of the whole user: who makes thousands of directories must not use it up."""
    add, room = inotify.add_watch, 6  # with that of the root
    for n in range(20):
        (watched.root / f"aggressor/{n}").mkdir(parents=True)
    (watched.root / "victim").mkdir()

    def limited(fd: int, directory: Path, mask: int) -> int:
        known = {watched.root / name for name in watched.watcher._watched.values()}
        if directory not in known and len(known) >= room:
            raise OSError(errno.ENOSPC, "full")
        return add(fd, directory, mask)

    monkeypatch.setattr(inotify, "add_watch", limited)
    aggressors = ["", "client", "aggressor", *(f"aggressor/{n}" for n in range(20))]
    watched.watcher.watch_all(aggressors)
    assert room == len(watched.watcher._watched)
    watched.watcher.watch_all([*aggressors, "victim"])

    assert room == len(watched.watcher._watched)
    assert {"", "client", "aggressor", "victim"} <= {*watched.watcher._watched.values()}
    watched.append("victim/a.jsonl")
    await watched.listener.until(lambda: "victim/a.jsonl" in watched.listener.written)


async def test_close_leaves_no_thread_no_descriptor_and_no_callback(tmp_path: Path) -> None:
    threads, before = {*threading.enumerate()}, descriptors()
    watched = Watched(tmp_path)
    for _ in range(3):
        watched.start()
        watched.append("a.jsonl")
        watched.watcher.close()
        watched.watcher.close()

    assert {*threading.enumerate()} <= threads  # those of other tests may end meanwhile
    assert before == descriptors()
    watched.listener.written.clear()
    watched.listener.changes = 0
    await asyncio.sleep(0.1)
    assert ([], 0) == (watched.listener.written, watched.listener.changes)


async def test_a_callback_may_close_the_watcher(tmp_path: Path) -> None:
    heard: list[str | None] = []

    def closing(path: str | None) -> None:
        heard.append(path)
        watching.close()

    watching = Watcher(tmp_path, on_data=closing, on_change=lambda: None, rest_s=lambda: 0.1)
    watching.start(asyncio.get_running_loop())
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(b"{}\n")
    async with asyncio.timeout(WITHIN_S):
        while not heard:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # for what must not come

    assert ["a.jsonl"] == heard
    assert not watching.running


async def test_idle_costs_nothing(watched: Watched) -> None:
    """No timer, no poll: CPU time of all threads together while nothing happens."""
    used_s: list[float] = []
    while min(used_s, default=1.0) >= 0.01:  # what another thread of the tests does comes once
        assert len(used_s) < 10, used_s
        began_s = time.process_time()
        await asyncio.sleep(1.0)
        used_s.append(time.process_time() - began_s)

    assert watched.watcher.running


async def test_a_file_system_that_others_write_to_asks_for_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inotify(7) says: no events for what happens on other hosts."""
    here = ctypes.create_string_buffer(256)
    assert 0 == ctypes.CDLL(None).statfs(os.fsencode(tmp_path), here)
    magic = int.from_bytes(here.raw[:8], "little") & 0xFFFFFFFF
    monkeypatch.setattr(inotify, "REMOTE", {magic})
    watched = Watched(tmp_path)
    watched.start()

    assert ("remote_filesystem", True) == (watched.watcher.problem, watched.watcher.running)
    watched.watcher.close()


async def test_a_root_behind_a_link_is_watched(tmp_path: Path) -> None:
    """The operator chose it; links below the root are another matter."""
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to("real", target_is_directory=True)
    watched = Watched(tmp_path / "root")
    watched.start()
    await watched.listener.quiet()
    (watched.root / "client").mkdir()
    await watched.listener.until(lambda: watched.listener.changes > 0)
    await watched.listener.quiet()

    watched.append("client/a.jsonl")
    await watched.listener.until(lambda: "client/a.jsonl" in watched.listener.written)
    watched.watcher.close()
