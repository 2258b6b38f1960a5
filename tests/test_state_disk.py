"""The disk below the state directory fails, the agent dies at a system call, somebody damages the
databases, versions change: nothing is lost, or it is counted, and it says why it ends.

SIGKILL at a system call comes before the kernel does it, from strace. A few points as a rule; 300:

    FEEDBACK_AGENT_SYSCALL_KILLS=300 pytest tests/test_state_disk.py -k system_call
"""

import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import pytest

from agent import database, spool
from agent.core.lines import CHUNK_BYTES
from agent.demo.broker import EmbeddedKafka
from agent.demo.oracle import Verdict
from agent.demo.scene import Topics
from agent.spooler import READ_RECORDS
from tests.patience import WITHIN_S
from tests.running import (
    Agent,
    append,
    assert_each_once,
    feedback,
    mock_topics,
    verdict,
)
from tests.test_queue import edited, fill, tmpfs  # noqa: F401 - a fixture
from tests.test_spool import OLD_INSERT, OLD_SCHEMA

KILLS = int(os.environ.get("FEEDBACK_AGENT_SYSCALL_KILLS", "0"))
KILLS_EACH = 10
"""Of one test: the embedded broker keeps what they send."""

EVENTS_MAX = 100
PAD = "x" * 1500
LINES_READ_MAX = CHUNK_BYTES // len(PAD)
COPIES_LIVE = EVENTS_MAX + LINES_READ_MAX
"""What one crash may send twice."""
COPIES_SPOOLED = COPIES_LIVE + EVENTS_MAX + READ_RECORDS
IMPATIENT: dict[str, Any] = {
    "in_flight": {"events_max": EVENTS_MAX},
    "kafka": {"start_s": 0.2},
    "retry": {"backoff_s": 0.1, "backoff_max_s": 0.3},
    "breaker": {"cooldown_s": 0.3, "ack_age_max_s": 1},
}
PATIENT: dict[str, Any] = {"breaker": {"ack_age_max_s": 60}}
"""No slow machine is taken for an outage, after which more may go twice."""
DATABASES = "checkpoints.db", "spool.db"


@pytest.fixture
def mock(embedded: EmbeddedKafka) -> Topics:
    return mock_topics(embedded)


@pytest.fixture
def strace() -> None:
    """Skip where no process can be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing: scripts/system-packages installs it")
    traced = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False)
    if traced.returncode:
        pytest.skip("strace may trace nothing here: ptrace is not allowed")


class Subject(Agent):
    """An agent that is still to write about: ``lines``, good ones, in one file.

    Attributes:
        written: Lines that were appended.
    """

    def __init__(self, work: Path, topics: Topics, **sections: Mapping[str, object]) -> None:
        super().__init__(work, topics, **{**IMPATIENT, **sections})
        self.state_dir = Path(str(sections.get("agent", {}).get("state_dir", self.state_dir)))
        self.written = 0

    @property
    def dead(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def launch_tampered(self, calls: str, fault: str, only: Path | None = None) -> None:
        """Start a life in which strace does ``fault`` to ``calls``, to those on ``only``.

        ``when=N`` in it counts for each thread by itself.
        """
        inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}"]
        on_path = [] if only is None else ["-P", str(only)]
        self._prefix = ["strace", "-D", "-f", "-qq", "-o", os.devnull, *inject, *on_path]
        try:
            self.launch()
        finally:
            self._prefix = []

    def write(self, count: int, name: str = "acme/a.jsonl") -> None:
        numbers = range(self.written, self.written + count)
        metadata = [{"seq": n, "pad": PAD} for n in numbers]
        append(self.root / name, (feedback(n, metadata=m) for n, m in zip(numbers, metadata)))  # noqa: B905
        self.written += count

    def spooled(self) -> int:
        return sum(int(sink["spooled_records"]) for sink in self.status()["sinks"].values())

    def spool_all(self) -> None:
        """Wait, with Kafka away, until all that is written is spooled, and that is on disk."""
        self.until_committed()

    def deliver_all(self) -> None:
        """Wait until all that is written and all that was spooled is in Kafka."""
        self.until(lambda: self.mode() == "live" and not self.behind_bytes(), "live")
        self.until(lambda: self.spooled() == 0, "nothing is spooled")

    def died_at_start(self) -> bool:
        """Wait until it is dead or has started. Return whether it is dead."""
        deadline_s = time.monotonic() + WITHIN_S
        while not self.dead and not self.log_entries("agent.started"):
            assert time.monotonic() < deadline_s, self.tail()
            time.sleep(0.02)
        return self.dead

    def write_until_dead(self, turns: int = 8, turn: Callable[[int], None] | None = None) -> int:
        """Write on until it ends by itself, else stop it. Return the exit code."""
        if self.died_at_start():
            return self.ended()
        for n in range(turns):
            if self.dead:
                return self.ended()
            if turn is not None:
                turn(n)
            self.write(40)
            time.sleep(0.1)
        return self.stop()

    def one_line(self) -> str:
        """Return what it said on its end: one line for people, and no traceback."""
        said = [line for line in self.log_text().splitlines() if not line.startswith("{")]
        assert 1 == len(said), self.log_text()
        assert "Traceback" not in self.log_text()
        assert said[0].startswith("feedback-agent: error: "), said
        return said[0]

    def last_life(self) -> Verdict:
        """Let it live in peace; return the verdict on everything."""
        self.start()
        self.deliver_all()
        assert 0 == self.stop()
        return verdict(self)


def assert_nothing_lost(found: Verdict, lines: int, copies_max: int) -> None:
    assert found.ok, found.examples
    assert lines == found.lines
    assert found.copies <= copies_max


# ---- a full disk


def on(disk: Path) -> dict[str, Any]:
    return {"agent": {"state_dir": str(disk / "state")}}


def test_a_disk_that_fills_up_ends_it_and_room_brings_it_back(
    mock: Topics,
    tmpfs: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It cannot go on without checkpoints. As long as there is no room, each start says so."""
    with Subject(tmp_path, mock, **on(tmpfs), **PATIENT) as agent:
        agent.write(100)
        agent.start()
        agent.until_delivered(100)
        fill(tmpfs, leave=0)
        assert 74 == agent.write_until_dead(turns=100), agent.log_text()
        assert "full" in agent.one_line()
        agent.launch()
        assert 74 == agent.ended()
        assert "full" in agent.one_line()

        (tmpfs / "others").unlink()
        assert_nothing_lost(agent.last_life(), agent.written, COPIES_LIVE)
        assert not list(agent.state_dir.glob("*.damaged"))


def test_a_disk_that_fills_up_stops_spooling_and_room_lets_it_go_on(
    embedded: EmbeddedKafka,
    mock: Topics,
    tmpfs: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """A share of the disk is left to others, so it does not come to an error."""
    spool_policy = {"bytes_max": 1 << 30}
    with Subject(tmp_path, mock, **on(tmpfs), spool=spool_policy) as agent:
        embedded.broker_down()
        agent.write(300)
        agent.start()
        agent.spool_all()
        fill(tmpfs, leave=1 << 20)
        agent.write(2000)
        full = ["events: spool full (disk_free_min)"]
        agent.until(lambda: agent.not_ready()[:1] == full, "full")
        before = agent.spooled()
        agent.write(100)
        (tmpfs / "others").unlink()
        agent.until(lambda: agent.spooled() > before, "it goes on")
        agent.spool_all()

        embedded.broker_up()
        agent.deliver_all()
        assert 0 == agent.stop()
        assert_each_once(agent, agent.written)


@pytest.mark.parametrize("replaying", [False, True])
def test_a_disk_without_any_room_ends_a_life_of_the_spool(
    embedded: EmbeddedKafka,
    mock: Topics,
    tmpfs: Path,  # noqa: F811
    tmp_path: Path,
    replaying: bool,
) -> None:
    """Where no share is left to others; also when Kafka is back, since to delete is to write."""
    spool_policy = {"bytes_max": 1 << 30, "disk_free_min": 0.0}
    with Subject(tmp_path, mock, **on(tmpfs), spool=spool_policy) as agent:
        embedded.broker_down()
        agent.write(1000)
        agent.start()
        agent.spool_all()
        fill(tmpfs, leave=0)
        if replaying:
            embedded.broker_up()
        assert 74 == agent.write_until_dead(turns=100), agent.log_text()
        assert "full" in agent.one_line()

        (tmpfs / "others").unlink()
        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, COPIES_SPOOLED)
        assert not list(agent.state_dir.glob("*.damaged"))


# ---- a disk that fails


@pytest.mark.parametrize("error", ["EIO", "EROFS"])
@pytest.mark.usefixtures("strace")
def test_checkpoints_that_cannot_be_written_end_it(
    mock: Topics, tmp_path: Path, error: str
) -> None:
    """After a failed write or fsync later commits claim success; no later one may be believed."""
    with Subject(tmp_path, mock, **PATIENT) as agent:
        agent.write(100)
        agent.start()
        agent.until_delivered(100)
        assert 0 == agent.stop()
        path = agent.state_dir / "checkpoints.db-wal"
        agent.launch_tampered("pwrite64", f"error={error}:when=12+", path)
        assert 74 == agent.write_until_dead(turns=100), agent.log_text()
        assert agent.log_entries("agent.started"), "it was to happen later"
        agent.one_line()

        assert_nothing_lost(agent.last_life(), agent.written, COPIES_LIVE)
        assert not list(agent.state_dir.glob("*.damaged"))


@pytest.mark.parametrize(
    ("fault", "replaying"),
    [
        ("fdatasync:error=EIO:when=10+", False),
        ("pwrite64:error=ENOSPC:when=12+", False),
        ("fdatasync:error=EIO:when=4+", True),
    ],
)
@pytest.mark.usefixtures("strace")
def test_a_spool_that_cannot_be_written_ends_it(
    embedded: EmbeddedKafka,
    mock: Topics,
    tmp_path: Path,
    fault: str,
    replaying: bool,
) -> None:
    """Nothing counts as settled that is not on the disk."""
    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.write(3000 if replaying else 100)
        agent.start()
        agent.spool_all()
        assert 0 == agent.stop()
        if replaying:
            embedded.broker_up()
        path = agent.state_dir / "spool.db-wal"
        call, _, error = fault.partition(":")
        agent.launch_tampered(call, error, path)
        assert 74 == agent.write_until_dead(turns=100), agent.log_text()
        assert agent.log_entries("agent.started"), "it was to happen later"
        agent.one_line()

        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, COPIES_SPOOLED)
        assert not list(agent.state_dir.glob("*.damaged"))


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("name", DATABASES)
def test_a_write_error_at_the_very_end_loses_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path, name: str
) -> None:
    """SQLite moves its log into the file when it closes; where it cannot, the log stays."""
    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.write(200)
        calls = "?fsync,fdatasync,pwrite64,ftruncate"
        agent.start()
        agent.spool_all()
        assert 0 == agent.stop()
        agent.launch_tampered(calls, "error=EIO:when=2+", agent.state_dir / name)
        assert agent.write_until_dead() in {0, 74}

        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, COPIES_SPOOLED)


def test_a_read_only_disk_is_one_line_and_74(
    embedded: EmbeddedKafka,
    mock: Topics,
    tmpfs: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with Subject(tmp_path, mock, **on(tmpfs)) as agent:
        embedded.broker_down()
        agent.write(300)
        agent.start()
        agent.spool_all()
        agent.kill()
        subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
        for _ in range(2):
            agent.launch()
            assert 74 == agent.ended()
            assert str(agent.state_dir) in agent.one_line()
        subprocess.run(["mount", "-o", "remount,rw", tmpfs], check=True)

        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, COPIES_SPOOLED)


# ---- SIGKILL at a system call


class Point(NamedTuple):
    """The life ends when one of its threads is about to do the ``nth`` of ``calls``.

    ``on``: of those on that file of the state directory.
    """

    calls: str
    nth: int
    on: str | None = None


UNLINK, RENAME = "?unlink,unlinkat", "?rename,renameat,?renameat2"


def points(quick: list[Point], wanted: int, seed: str) -> list[tuple[Point, ...]]:
    """Return ``quick``, or ``wanted`` ones, in groups for one test each."""
    if not wanted:
        return [tuple(quick)]
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    calls = cycle([("fdatasync", 40), ("pwrite64", 120), ("sendto", 90), ("pwrite64", 30),
                   ("sendto", 25), (UNLINK, 5)])  # fmt: skip
    drawn = [Point(call, chance.randint(1, most)) for call, most in islice(calls, wanted)]
    return [tuple(drawn[n : n + KILLS_EACH]) for n in range(0, wanted, KILLS_EACH)]


def killed(agent: Subject, group: tuple[Point, ...], life: Callable[[], int]) -> int:
    """Kill a life at each point of ``group``. Return how many did not end before it."""
    struck = 0
    for point in group:
        agent.launch_tampered(point.calls, f"signal=KILL:when={point.nth}")
        code = life()
        assert code in {0, -9}, (point, agent.tail())
        struck += code == -9
    assert 2 * struck >= len(group), "the points are too late"
    return struck


LIVE = [Point("fdatasync", 2), Point("pwrite64", 3), Point("pwrite64", 25), Point("sendto", 4),
        Point("sendto", 14), Point(UNLINK, 1)]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("group", points(LIVE, KILLS // 3, "live"))
def test_a_kill_at_a_system_call_loses_nothing(
    mock: Topics, tmp_path: Path, group: tuple[Point, ...]
) -> None:
    with Subject(tmp_path, mock, **PATIENT) as agent:
        struck = killed(agent, group, agent.write_until_dead)

        assert_nothing_lost(agent.last_life(), agent.written, struck * COPIES_LIVE)


SPOOLING = [Point("fdatasync", 3), Point("fdatasync", 9), Point("pwrite64", 20), Point(UNLINK, 2)]


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("strace")
@pytest.mark.long
@pytest.mark.parametrize("group", points(SPOOLING, KILLS // 3, "spooling"))
def test_a_kill_at_a_system_call_while_spooling_loses_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path, group: tuple[Point, ...]
) -> None:
    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.write(50)
        agent.start()
        agent.spool_all()
        agent.kill()
        struck = killed(agent, group, agent.write_until_dead)

        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, (struck + 1) * COPIES_SPOOLED)


REPLAYING = [Point("fdatasync", 6), Point("fdatasync", 12), Point("pwrite64", 12),
             Point("pwrite64", 45), Point("sendto", 20)]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("strace")
@pytest.mark.long
@pytest.mark.parametrize("group", points(REPLAYING, KILLS - 2 * (KILLS // 3), "replaying"))
def test_a_kill_at_a_system_call_while_replaying_loses_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path, group: tuple[Point, ...]
) -> None:
    """Each life begins without Kafka and sees it come back."""

    def life() -> int:
        embedded.broker_down()
        return agent.write_until_dead(14, lambda n: embedded.broker_up() if n == 6 else None)

    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.write(1000)
        agent.start()
        agent.spool_all()
        agent.kill()
        struck = killed(agent, group, life)

        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, (struck + 1) * COPIES_SPOOLED)


PUT_ASIDE = [Point(UNLINK, 1), Point(UNLINK, 5), Point(RENAME, 1), Point("pwrite64", 12),
             Point("openat", 1, "spool.db.unsaved"), Point("openat", 2, "spool.db"),
             Point("fdatasync", 7), Point("pwrite64", 60)]  # fmt: skip


@pytest.mark.long
@pytest.mark.usefixtures("strace")
def test_a_kill_at_a_system_call_while_a_spool_is_saved_loses_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """All of the damaged file can be read: all of it arrives, though the start is cut short.

    The apps have deleted their files by then. What was put aside before has nothing to add.
    """
    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.start()
        for count in (299, 1):
            agent.write(count)
            agent.spool_all()
        assert 0 == agent.stop()
        gone = (agent.root / "acme/a.jsonl").rename(tmp_path / "gone.jsonl")
        path, whole = agent.state_dir / "spool.db", tmp_path / "whole"
        split(path)
        shutil.copytree(agent.state_dir, whole)
        for point in PUT_ASIDE:
            shutil.rmtree(agent.state_dir)
            shutil.copytree(whole, agent.state_dir)
            only = None if point.on is None else agent.state_dir / point.on
            agent.launch_tampered(point.calls, f"signal=KILL:when={point.nth}", only)
            assert agent.died_at_start(), point
            assert -9 == agent.ended(), point
            agent.start()
            assert (0, 300) == (agent.metric("spool_lost_total"), agent.spooled()), point
            agent.kill()

        embedded.broker_up()
        agent.start()
        agent.deliver_all()
        assert 0 == agent.stop()
        gone.rename(agent.root / "acme/a.jsonl")
        assert_each_once(agent, 300)


def split(path: Path) -> None:
    """Leave what the newest row holds to the log alone, and make SQLite find the file malformed.

    Each row is there. Beside it lies what was put aside at an earlier time, and is of no worth. The
    newest is written over, for SQLite would see the damage as soon as it needs another page.
    """
    aside = path.with_name("spool.db.damaged")
    shutil.copy(path, aside)
    changed(aside, "DELETE FROM spooled_events WHERE seq > 0")
    newest = "(SELECT max(seq) FROM spooled_events)"
    changed(
        path,
        f"CREATE TABLE newest AS SELECT * FROM spooled_events WHERE seq = {newest}",  # noqa: S608
        f"UPDATE spooled_events SET payload = zeroblob(length(payload)) WHERE seq = {newest}",  # noqa: S608
    )
    with path.open("r+b") as file:
        file.seek(36)
        file.write((77).to_bytes(4, "big"))  # free pages
    parts = path, wal_of(path)
    with edited(path) as connection:
        connection.execute(
            "UPDATE spooled_events SET payload = newest.payload FROM newest "
            "WHERE spooled_events.seq = newest.seq"
        )
        connection.commit()
        for part in parts:
            shutil.copy(part, part.with_name(part.name + ".kept"))
    for part in parts:
        part.with_name(part.name + ".kept").replace(part)


# ---- databases that somebody damaged between two lives


def flipped(path: Path) -> None:
    """Flip bits, not in the header: a newer version would be one of the things it says then."""
    fold(path)
    chance = random.Random(path.name)  # noqa: S311 - to be repeated, not to be secret
    content = bytearray(path.read_bytes())
    for _ in range(12):
        content[chance.randrange(100, len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def flipped_log(path: Path) -> None:
    wal = wal_of(path)
    content = bytearray(wal.read_bytes())
    content[len(content) // 2] ^= 1
    wal.write_bytes(content)


def truncated(path: Path) -> None:
    fold(path)
    os.truncate(path, path.stat().st_size * 2 // 3)


def without_log(path: Path) -> None:
    wal_of(path).unlink()


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def removed(path: Path) -> None:
    for part in path.parent.glob(path.name + "*"):
        part.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(path.name).randbytes(40_000))  # noqa: S311 - as above


def fold(path: Path) -> None:
    """Move the log into the file."""
    with edited(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


DAMAGES = [
    *(flipped, truncated, emptied),
    *(pytest.param(one, marks=pytest.mark.long) for one in (flipped_log, without_log, removed)),
    pytest.param(garbage, marks=pytest.mark.long),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", DATABASES)
def test_a_damaged_database_never_skips_ahead_and_counts_what_is_lost(
    embedded: EmbeddedKafka,
    mock: Topics,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    """What files still hold and what the spool gives back arrives; the rest is in the metric."""
    with Subject(tmp_path, mock) as agent:
        agent.write(150)
        agent.start()
        agent.until_delivered(150)
        embedded.broker_down()
        agent.write(400)
        append(agent.root / "acme/b.jsonl", [b"bad %d" % n for n in range(30)])
        agent.write(400, "acme/gone.jsonl")
        agent.spool_all()
        agent.kill()
        gone = (agent.root / "acme/gone.jsonl").rename(tmp_path / "gone.jsonl")
        damage(agent.state_dir / name)
        agent.write(100)

        embedded.broker_up()
        agent.start()
        agent.deliver_all()
        lost = agent.metric("spool_lost_total")
        assert 0 == agent.stop()
        gone.rename(agent.root / "acme/gone.jsonl")
        found = verdict(agent)
        wrongs = found.out_of_order, found.altered, found.misjudged, found.foreign
        assert (0, 0, 0, 0) == wrongs, found.examples
        assert (agent.written + 30, lost) == (found.lines, found.lost), found.examples
        if name == "checkpoints.db":
            assert 0 == lost, "the spool is whole"


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_from_the_future_is_refused_and_left_alone(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path, name: str
) -> None:
    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.write(200)
        agent.start()
        agent.spool_all()
        assert 0 == agent.stop()
        (version,) = changed(agent.state_dir / name, "PRAGMA user_version")[0]
        changed(agent.state_dir / name, f"PRAGMA user_version={version + 1000}")
        agent.launch()
        assert 76 == agent.ended()
        assert str(agent.state_dir / name) in agent.one_line()

        changed(agent.state_dir / name, f"PRAGMA user_version={version}")
        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, 0)


def test_a_second_agent_and_whoever_holds_a_database_are_kept_apart(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """The first one spools on. A database that is held is no damage."""
    with Subject(tmp_path, mock) as agent:
        embedded.broker_down()
        agent.write(200)
        agent.start()
        agent.spool_all()
        for _ in range(2):
            with Subject(
                tmp_path / "second", mock, agent={"state_dir": str(agent.state_dir)}
            ) as other:
                other.launch()
                assert 75 == other.ended()
                assert str(agent.state_dir) in other.one_line()
        agent.write(200)
        agent.spool_all()
        assert 0 == agent.stop()
        for name in DATABASES:
            with held(agent.state_dir / name):
                agent.launch()
                assert 74 == agent.ended()
                assert str(agent.state_dir / name) in agent.one_line()
        assert not list(agent.state_dir.glob("*.damaged"))

        embedded.broker_up()
        assert_nothing_lost(agent.last_life(), agent.written, 0)


@contextmanager
def held(path: Path) -> Iterator[None]:
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


# ---- versions


def changed(path: Path, *statements: str) -> list[Any]:
    """Do ``statements`` to a closed database. Return what the last one gave."""
    with edited(path) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def test_a_newer_minor_version_and_back_again_loses_nothing(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """A step back after a failed rollout, and forth again: what it does not know it keeps."""
    with Subject(tmp_path, mock) as agent:
        agent.write(100)
        agent.start()
        agent.until_delivered(100)
        embedded.broker_down()
        agent.write(300)
        append(agent.root / "acme/b.jsonl", [b"bad"] * 20)
        agent.spool_all()
        assert 0 == agent.stop()
        checkpoints, spooled = (agent.state_dir / name for name in DATABASES)
        for path, table, room in (
            (checkpoints, "checkpoints", database),
            (spooled, "spooled_events", spool),
        ):
            changed(
                path,
                f"PRAGMA user_version={room.MAJOR * 1000 + room.MINOR + 1}",
                "CREATE TABLE spooled_audits (seq INTEGER PRIMARY KEY, count INT)",
                "INSERT INTO spooled_audits VALUES (7, 2)",
                f"ALTER TABLE {table} ADD COLUMN future TEXT NOT NULL DEFAULT 'default'",
                f"UPDATE {table} SET future = 'kept'",  # noqa: S608 - as above
            )
        changed(checkpoints, "INSERT INTO meta VALUES ('future', 'kept')")
        changed(spooled, "INSERT INTO bounds VALUES ('audits', 3, 9, 0)")

        agent.write(200)
        agent.start()
        agent.spool_all()
        assert 0 == agent.stop()
        for path in (checkpoints, spooled):
            assert [(7, 2)] == changed(path, "SELECT * FROM spooled_audits")
        futures = changed(checkpoints, "SELECT future FROM checkpoints")
        assert [("kept",), ("kept",)] == futures
        futures = changed(spooled, "SELECT DISTINCT future FROM spooled_events ORDER BY 1")
        assert [("default",), ("kept",)] == futures
        assert [("kept",)] == changed(checkpoints, "SELECT value FROM meta WHERE name = 'future'")
        bounds = changed(spooled, "SELECT * FROM bounds WHERE name = 'audits'")
        assert [("audits", 3, 9, 0)] == bounds
        for path, room in ((checkpoints, database), (spooled, spool)):
            newer = room.MAJOR * 1000 + room.MINOR + 1
            assert [(newer,)] == changed(path, "PRAGMA user_version")

        embedded.broker_up()
        agent.start()
        agent.deliver_all()
        assert 0 == agent.stop()
        assert_each_once(agent, agent.written + 20)


def test_the_state_of_the_version_before_is_taken_over(
    embedded: EmbeddedKafka, mock: Topics, tmp_path: Path
) -> None:
    """It spooled dead letters only, in a table of its own, and counted nothing."""
    with Subject(tmp_path, mock) as agent:
        agent.write(100)
        agent.start()
        agent.until_delivered(100)
        embedded.broker_down()
        append(agent.root / "acme/b.jsonl", [b"bad"] * 50)
        agent.spool_all()
        assert 0 == agent.stop()
        assert 50 == as_the_version_before(agent.state_dir)
        agent.write(100)
        append(agent.root / "acme/b.jsonl", [b"bad"] * 10)
        agent.start()
        agent.spool_all()

        embedded.broker_up()
        agent.deliver_all()
        assert 0 == agent.metric("spool_lost_total")
        assert 0 == agent.stop()
        assert_each_once(agent, agent.written + 60)


def as_the_version_before(state_dir: Path) -> int:
    """Turn a state that holds no events into one of that version. Return its dead letters."""
    checkpoints, spooled = (state_dir / name for name in DATABASES)
    changed(checkpoints, "DELETE FROM meta WHERE name LIKE 'spooled%'", "PRAGMA user_version=1000")
    with edited(spooled) as connection:
        assert not connection.execute("SELECT * FROM spooled_events").fetchall()
        rows = connection.execute(
            "SELECT partition, count, codec, first_ms, max_ms, raw_bytes, 0, payload"
            " FROM spooled_dead_letters ORDER BY seq"
        ).fetchall()
        connection.execute(OLD_SCHEMA)
        connection.executemany(OLD_INSERT, [(*r[:6], crc32(r[7]), r[7]) for r in rows])
        for table in ("spooled_events", "spooled_dead_letters", "bounds"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version=0")
    return sum(row[1] for row in rows)
