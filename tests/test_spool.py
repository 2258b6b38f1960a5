"""What is put by on disk: kept whole and in order, across deaths, versions and what others know."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest

from agent import wire
from agent.core.batch import Batch
from agent.errors import StateTooNew, StoreError
from agent.queue import Bounds
from agent.spool import MAJOR, MINOR, Spool
from tests.test_queue import batch, edited, fields, held, opened, tiling

ROOT = Path(__file__).parent.parent
PUT_AND_WAIT = """
import sys, time
from pathlib import Path
from agent.spool import Spool
from tests.fakes import batch_of
queues = Spool(Path(sys.argv[1]), {}).queues
queues["events"].put([batch_of(b"a", b"b"), batch_of(b"c")])
queues["events"].drop_below(2)
queues["dead_letters"].put([batch_of(b"dead")])
print("put", flush=True)
time.sleep(60)
"""

OLD_SCHEMA = """
CREATE TABLE IF NOT EXISTS dead_letters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    partition INTEGER NOT NULL,
    count INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    first_ms INTEGER NOT NULL,
    max_ms INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    payload BLOB NOT NULL
)"""
OLD_INSERT = (
    "INSERT INTO dead_letters (partition, count, codec, first_ms, max_ms, raw_bytes, crc, payload)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def values(path: Path, name: str) -> list[list[bytes]]:
    with opened(path, name=name) as queue:
        return [[r.value for r in wire.records(s.batch)] for s in tiling(queue) if s.batch]


# ---- deaths


def test_it_is_there_after_a_sigkill(path: Path) -> None:
    """What is committed counts as settled: its source may be gone by then."""
    with subprocess.Popen(
        [sys.executable, "-c", PUT_AND_WAIT, str(path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert b"put\n" == child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)

    assert [[b"c"]] == values(path, "events")
    assert [[b"dead"]] == values(path, "dead_letters")
    with opened(path) as queue:
        assert (2, 3, 0) == (queue.head, queue.end, queue.lost)


def test_the_queues_know_nothing_of_each_other(path: Path) -> None:
    with closing(Spool(path, {})) as spool:
        assert {"events": (0, 0), "dead_letters": (0, 0)} == spool.bounds()
        spool.queues["events"].put([batch(b"a", 3)])
        spool.queues["dead_letters"].put([batch(b"b", 5), batch(b"c", 7)])
        spool.queues["dead_letters"].drop_below(5)
        assert {"events": (0, 3), "dead_letters": (5, 12)} == spool.bounds()
        assert (3, 7) == tuple(queue.records for queue in spool.queues.values())


def test_a_second_one_may_not_open_it(path: Path) -> None:
    with opened(path) as queue:
        queue.put([batch(b"a")])
        with pytest.raises(StoreError, match=rf"{path}: database is locked"):
            Spool(path, {})
    assert not list(path.parent.glob("*.damaged"))


def test_a_directory_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=r"file/spool\.db"):
        Spool(tmp_path / "file" / "spool.db", {})


# ---- what the checkpoints know


@pytest.mark.parametrize("at_least", [(0, 0), (0, 30), (10, 40), (20, 40)])
def test_checkpoints_behind_the_spool_change_nothing(path: Path, at_least: Bounds) -> None:
    """The spool commits first. A crash before the checkpoints follow leaves them behind."""
    with opened(path) as queue:
        queue.put(batch(bytes([n]), 10) for n in range(5))
        queue.drop_below(20)
    with opened(path, at_least) as queue:
        assert (20, 50, 0, 30) == (queue.head, queue.end, queue.lost, queue.records)
        assert [20, 30, 40] == list(held(tiling(queue)))


@pytest.mark.parametrize(("at_least", "lost"), [((20, 80), 30), ((40, 60), 10), ((50, 50), 0),
                                                ((70, 90), 20), ((95, 95), 0)])  # fmt: skip
def test_what_checkpoints_know_and_the_spool_does_not_was_lost(
    path: Path, caplog: pytest.LogCaptureFixture, at_least: Bounds, lost: int
) -> None:
    """A power cut on a disk that lies about fsync. What arrived is neither lost nor sent again."""
    with opened(path) as queue:
        queue.put(batch(bytes([n]), 10) for n in range(5))
        queue.drop_below(20)
    whole = [seq for seq in (20, 30, 40) if seq >= at_least[0]]

    with opened(path, at_least) as queue:
        assert (at_least, lost) == ((queue.head, queue.end), queue.lost)
        assert whole == list(held(tiling(queue)))
        assert 10 * len(whole) == queue.records
        queue.put([batch(b"next", 3)])
        assert (at_least[1], at_least[1] + 3) == (tiling(queue)[-1].seq, queue.end)
    assert (["spool.lost"] if lost else []) == [r.getMessage() for r in caplog.records]

    with opened(path, at_least) as queue:
        assert (0, lost) == (queue.lost, sum(r.records for r in tiling(queue) if not r.batch))


def test_a_lost_file_is_counted_by_the_checkpoints(path: Path) -> None:
    for lost in (70, 0):
        with opened(path, (30, 100)) as queue:
            assert lost == queue.lost
            assert (0, 0, 30, 100) == (queue.records, queue.bytes, queue.head, queue.end)
            assert [(30, 70, None)] == tiling(queue)


def test_a_commit_that_was_lost_with_the_log_is_counted(path: Path, tmp_path: Path) -> None:
    """The write-ahead log of a running spool is taken away: only its copy knows the rest."""
    copy = tmp_path / "copy" / "spool.db"
    copy.parent.mkdir()
    with opened(path) as queue:
        queue.put([batch(os.urandom(20_000), 9)])
    with opened(path) as queue:
        queue.put([batch(b"in the log", 5), batch(b"this too", 6)])
        shutil.copy(path, copy)
        known = queue.head, queue.end

    with opened(copy, known) as queue:
        assert [0] == list(held(tiling(queue)))
        assert 11 == queue.lost


# ---- versions


def test_a_newer_minor_version_works_and_keeps_what_it_added(path: Path) -> None:
    """The step back after a failed rollout."""
    newer = MAJOR * 1000 + MINOR + 7
    with opened(path) as queue:
        queue.put([batch(b"a", 2), batch(b"b", 3)])
    with edited(path) as connection:
        connection.execute(f"PRAGMA user_version={newer}")
        connection.execute("ALTER TABLE spooled_events ADD COLUMN future TEXT DEFAULT 'default'")
        connection.execute("ALTER TABLE bounds ADD COLUMN future INT")
        connection.execute("CREATE TABLE spooled_audits (seq INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO spooled_audits VALUES (7)")
        connection.execute("UPDATE spooled_events SET future = 'kept'")
        connection.execute("UPDATE bounds SET future = 8")

    with opened(path) as queue:
        queue.put([batch(b"c", 4)])
        queue.drop_below(2)
        assert [2, 5] == list(held(tiling(queue)))
        assert 0 == queue.lost

    with edited(path) as connection:
        query = "SELECT seq, future FROM spooled_events ORDER BY seq"
        assert [(2, "kept"), (5, "default")] == connection.execute(query).fetchall()
        query = "SELECT future FROM bounds WHERE name = 'events'"
        assert (8,) == connection.execute(query).fetchone()
        assert (7,) == connection.execute("SELECT seq FROM spooled_audits").fetchone()
        assert (newer,) == connection.execute("PRAGMA user_version").fetchone()


def test_a_newer_major_version_is_refused_and_left_alone(path: Path) -> None:
    with opened(path) as queue:
        queue.put([batch(b"a", 2)])
    with edited(path) as connection:
        connection.execute(f"PRAGMA user_version={(MAJOR + 1) * 1000 + 4}")
    with pytest.raises(StateTooNew, match=rf"{path} is of state version {MAJOR + 1}\.4; "):
        Spool(path, {})

    assert [path] == list(path.parent.iterdir())
    with edited(path) as connection:
        assert (2,) == connection.execute("SELECT count FROM spooled_events").fetchone()
        connection.execute(f"PRAGMA user_version={MAJOR * 1000}")
    with opened(path) as queue:
        assert [0] == list(held(tiling(queue)))


# ---- the version that spooled dead letters only


def old_spooled(path: Path, batches: list[Batch], *, damaged: int = -1) -> None:
    """Put rows by as that version did; row ``damaged`` does not match its CRC."""
    with edited(path) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(OLD_SCHEMA)
        for n, b in enumerate(batches):
            crc = crc32(b.payload) ^ (n == damaged)
            row = (b.partition, b.count, b.codec, b.first_ms, b.max_ms, b.raw_bytes, crc, b.payload)
            connection.execute(OLD_INSERT, row)


def adopted(path: Path, at_least: Bounds = (0, 0)) -> list[tuple[object, ...]]:
    with opened(path, at_least, "dead_letters") as queue:
        assert 0 == queue.lost
        found = [fields(row.batch) for row in tiling(queue) if row.batch]
        assert sum(b.count for _, _, b in tiling(queue) if b) == queue.records
        assert sum(len(b.payload) for _, _, b in tiling(queue) if b) == queue.bytes
        return found


def test_old_dead_letters_move_into_the_queue(path: Path) -> None:
    old = [batch(os.urandom(300 * n + 1), n + 1, partition=n) for n in range(30)]
    old_spooled(path, old)

    for _ in range(2):
        assert [fields(b) for b in old] == adopted(path)

    with edited(path) as connection:
        assert [] == connection.execute("SELECT * FROM dead_letters").fetchall()
    with opened(path) as queue:
        assert [] == tiling(queue)


def test_a_step_back_and_forth_loses_no_dead_letter(path: Path) -> None:
    """The old version puts its own by in its table again, and does not see ours."""
    first = [batch(b"first %d" % n, 3) for n in range(5)]
    second = [batch(b"second %d" % n, 4) for n in range(6)]
    third = [batch(b"third", 5)]
    old_spooled(path, first)
    with opened(path, name="dead_letters") as queue:
        queue.drop_below(6)
        queue.put(third)
    old_spooled(path, second)

    expected = [fields(b) for b in (*first[2:], *third, *second)]
    assert expected == adopted(path)
    old_spooled(path, second)
    assert [*expected, *(fields(b) for b in second)] == adopted(path)


def test_old_dead_letters_are_behind_what_the_checkpoints_count(path: Path) -> None:
    """Numbered below it they would count as arrived."""
    old = [batch(b"%d" % n, 3) for n in range(4)]
    old_spooled(path, old)

    with opened(path, (100, 100), "dead_letters") as queue:
        assert [100, 103, 106, 109] == list(held(tiling(queue)))
        assert (0, 112) == (queue.lost, queue.end)
    assert [fields(b) for b in old] == adopted(path, (100, 112))


def test_a_damaged_old_row_is_counted_and_the_others_move(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = [batch(b"%d" % n, n + 1) for n in range(4)]
    old_spooled(path, old, damaged=2)

    with opened(path, name="dead_letters") as queue:
        assert 3 == queue.lost
        assert [fields(b) for b in (old[0], old[1], old[3])] == [*held(tiling(queue)).values()]
    assert ["spool.lost"] == [record.getMessage() for record in caplog.records]
    assert 3 == len(adopted(path))


def test_an_adoption_that_is_cut_short_begins_again(path: Path) -> None:
    """All or nothing: neither twice nor not at all."""
    old = [batch(b"%d" % n, 2) for n in range(5)]
    old_spooled(path, old)
    with edited(path) as connection:
        connection.execute(
            "CREATE TRIGGER cut BEFORE DELETE ON dead_letters BEGIN SELECT RAISE(ROLLBACK, 'cut');"
            " END"
        )
    with pytest.raises(sqlite3.DatabaseError, match="cut"), closing(_bare(path)) as spool:
        spool.queues["dead_letters"].adopt("dead_letters")
    with edited(path) as connection:
        connection.execute("DROP TRIGGER cut")

    assert [fields(b) for b in old] == adopted(path)


def _bare(path: Path) -> Spool:
    """Return a spool whose old table was not adopted yet."""
    with edited(path) as connection:
        connection.execute("ALTER TABLE dead_letters RENAME TO later")
    spool = Spool(path, {})
    spool._connection.execute("ALTER TABLE later RENAME TO dead_letters")
    return spool


def test_a_damaged_file_of_the_old_version_is_salvaged_too(path: Path) -> None:
    old = [batch(os.urandom(9000), 2) for _ in range(40)]
    old_spooled(path, old)
    content = bytearray(path.read_bytes())
    at = content.index(old[17].payload[6000:6064])
    content[at - at % 4096 : at - at % 4096 + 4096] = bytes(4096)
    path.write_bytes(content)

    with opened(path, name="dead_letters") as queue:
        given = [fields(row.batch) for row in tiling(queue) if row.batch]
        assert [fields(b) for b in old[:17] + old[18:]] == given
