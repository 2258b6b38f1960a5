"""What is put by on disk: kept whole and in order, across deaths and damage."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import wire
from agent.core.batch import Batch
from agent.errors import StoreError
from agent.spool import Spool
from tests.fakes import batch_of

MIB = 1 << 20
PUT_AND_WAIT = """
import sys, time
from pathlib import Path
from agent.spool import Spool
from tests.fakes import batch_of
Spool(Path(sys.argv[1]), 1 << 20).put([batch_of(b"a")])
print("put", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    opened = Spool(path, MIB)
    yield opened
    opened.close()


def values(batch: Batch) -> list[bytes]:
    return [record.value for record in wire.records(batch)]


def all_of(spool: Spool) -> list[list[bytes]]:
    return [values(stored.batch) for stored in spool.oldest(0, 100)]


def test_what_is_put_by_comes_back_in_order(spool: Spool) -> None:
    spool.put([batch_of(b"a", b"b", partition=3), batch_of(b"c")])
    spool.put([batch_of(b"d")])

    assert [[b"a", b"b"], [b"c"], [b"d"]] == all_of(spool)
    assert 3 == spool.oldest(0, 1)[0].batch.partition
    assert 4 == spool.records


def test_it_is_there_after_a_restart(path: Path) -> None:
    first = Spool(path, MIB)
    first.put([batch_of(b"a")])
    size = first.bytes
    first.close()

    again = Spool(path, MIB)
    assert [[b"a"]] == all_of(again)
    assert (1, size) == (again.records, again.bytes)
    again.close()


def test_it_is_there_after_a_sigkill(path: Path) -> None:
    """What is committed counts as settled: its source may be gone by then."""
    with subprocess.Popen(
        [sys.executable, "-c", PUT_AND_WAIT, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as child:
        assert child.stdout is not None
        assert b"put\n" == child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)

    spool = Spool(path, MIB)
    assert [[b"a"]] == all_of(spool)
    spool.close()


def test_what_was_moved_is_gone_and_its_space_with_it(spool: Spool, path: Path) -> None:
    payload = os.urandom(200_000)
    spool.put([batch_of(payload) for _ in range(20)])
    spool.drop(spool.oldest(0, 100))

    assert (0, 0) == (spool.records, spool.bytes)
    assert [] == spool.oldest(0, 100)
    spool.close()
    assert path.stat().st_size < 200_000


def test_a_full_spool_says_so(path: Path) -> None:
    spool = Spool(path, MIB)
    assert spool.room()
    spool.put([batch_of(os.urandom(300_000)) for _ in range(4)])

    assert not spool.room()
    spool.close()


def test_a_damaged_row_is_counted_and_the_others_come_back(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    """One flipped bit may cost its batch, never the rows around it."""
    spool.put([batch_of(b"a"), batch_of(b"b", b"b2"), batch_of(b"c")])
    spool._connection.execute("UPDATE dead_letters SET payload = zeroblob(9) WHERE seq = 2")

    assert [[b"a"], [b"c"]] == all_of(spool)
    assert ["spool.row_damaged"] == [record.getMessage() for record in caplog.records]
    assert [[b"a"], [b"c"]] == all_of(spool)


def test_a_file_that_is_no_database_is_put_aside(path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)

    spool = Spool(path, MIB)

    assert 0 == spool.records
    assert path.with_name("spool.db.damaged").exists()
    spool.close()


@pytest.mark.parametrize("page", range(1, 7))
def test_a_damaged_page_does_not_stop_every_start_to_come(path: Path, page: int) -> None:
    """Restarting would not mend it. What was on disk is kept aside for whoever can."""
    spool = Spool(path, MIB)
    spool.put([batch_of(os.urandom(6000)) for _ in range(20)])
    spool.close()
    with path.open("r+b") as file:
        file.seek(4096 * page)
        file.write(b"\xff" * 64)

    spool = Spool(path, MIB)
    found = spool.oldest(0, 100)  # without an error
    assert path.with_name("spool.db.damaged").exists() or found
    spool.put([batch_of(b"a")])
    spool.close()


def test_a_directory_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=r"file/spool\.db"):
        Spool(tmp_path / "file" / "spool.db", MIB)
