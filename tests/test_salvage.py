"""A damaged spool: what can be read of it comes back as it was, and the rest is counted exactly."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent import salvage
from agent.core.batch import Batch
from agent.errors import StoreError
from agent.queue import Bounds
from agent.rows import COLUMNS
from agent.spool import Spool
from tests.test_queue import (
    batch,
    chance,
    edited,
    fields,
    opened,
    remount,
    tiling,
    tmpfs,  # noqa: F401 - a fixture
)

PAGE = 4096
VERSIONS = {18, 19, 60, 61, 62, 63}
"""Of the header: flipped up it is a newer SQLite's or a newer agent's file, which is refused."""
READ_RECORDS = 2000


class Put:
    """What was put by in a spool and not taken out again; ``bounds`` as checkpoints know them."""

    def __init__(self, path: Path, seed: int) -> None:
        rng = chance(seed)
        self.path = path
        self.rows: dict[str, dict[int, Batch]] = {}
        with closing(Spool(path, {})) as spool:
            for name, many in (("events", 240), ("dead_letters", 60)):
                queue, rows = spool.queues[name], self.rows.setdefault(name, {})
                for _ in range(many):
                    b = some(rng)
                    rows[queue.end] = b
                    queue.put([b])
                gone = sorted(rows)[many // 10]
                queue.drop_below(gone)
                self.rows[name] = {seq: b for seq, b in rows.items() if seq >= gone}
            self.bounds = spool.bounds()


def some(rng: random.Random) -> Batch:
    size = rng.choice([20, 300, 900, 3000, 3000, 9000, 20_000, 100_000])
    return batch(rng.randbytes(size), rng.randint(1, 400), rng.choice([-1, -1, -1, 0, 7]))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Put:
    return Put(tmp_path_factory.mktemp("pristine") / "spool.db", seed=7)


@pytest.fixture
def path(tmp_path: Path, pristine: Put) -> Path:
    shutil.copy(pristine.path, tmp_path / "spool.db")
    return tmp_path / "spool.db"


def read(path: Path, at_least: dict[str, Bounds], put: Put) -> tuple[dict[str, list[int]], int]:
    """Read all in the way of a replay; return the rows that came back, and what they count lost.

    Each that came back is as it was put, and rows tile what checkpoints know.
    """
    back: dict[str, list[int]] = {}
    lost = 0
    with closing(Spool(path, at_least)) as spool:
        for name, queue in spool.queues.items():
            at = queue.head
            assert queue.head >= at_least.get(name, (0, 0))[0]
            assert queue.end >= at_least.get(name, (0, 0))[1]
            rows = back.setdefault(name, [])
            while at < queue.end:
                for row in queue.oldest(at, READ_RECORDS):
                    assert at == row.seq
                    at += row.records
                    if row.batch is not None:
                        assert fields(put.rows[name][row.seq]) == fields(row.batch)
                        rows.append(row.seq)
            assert at == queue.end
            assert sum(put.rows[name][seq].count for seq in rows) == queue.records
            lost += queue.lost
    return back, lost


def check(path: Path, put: Put, at_least: dict[str, Bounds] | None = None) -> int:
    """Open twice and read all; return how many rows did not come back."""
    at_least = put.bounds if at_least is None else at_least
    back, lost = read(path, at_least, put)
    missing = [
        b.count for name, rows in put.rows.items() for seq, b in rows.items()
        if seq not in back[name]
    ]  # fmt: skip
    assert sum(missing) == lost, "lost is put less given back"
    assert (back, 0) == read(path, at_least, put), "a second start counts nothing twice"
    with opened(path, at_least["events"]) as queue:  # and it works
        end, following = queue.end, batch(b"next", 3)
        queue.put([following])
        last = tiling(queue)[-1]
        assert last.batch is not None
        assert (end, fields(following)) == (last.seq, fields(last.batch))
    return len(missing)


# ---- damage of all kinds


def flip_bytes(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 30])):
        at = rng.randrange(len(content))
        if at not in VERSIONS:
            content[at] ^= rng.randint(1, 255)
    path.write_bytes(content)


def flip_structure(path: Path, rng: random.Random) -> None:
    """Where a page begins its tree's cells and pointers lie; a row's columns are at its end."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 4, 20])):
        at = rng.randrange(len(content) // PAGE) * PAGE + rng.randrange(64)
        if at not in VERSIONS:
            content[at] ^= rng.randint(1, 255)
    path.write_bytes(content)


def flip_first_pages(path: Path, rng: random.Random) -> None:
    """The header, the schema, the bounds, the roots."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(8 * PAGE)
        if at not in VERSIONS:
            content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def zero_pages(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    pages = len(content) // PAGE
    for page in rng.sample(range(1, pages), rng.choice([1, 5, pages // 10, pages // 2])):
        content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    path.write_bytes(content)


def swap_pages(path: Path, rng: random.Random) -> None:
    """A disk that writes to the wrong place: each page is sound, and none where it belongs."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3])):
        one, two = (PAGE * page for page in rng.sample(range(1, len(content) // PAGE), 2))
        content[one : one + PAGE], content[two : two + PAGE] = (
            content[two : two + PAGE],
            content[one : one + PAGE],
        )
    path.write_bytes(content)


def cut_tail(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(1, path.stat().st_size))


def grow(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, PAGE, 3 * PAGE + 7])))


DAMAGES = [
    flip_bytes, flip_structure, flip_first_pages, zero_pages, swap_pages, cut_tail, grow
]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_comes_back_is_as_it_was_and_the_rest_is_counted(
    path: Path, pristine: Put, damage: Callable[[Path, random.Random], None], seed: int
) -> None:
    damage(path, chance(f"{damage.__name__} {seed}"))

    check(path, pristine)


@pytest.mark.parametrize("seed", range(6))
def test_damage_again_and_again_is_never_counted_short(
    path: Path, pristine: Put, seed: int
) -> None:
    """The lives of a dying disk: a range that says what was lost may itself be lost, and again."""
    rng = chance(seed)
    total = 0
    back: dict[str, list[int]] = {}
    for _ in range(4):
        zero_pages(path, rng)
        back, lost = read(path, pristine.bounds, pristine)
        total += lost
    kept = sum(pristine.rows[name][seq].count for name, rows in back.items() for seq in rows)
    put = sum(b.count for rows in pristine.rows.values() for b in rows.values())

    assert put - kept <= total


def all_rows(put: Put) -> int:
    return sum(map(len, put.rows.values()))


def test_without_damage_nothing_is_missing(path: Path, pristine: Put) -> None:
    assert 0 == check(path, pristine)
    assert not list(path.parent.glob("*.damaged"))


@pytest.mark.parametrize("content", [b"", b"x", b"no database at all" * 5000, bytes(70_000)])
def test_a_file_of_nothing_is_lost_as_a_whole(path: Path, pristine: Put, content: bytes) -> None:
    path.write_bytes(content)
    assert all_rows(pristine) == check(path, pristine)
    aside = path.with_name("spool.db.damaged")
    assert not content.strip(b"x\0") or content == aside.read_bytes()


def test_a_removed_file_is_lost_as_a_whole(path: Path, pristine: Put) -> None:
    path.unlink()
    assert all_rows(pristine) == check(path, pristine)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_what_lies_before_a_cut_comes_back(path: Path, pristine: Put, share: float) -> None:
    """SQLite refuses the whole of such a file if it is not told otherwise."""
    os.truncate(path, int(path.stat().st_size * share))
    assert 0.8 * share * all_rows(pristine) < all_rows(pristine) - check(path, pristine)


def test_a_lost_first_page_loses_what_only_it_could_find(path: Path, pristine: Put) -> None:
    with path.open("r+b") as file:
        file.write(bytes(PAGE))
    assert all_rows(pristine) == check(path, pristine)


def page_of(path: Path, part: bytes) -> int:
    return path.read_bytes().index(part) // PAGE


def test_a_page_inside_of_one_payload_costs_that_row_alone(path: Path, pristine: Put) -> None:
    seq, large = next(
        (s, b) for s, b in pristine.rows["events"].items() if len(b.payload) == 100_000
    )
    page = page_of(path, large.payload[50_000:50_032])
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(bytes(PAGE))

    back, lost = read(path, pristine.bounds, pristine)

    assert large.count == lost
    assert sorted(set(pristine.rows["events"]) - {seq}) == back["events"]
    assert sorted(pristine.rows["dead_letters"]) == back["dead_letters"]


def test_a_leaf_costs_its_rows_and_none_around_it(path: Path, pristine: Put) -> None:
    """A leaf holds some thirty rows at most; each other one comes back, on both of its sides."""
    small = [s for s, b in pristine.rows["events"].items() if len(b.payload) == 300]
    middle = pristine.rows["events"][small[len(small) // 2]]
    page = page_of(path, middle.payload[:32])
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(bytes(PAGE))

    missing = check(path, pristine)

    assert 1 <= missing <= 30


@pytest.mark.parametrize("bounds", ["lost", "flipped"])
def test_bounds_that_cannot_be_read_are_those_of_the_checkpoints(
    path: Path, pristine: Put, bounds: str
) -> None:
    with edited(path) as connection:
        connection.execute(
            "DELETE FROM bounds" if bounds == "lost" else "UPDATE bounds SET head = head + 65536"
        )
    assert 0 == check(path, pristine)


# ---- the write-ahead log


def unclean(path: Path, put: Put, copy: Path, rng: random.Random) -> tuple[Put, set[str]]:
    """Put more by, and copy the files as a power cut leaves them; return what checkpoints know."""
    with closing(Spool(path, put.bounds)) as spool:
        rows = {name: dict(known) for name, known in put.rows.items()}
        for _ in range(100):
            name = rng.choice(["events", "events", "dead_letters"])
            queue, b = spool.queues[name], some(rng)
            rows[name][queue.end] = b
            queue.put([b])
        for part in path.parent.glob("spool.db*"):
            shutil.copy(part, copy / part.name)
        after = object.__new__(Put)
        after.path, after.rows, after.bounds = copy / "spool.db", rows, spool.bounds()
    return after, {part.name for part in copy.iterdir()}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("damage", ["none", "removed", "cut", "flipped", "zeroed"])
def test_what_is_lost_with_the_write_ahead_log_is_counted(
    path: Path, pristine: Put, damage: str, seed: int
) -> None:
    rng = chance(f"{damage} {seed}")
    copy = path.parent / "copy"
    copy.mkdir()
    after, parts = unclean(path, pristine, copy, rng)
    assert "spool.db-wal" in parts
    wal = copy / "spool.db-wal"
    content = bytearray(wal.read_bytes())
    at = rng.randrange(len(content))
    if damage == "removed":
        wal.unlink()
    elif damage == "cut":
        os.truncate(wal, at)
    elif damage == "flipped":
        content[at] ^= rng.randint(1, 255)
        wal.write_bytes(content)
    elif damage == "zeroed":
        content[at : at + 5000] = bytes(len(content[at : at + 5000]))
        wal.write_bytes(content)

    missing = check(after.path, after)

    assert damage != "none" or not missing


@pytest.mark.parametrize("seed", range(4))
def test_both_files_damaged_at_once(path: Path, pristine: Put, seed: int) -> None:
    rng = chance(seed)
    copy = path.parent / "copy"
    copy.mkdir()
    after, _ = unclean(path, pristine, copy, rng)
    zero_pages(after.path, rng)
    flip_bytes(copy / "spool.db-wal", rng)

    check(after.path, after)


# ---- saving itself


def test_a_salvage_that_is_cut_short_begins_again(path: Path, pristine: Put) -> None:
    """Killed between putting the damaged file aside and having saved what is in it."""
    os.truncate(path, path.stat().st_size * 3 // 4)
    expected, lost = read(path, pristine.bounds, pristine)
    assert 0 < len(expected["events"]) < len(pristine.rows["events"])
    assert not list(path.parent.glob("*.unsaved"))

    for part in path.parent.glob("spool.db*"):
        if ".damaged" not in part.name:
            part.unlink()
    path.with_name("spool.db.unsaved").touch()
    assert (expected, lost) == read(path, pristine.bounds, pristine)
    assert not list(path.parent.glob("*.unsaved"))


def test_a_salvage_for_which_there_is_no_room_waits_for_it(
    tmpfs: Path,  # noqa: F811
    path: Path,
    pristine: Put,
) -> None:
    """For a while both files are there. Without room nothing is given up for it."""
    os.truncate(path, path.stat().st_size * 3 // 4)
    expected = read(Path(shutil.copy(path, path.with_name("other.db"))), pristine.bounds, pristine)
    size = path.stat().st_size
    remount(tmpfs, str(size + size // 2))
    small = Path(shutil.copy(path, tmpfs / "spool.db"))
    for _ in range(2):
        with pytest.raises(StoreError, match="full"):
            Spool(small, pristine.bounds)

    remount(tmpfs, str(5 * size))
    assert expected == read(small, pristine.bounds, pristine)
    assert sum(map(len, expected[0].values())) > 100


def test_an_old_damaged_file_is_left_alone(path: Path, pristine: Put) -> None:
    """It was saved long ago: what has arrived since must not come back from it."""
    os.truncate(path, path.stat().st_size * 3 // 4)
    read(path, pristine.bounds, pristine)
    for part in path.parent.glob("spool.db*"):
        if ".damaged" not in part.name:
            part.unlink()

    with opened(path) as queue:
        assert (0, 0, 0, 0) == (queue.head, queue.end, queue.records, queue.lost)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_reading_never_hangs(path: Path, seed: int, share: float) -> None:
    """A search that fails costs a jump: their number is bound to rows and damaged pages."""
    rng = chance(f"{seed} {share}")
    content = bytearray(path.read_bytes())
    pages = rng.sample(range(1, len(content) // PAGE), int(share * len(content) / PAGE))
    for page in pages:
        content[page * PAGE : (page + 1) * PAGE] = rng.choice([bytes(PAGE), rng.randbytes(PAGE)])
    path.write_bytes(content)

    queries = 0

    def asked(_: str) -> None:
        nonlocal queries
        queries += 1

    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.set_trace_callback(asked)
        for table in ("spooled_events", "spooled_dead_letters", "nowhere"):
            seqs = [row[0] for row in salvage.rows(connection, table, COLUMNS)]
            assert sorted(set(seqs)) == seqs
    assert queries <= 2 * 400 + 500 * (len(pages) + 3)


def test_keys_out_of_order_lead_nobody_round_in_circles(tmp_path: Path) -> None:
    """A search in a tree with one flipped key may find a row before where it began."""
    path = tmp_path / "table.db"
    with edited(path) as connection:
        connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, payload BLOB)")
        rows = ((1000 * n, b"%06d" % n * 50) for n in range(1, 600))
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    pristine = path.read_bytes()
    root = pristine[PAGE : 2 * PAGE]
    assert root[0] == 0x05
    cells = int.from_bytes(root[3:5], "big")
    for cell in range(cells):
        at = int.from_bytes(root[12 + 2 * cell : 14 + 2 * cell], "big")
        for flipped in (0x01, 0x40):
            content = bytearray(pristine)
            content[PAGE + at + 4] ^= flipped  # the first byte of the key, after the page number
            path.write_bytes(content)
            with closing(sqlite3.connect(path)) as connection:
                found = [seq for seq, _ in salvage.rows(connection, "t", "seq, payload")]
            assert sorted(set(found)) == found
            assert len(found) > 250


def test_an_island_between_damaged_leaves_is_found(tmp_path: Path) -> None:
    """Leaves alternate: two damaged, one whole. Rows of each whole one come back."""
    path = tmp_path / "table.db"
    with edited(path) as connection:
        connection.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, payload BLOB)")
        rows = ((1000 * n, b"%06d" % n * 50) for n in range(600))
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    content = bytearray(path.read_bytes())
    leaves = [at for at in range(PAGE, len(content), PAGE) if content[at] == 0x0D]
    for n, at in enumerate(leaves):
        if n % 3:
            content[at : at + PAGE] = bytes(PAGE)
    path.write_bytes(content)
    whole = {n for n in range(600) if b"%06d" % n * 50 in content}

    with closing(sqlite3.connect(path)) as connection:
        found = {seq // 1000 for seq, _ in salvage.rows(connection, "t", "seq, payload")}

    assert whole >= found
    assert len(whole) * 0.9 <= len(found), f"{len(found)} of {len(whole)}"
