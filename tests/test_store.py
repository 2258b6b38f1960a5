"""Checkpoints on disk: what was committed survives, what is damaged is put aside."""

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.core.identity import Anchor, Birth, Checkpoint, digest
from agent.database import MAJOR, MINOR
from agent.errors import AgentError, ConfigError, StateOwned, StateTooNew, StoreError
from agent.store import Store
from tests.test_queue import fill, tmpfs  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent
NOBODY = 65534


def checkpoint(watermark: int = 100, inode: int = 7, generation: int = 0) -> Checkpoint:
    return Checkpoint(
        birth=Birth(inode, born_ns=8, inode_generation=9, device=10),
        generation=generation,
        watermark=watermark,
        fingerprint=digest(b"head"),
        anchor=Anchor(watermark, digest(b"%d" % watermark)),
        path="client/a.jsonl",
        client="client",
    )


def stored(state_dir: Path) -> list[Checkpoint]:
    with closing(Store.open(state_dir, "node-1")) as store:
        return store.load()


def filled(state_dir: Path, count: int = 200) -> Path:
    """Commit so many checkpoints that the database has several pages; return its path."""
    with closing(Store.open(state_dir, "node-1")) as store:
        store.save(
            replace(checkpoint(5000 + n, n), older=(Anchor(1200, digest(b"o")),))
            for n in range(count)
        )
    return state_dir / "checkpoints.db"


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "agent.database"]


CHECKPOINTS = st.builds(
    lambda watermark, **rest: Checkpoint(
        watermark=watermark, anchor=Anchor(watermark, digest(b"a")), **rest
    ),
    watermark=st.integers(1, (1 << 63) - 1),
    birth=st.builds(
        Birth,
        inode=st.integers(0, (1 << 64) - 1),
        born_ns=st.integers(0, (1 << 63) - 1),
        inode_generation=st.integers(0, (1 << 32) - 1),
        device=st.integers(0, (1 << 64) - 1),
    ),
    generation=st.integers(0, 1000),
    fingerprint=st.binary(min_size=16, max_size=16),
    older=st.just(()) | st.just((Anchor(0, digest(b"o")),)),
    path=st.binary(min_size=1, max_size=40).map(os.fsdecode),
    client=st.binary(min_size=1, max_size=10).map(os.fsdecode),
    gone_at=st.none() | st.floats(0, 2e9),
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHECKPOINTS, max_size=5, unique_by=lambda c: (c.source_id, c.generation)))
def test_what_was_saved_is_loaded_after_a_restart(
    tmp_path: Path, checkpoints: list[Checkpoint]
) -> None:
    """Inodes use all 64 bits and a path need not be text: both come back as they were."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as state_dir:
        with closing(Store.open(Path(state_dir), "node-1")) as store:
            store.save(checkpoints)
            assert checkpoints == sorted(store.load(), key=checkpoints.index)
        loaded = stored(Path(state_dir))
        assert checkpoints == sorted(loaded, key=checkpoints.index)
        assert {c.birth.device for c in checkpoints} == {c.birth.device for c in loaded}


def test_a_surrogate_path_and_a_64_bit_inode_come_back(tmp_path: Path) -> None:
    born = Birth(inode=(1 << 64) - 1, born_ns=1, inode_generation=0, device=1 << 63)
    odd = replace(checkpoint(), birth=born, path=os.fsdecode(b"client/\xff\xfe\n.jsonl"))
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([odd])

    (loaded,) = stored(tmp_path)

    assert odd == loaded
    assert (odd.birth.inode, odd.birth.device) == (loaded.birth.inode, loaded.birth.device)


def test_the_watermark_never_goes_back(tmp_path: Path) -> None:
    """Invariant 2, whoever asks: in this life of the agent and in the next."""
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(100)])
        store.save([checkpoint(99)])
        assert [100] == [c.watermark for c in store.load()]
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(50)])
        assert [100] == [c.watermark for c in store.load()]


def test_a_new_generation_begins_where_it_wants(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(100)])
        store.save([checkpoint(0, generation=1)])

        assert [100, 0] == [c.watermark for c in store.load()]


def test_a_row_at_the_same_watermark_takes_its_news(tmp_path: Path) -> None:
    """A file that was moved has a new path and settled nothing."""
    moved = replace(checkpoint(100), path="client/a.jsonl.1", gone_at=5.0)
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(100)])
        store.save([moved])

        assert [moved] == store.load()


def test_what_is_forgotten_is_gone_and_may_begin_again(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(100), checkpoint(7, 8)])
        store.save([], [checkpoint(100)])
        assert [8] == [c.birth.inode for c in store.load()]

        store.save([checkpoint(3)])
        assert {3, 7} == {c.watermark for c in store.load()}


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path, "node-1")) as store:
        store._database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON checkpoints WHEN NEW.watermark = 13 "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        with pytest.raises(StoreError, match="checkpoint commit: disk full"):
            store.save([checkpoint(12, 8), checkpoint(13)])

        assert [] == store.load()
        store.save([checkpoint(5, 8)])  # what failed left no higher watermark behind
        assert [5] == [c.watermark for c in store.load()]


def test_a_second_agent_says_whose_the_directory_is(tmp_path: Path) -> None:
    """Invariant 9."""
    with (
        closing(Store.open(tmp_path, "node-1")),
        pytest.raises(StateOwned, match=rf"{tmp_path} .*pid {os.getpid()}\)"),
    ):
        Store.open(tmp_path, "node-1")

    assert [] == stored(tmp_path)


CHILD = """
import os, signal, sys
from pathlib import Path
from agent.store import Store
from tests.test_store import checkpoint

store = Store.open(Path(sys.argv[1]), "node-1")
for watermark in (100, 200):
    store.save([checkpoint(watermark)])
if sys.argv[2] == "die":
    os.kill(os.getpid(), signal.SIGKILL)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def child(state_dir: Path, then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state_dir), then],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_commit_survives_a_kill_right_after_it(tmp_path: Path) -> None:
    """No page is left in the process: save() returned, so the row is there."""
    with child(tmp_path, "die") as killed:
        assert -signal.SIGKILL == killed.wait(30)

    assert [200] == [c.watermark for c in stored(tmp_path)]


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    with child(tmp_path, "wait") as owner:
        assert owner.stdout is not None
        assert f"{owner.pid}\n" == owner.stdout.readline()
        with pytest.raises(StateOwned, match=rf"pid {owner.pid}\)"):
            Store.open(tmp_path, "node-1")
        owner.kill()

    assert [200] == [c.watermark for c in stored(tmp_path)]


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def test_the_version_is_written_in_the_database(tmp_path: Path) -> None:
    with edited(filled(tmp_path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()

    assert MAJOR * 1000 + MINOR == version


def test_a_newer_major_version_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with edited(path) as connection:
        connection.execute(f"PRAGMA user_version={(MAJOR + 1) * 1000 + 3}")

    with pytest.raises(StateTooNew, match=rf"{path} is of state version {MAJOR + 1}\.3"):
        Store.open(tmp_path, "node-1")

    with edited(path) as connection:
        assert (200,) == connection.execute("SELECT count(*) FROM checkpoints").fetchone()
    assert not list(tmp_path.glob("*.damaged"))


def test_a_newer_minor_version_works_and_keeps_what_it_added(tmp_path: Path) -> None:
    """The step back after a failed rollout: a column that we do not know is left alone."""
    path, newer = filled(tmp_path, count=1), MAJOR * 1000 + MINOR + 1
    with edited(path) as connection:
        connection.execute(f"PRAGMA user_version={newer}")
        connection.execute("ALTER TABLE checkpoints ADD COLUMN future TEXT DEFAULT 'default'")
        connection.execute("UPDATE checkpoints SET future = 'kept'")

    with closing(Store.open(tmp_path, "node-1")) as store:
        (known,) = store.load()
        moved = replace(known, watermark=9000, anchor=Anchor(9000, digest(b"9")))
        store.save([moved, checkpoint(1, 8)])
        assert [1, 9000] == sorted(row.watermark for row in store.load())

    with edited(path) as connection:
        rows = connection.execute("SELECT watermark, future FROM checkpoints").fetchall()
        assert [(1, "default"), (9000, "kept")] == sorted(rows)
        assert (newer,) == connection.execute("PRAGMA user_version").fetchone()


def test_a_directory_belongs_to_one_node(tmp_path: Path) -> None:
    """Event ids are made of the node's name: with another one the same lines get other ids."""
    filled(tmp_path)

    with pytest.raises(ConfigError, match=r"agent.node: is 'node-2', but .* 'node-1'"):
        Store.open(tmp_path, "node-2")

    assert 200 == len(stored(tmp_path))


# ---- how far the spool reaches, as the checkpoints know it

SPOOLED = {"events": (10, 1 << 60), "dead_letters": (0, 7)}


def spooled(state_dir: Path) -> dict[str, tuple[int, int]]:
    with closing(Store.open(state_dir, "node-1")) as store:
        return store.spooled()


def test_how_far_the_spool_reaches_is_there_after_a_restart(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path, "node-1")) as store:
        assert {} == store.spooled()
        store.save([checkpoint(1)], [], SPOOLED)
        assert store.spooled() == SPOOLED
        store.save([checkpoint(2)], [], SPOOLED | {"dead_letters": (5, 9)})

    assert spooled(tmp_path) == SPOOLED | {"dead_letters": (5, 9)}
    assert [2] == [c.watermark for c in stored(tmp_path)]


@pytest.mark.parametrize("refused", ["checkpoints", "meta"])
def test_checkpoints_and_the_spool_they_rely_on_are_one_commit(
    tmp_path: Path, refused: str
) -> None:
    """A watermark without the spool's end would forget rows that are lost; one alone is a lie."""
    before = {"events": (0, 5), "dead_letters": (0, 0)}
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(100)], [], before)
        store._database.execute(
            f"CREATE TRIGGER full BEFORE INSERT ON {refused} "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        for _ in range(2):
            with pytest.raises(StoreError, match="checkpoint commit: disk full"):
                store.save([checkpoint(200)], [], SPOOLED)
        assert before == store.spooled()
        assert [100] == [c.watermark for c in store.load()]

        store._database.execute("DROP TRIGGER full")
        store.save([checkpoint(200)], [], SPOOLED)  # what failed does not count as written

    assert spooled(tmp_path) == SPOOLED
    assert [200] == [c.watermark for c in stored(tmp_path)]


def test_how_far_the_spool_reaches_is_written_only_when_it_moved(tmp_path: Path) -> None:
    """While Kafka answers, twenty commits a second have nothing to say of it."""
    with closing(Store.open(tmp_path, "node-1")) as store:
        store.save([checkpoint(1)], [], SPOOLED)
    with closing(Store.open(tmp_path, "node-1")) as store:
        statements: list[str] = []
        store._database.conn.set_trace_callback(statements.append)
        for watermark in (2, 3):
            store.save([checkpoint(watermark)], [], dict(SPOOLED))
        assert not [s for s in statements if "INTO meta" in s]
        store.save([checkpoint(4)], [], SPOOLED | {"events": (11, 1 << 60)})
        assert [s for s in statements if "INTO meta" in s]


def test_a_state_of_version_1_0_opens(tmp_path: Path) -> None:
    """It knew of no spool for events; the step back to it works too."""
    path = filled(tmp_path, count=3)
    with edited(path) as connection:
        connection.execute("PRAGMA user_version=1000")
        assert [("node",)] == connection.execute("SELECT name FROM meta").fetchall()

    with closing(Store.open(tmp_path, "node-1")) as store:
        assert {} == store.spooled()
        assert 3 == len(store.load())
        store.save([], [], SPOOLED)
    with edited(path) as connection:
        assert (MAJOR * 1000 + MINOR,) == connection.execute("PRAGMA user_version").fetchone()
        names = {name for (name,) in connection.execute("SELECT name FROM meta")}
        assert {"node", "spooled_events", "spooled_dead_letters"} == names
    assert spooled(tmp_path) == SPOOLED


def test_a_full_disk_is_a_store_error_and_takes_nothing_back(
    tmpfs: Path,  # noqa: F811
) -> None:
    state_dir = tmpfs / "state"
    with closing(Store.open(state_dir, "node-1")) as store:
        store.save([checkpoint(100)], [], SPOOLED)
        fill(tmpfs, leave=0)
        with pytest.raises(StoreError, match=r"checkpoint commit: .*full"):
            store.save(
                (checkpoint(200, n) for n in range(5000)),
                [],
                {"events": (20, 30)},
            )
        (tmpfs / "others").unlink()
        assert [100] == [c.watermark for c in store.load()]
        assert store.spooled() == SPOOLED
        store.save([checkpoint(150)], [], {"events": (20, 30)})

    assert [150] == [c.watermark for c in stored(state_dir)]
    assert (20, 30) == spooled(state_dir)["events"]


def test_a_start_on_a_full_disk_is_a_store_error_and_puts_nothing_aside(
    tmpfs: Path,  # noqa: F811
) -> None:
    state_dir = tmpfs / "state"
    with closing(Store.open(state_dir, "node-1")) as store:
        store.save([checkpoint(100)], [], SPOOLED)
    fill(tmpfs, leave=0)
    with pytest.raises(StoreError, match=str(state_dir)):
        Store.open(state_dir, "node-1")
    (tmpfs / "others").unlink()

    assert not list(state_dir.glob("*.damaged"))
    assert [100] == [c.watermark for c in stored(state_dir)]


def overwrite(path: Path, at: int, written: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(written)


def flip_header(path: Path) -> None:
    overwrite(path, 0, bytes(byte ^ 0xFF for byte in path.read_bytes()[:100]))


def flip_pages(path: Path) -> None:
    overwrite(path, 4096, bytes(byte ^ 0xFF for byte in path.read_bytes()[4096:]))


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_in_the_header(path: Path) -> None:
    os.truncate(path, 50)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def break_the_bounds(path: Path) -> None:
    """As one flipped bit can: what the spool is measured by."""
    with edited(path) as connection:
        connection.execute("INSERT INTO meta VALUES ('spooled_events', '10 2O')")


def break_a_row(path: Path) -> None:
    """As one flipped bit can: SQLite finds nothing wrong with it, and no row can be made of it."""
    with edited(path) as connection:
        connection.execute("UPDATE checkpoints SET older = x'c1' WHERE watermark = 5003")


def change_a_birth(path: Path) -> None:
    """The same: its source is named by another birth."""
    with edited(path) as connection:
        connection.execute("UPDATE checkpoints SET inode = inode + 1 WHERE watermark = 5003")


@pytest.mark.parametrize(
    "damage",
    [flip_header, flip_pages, cut_in_half, cut_in_the_header, garbage, break_a_row,
     break_the_bounds, change_a_birth],
)  # fmt: skip
def test_a_damaged_database_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    """Every file is read again: copies, and nothing lost. Never a crash loop."""
    path = filled(tmp_path)
    assert callable(damage)
    damage(path)
    broken = path.read_bytes()

    with closing(Store.open(tmp_path, "node-1")) as store:
        assert [] == store.load()
        store.save([checkpoint(3)])

    assert ["checkpoints.damaged"] == events(caplog)
    assert broken[4096:] == (tmp_path / "checkpoints.db.damaged").read_bytes()[4096:]
    assert [3] == [c.watermark for c in stored(tmp_path)]


@pytest.mark.parametrize(
    "column", ["generation", "inode", "device", "watermark", "fingerprint", "path", "gone_at"]
)
def test_a_value_of_another_kind_is_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str
) -> None:
    """A flipped bit in a row's header makes text of a number; SQLite takes any kind anywhere."""
    path = filled(tmp_path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE checkpoints SET {column} = 'x' WHERE watermark = 5003")  # noqa: S608

    with closing(Store.open(tmp_path, "node-1")) as store:
        assert [] == store.load()

    assert ["checkpoints.damaged"] == events(caplog)


def test_damage_twice_keeps_one_copy(tmp_path: Path) -> None:
    for _ in range(2):
        garbage(filled(tmp_path))
        assert [] == stored(tmp_path)

    assert 1 == len(list(tmp_path.glob("*.damaged")))


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1,
                      max_size=3))  # fmt: skip
def test_no_flipped_byte_makes_a_start_impossible(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    """Either it is found and put aside, or a row is wrong and its anchor will not match."""
    pristine = tmp_path / "pristine"
    path = pristine / "checkpoints.db" if pristine.exists() else filled(pristine, count=20)
    state_dir = tmp_path / "state"
    shutil.rmtree(state_dir, ignore_errors=True)
    shutil.copytree(pristine, state_dir)
    content = bytearray(path.read_bytes())
    for at, mask in flips:
        at %= len(content)  # noqa: PLW2901
        if not HEADER_OF_MEANING[0] <= at < HEADER_OF_MEANING[1] and at not in WRITE_VERSION:
            content[at] ^= mask
    (state_dir / "checkpoints.db").write_bytes(content)

    with suppress(ConfigError):  # the pinned node's name, flipped: for a person to judge
        stored(state_dir)


HEADER_OF_MEANING = (60, 64)  # user_version: flipped up it is a newer agent's, and refused
WRITE_VERSION = (18, 19)  # flipped up it is a newer SQLite's, and refused


def test_a_lost_database_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path).unlink()

    assert [] == stored(tmp_path)

    assert ["checkpoints.lost"] == events(caplog)


def test_a_first_start_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert [] == stored(tmp_path / "new" / "state")

    assert [] == events(caplog)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere; be somebody who may not."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that everybody reaches; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_directory_is_named(public_dir: Path) -> None:
    state_dir = public_dir / "state"
    state_dir.mkdir(mode=0o555)

    with as_nobody(), pytest.raises(StoreError, match=rf"{state_dir}: Permission denied"):
        Store.open(state_dir, "node-1")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    state_dir = tmp_path / "file" / "state"

    with pytest.raises(StoreError, match=rf"{state_dir}: Not a directory"):
        Store.open(state_dir, "node-1")


def test_what_cannot_be_put_aside_is_an_error_of_ours(tmp_path: Path) -> None:
    """And the lock is given back, whatever goes wrong."""
    garbage(filled(tmp_path))
    (tmp_path / "checkpoints.db.damaged" / "kept").mkdir(parents=True)

    for _ in range(2):
        with pytest.raises(AgentError, match=str(tmp_path)):
            Store.open(tmp_path, "node-1")


def test_a_state_directory_that_the_agent_makes_is_its_own_alone(tmp_path: Path) -> None:
    """Who may write there could have lines skipped; who may read there sees what is spooled."""
    state_dir = tmp_path / "state"
    Store.open(state_dir, "node").close()

    assert 0o700 == state_dir.stat().st_mode & 0o777
