"""One queue of the spool against a plain list: the same rows, the same totals, every loss once."""

import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.batch import Batch
from agent.core.policy import GIB
from agent.errors import StoreError
from agent.queue import Bounds, Limits, Queue, table_of
from agent.rows import Stored
from agent.spool import Spool

MIB = 1 << 20
ALL = 1 << 60
CAP_SYS_ADMIN = 21


def batch(payload: bytes, count: int = 1, partition: int = -1) -> Batch:
    """Return a batch as it lies in the spool: nothing looks into its payload here."""
    return Batch(
        partition=partition,
        count=count,
        payload=payload,
        codec=len(payload) % 5,
        first_ms=1_700_000_000_000 + len(payload),
        max_ms=1_700_000_000_500 + count,
        raw_bytes=3 * len(payload),
        opened_at_s=0.0,
        chunks=[],
    )


def chance(seed: object) -> random.Random:
    return random.Random(str(seed))  # noqa: S311 - to be repeated, not to be secret


def fields(b: Batch) -> tuple[object, ...]:
    return b.partition, b.count, b.codec, b.first_ms, b.max_ms, b.raw_bytes, b.payload


@contextmanager
def opened(path: Path, at_least: Bounds = (0, 0), name: str = "events") -> Iterator[Queue]:
    with closing(Spool(path, {name: at_least})) as spool:
        yield spool.queues[name]


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """Edit the closed file behind the agent's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def flip(path: Path, seq: int, at: int, name: str = "events") -> None:
    """Flip a bit of the payload of row ``seq``."""
    table = table_of(name)
    with edited(path) as connection:
        query = f"SELECT payload FROM {table} WHERE seq = ?"  # noqa: S608
        payload = bytearray(connection.execute(query, (seq,)).fetchone()[0])
        payload[at % len(payload)] ^= 1 << at % 8
        connection.execute(
            f"UPDATE {table} SET payload = ? WHERE seq = ?",  # noqa: S608
            (bytes(payload), seq),
        )


def tiling(queue: Queue) -> list[Stored]:
    """Return every row, after checking that they tile ``[head, end)``."""
    found = queue.oldest(queue.head, ALL)
    at = queue.head
    for row in found:
        assert at == row.seq
        assert row.records > 0
        at += row.records
    assert queue.end == at
    return found


def held(rows: Iterable[Stored]) -> dict[int, tuple[object, ...]]:
    return {row.seq: fields(row.batch) for row in rows if row.batch is not None}


# ---- against a plain list


@dataclass
class Model:
    """What the queue must hold; ``flipped`` are the rows that nobody has read since."""

    head: int = 0
    end: int = 0
    rows: dict[int, Batch] = field(default_factory=dict)
    flipped: set[int] = field(default_factory=set)

    def lost_by_reading(self) -> int:
        lost = sum(self.rows.pop(seq).count for seq in self.flipped)
        self.flipped.clear()
        return lost

    def dropped(self, start: int, bytes_min: int) -> int:
        freed = records = 0
        for seq in sorted(seq for seq in self.rows if seq >= start):
            if freed >= bytes_min:
                break
            gone = self.rows.pop(seq)
            self.flipped.discard(seq)
            freed += len(gone.payload)
            records += gone.count
        return records


BATCHES = st.builds(
    lambda size, count, partition, seed: batch(chance(seed).randbytes(size), count, partition),
    size=st.sampled_from([1, 7, 130, 900, 5000, 40_000]),
    count=st.integers(1, 300),
    partition=st.sampled_from([-1, -1, 0, 11]),
    seed=st.integers(0, 1 << 16),
)
STEPS = st.one_of(
    st.tuples(st.just("put"), st.lists(BATCHES, max_size=5)),
    st.tuples(st.just("drop_below"), st.integers(0, 20)),
    st.tuples(st.just("drop_oldest"), st.tuples(st.integers(0, 20), st.integers(0, 60_000))),
    st.tuples(st.just("thin"), st.lists(st.tuples(st.integers(0, 20), BATCHES), max_size=3)),
    st.tuples(st.just("flip"), st.tuples(st.integers(0, 20), st.integers(0, 1 << 20))),
    st.tuples(st.just("reopen"), st.none()),
    st.tuples(st.just("read"), st.none()),
)


class Player:
    """Plays one program on a real file and on the model, and compares them after each step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = Model()
        self.spool = Spool(path, {})

    @property
    def queue(self) -> Queue:
        return self.spool.queues["events"]

    def reopen(self) -> None:
        self.spool.close()
        self.spool = Spool(self.path, {})
        assert 0 == self.queue.lost

    def starts(self) -> list[int]:
        """Return where rows begin, as far as whoever has not read anything may know."""
        return [self.model.head, *sorted(self.model.rows), self.model.end]

    def step(self, name: str, argument: object) -> None:
        getattr(self, f"do_{name}")(argument)
        model, queue = self.model, self.queue
        assert (model.head, model.end) == (queue.head, queue.end)
        assert sum(b.count for b in model.rows.values()) == queue.records
        assert sum(len(b.payload) for b in model.rows.values()) == queue.bytes

    def do_put(self, batches: list[Batch]) -> None:
        self.queue.put(batches)
        for b in batches:
            self.model.rows[self.model.end] = b
            self.model.end += b.count

    def do_drop_below(self, nth: int) -> None:
        starts = self.starts()
        seq = starts[nth % len(starts)]
        self.queue.drop_below(seq)
        self.model.head = seq
        self.model.rows = {at: b for at, b in self.model.rows.items() if at >= seq}
        self.model.flipped = {at for at in self.model.flipped if at >= seq}

    def do_drop_oldest(self, wanted: tuple[int, int]) -> None:
        starts = self.starts()
        start = starts[wanted[0] % len(starts)]
        assert self.model.dropped(start, wanted[1]) == self.queue.drop_oldest(start, wanted[1])

    def do_thin(self, wanted: list[tuple[int, Batch]]) -> None:
        """Leave that batch in the place of a row, or nothing where it holds as many records."""
        whole = sorted(set(self.model.rows) - self.model.flipped)
        chosen = {whole[nth % len(whole)]: left for nth, left in wanted} if whole else {}
        thinned = []
        for seq, left in chosen.items():
            before = self.model.rows.pop(seq)
            less = left if left.count < before.count else None
            thinned.append((Stored(seq, before.count, before), less))
            if less is not None:
                self.model.rows[seq] = less
        self.queue.thin(thinned)

    def do_flip(self, where: tuple[int, int]) -> None:
        whole = sorted(set(self.model.rows) - self.model.flipped)
        if whole:
            seq = whole[where[0] % len(whole)]
            self.spool.close()
            flip(self.path, seq, where[1])
            self.model.flipped.add(seq)
            self.spool = Spool(self.path, {})

    def do_reopen(self, _: None) -> None:
        self.reopen()

    def do_read(self, _: None) -> None:
        before, lost = self.queue.lost, self.model.lost_by_reading()
        found = tiling(self.queue)
        assert {seq: fields(b) for seq, b in self.model.rows.items()} == held(found)
        assert before + lost == self.queue.lost
        assert found == tiling(self.queue) or held(found) == held(tiling(self.queue))
        assert before + lost == self.queue.lost


@settings(max_examples=80, deadline=None, print_blob=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(program=st.lists(STEPS, max_size=25))
def test_it_is_a_list_that_outlives_us(tmp_path: Path, program: list[tuple[str, object]]) -> None:
    """Whatever is done in whatever order: rows tile, totals are true, each loss is counted once."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        player = Player(Path(name) / "spool.db")
        for step, argument in (*program, ("read", None), ("reopen", None), ("read", None)):
            player.step(step, argument)
        player.spool.close()


def expected_part(rows: list[Stored], records_max: int) -> int:
    """Return how many of ``rows`` one call may return, by the words of its docstring."""
    for n in range(1, len(rows)):
        if sum(row.records for row in rows[: n + 1]) <= records_max:
            continue
        before = [row.batch for row in rows[:n] if row.batch is not None]
        following = [row.batch for row in rows[n:] if row.batch is not None]
        between_lost = rows[n].batch is None
        inside = bool(before) and before[-1].partition >= 0
        inside = inside and (between_lost or following[0].partition >= 0)
        if not inside:
            return n
    return len(rows)


@settings(max_examples=60, deadline=None, print_blob=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from([-1, 0, 3]), st.booleans()), min_size=1
    ),
    records_max=st.integers(0, 200),
)
def test_a_read_is_bounded_and_takes_no_partitions_apart(
    tmp_path: Path, rows: list[tuple[int, int, bool]], records_max: int
) -> None:
    """Rows with partitions lay unordered in flight: half of them would be out of file order."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        path = Path(name) / "spool.db"
        with opened(path) as queue:
            queue.put(batch(os.urandom(40), count, partition) for count, partition, _ in rows)
        starts = [sum(count for count, _, _ in rows[:n]) for n in range(len(rows))]
        for start, (_, _, damaged) in zip(starts, rows, strict=True):
            if damaged:
                flip(path, start, 5)
        with opened(path) as queue:
            everything: list[Stored] = []
            at = 0
            while at < queue.end:
                part = queue.oldest(at, records_max)
                rest = tiling(queue)[len(everything) :]
                assert expected_part(rest, records_max) == len(part)
                everything += part
                at = part[-1].seq + part[-1].records
            assert starts == [row.seq for row in everything]
            assert [] == queue.oldest(queue.end, records_max)


# ---- damage inside of values, which SQLite does not see


@pytest.mark.parametrize("size", [1, 100, 4000, 100_000])
@pytest.mark.parametrize("seed", range(3))
def test_one_flipped_bit_costs_its_row_and_is_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int, seed: int
) -> None:
    path, rng = tmp_path / "spool.db", chance(f"{size} {seed}")
    batches = [batch(rng.randbytes(size), n + 1) for n in range(5)]
    with opened(path) as queue:
        queue.put(batches)
    flip(path, 3, rng.randrange(size * 8))

    with opened(path) as queue:
        assert 0 == queue.lost
        assert {0: 1, 1: 2, 6: 4, 10: 5} == {r.seq: r.records for r in tiling(queue) if r.batch}
        assert 3 == queue.lost
        tiling(queue)
        assert 3 == queue.lost
    with opened(path) as queue:
        assert [True, True, False, True, True] == [row.batch is not None for row in tiling(queue)]
        assert (0, 12, 4 * size) == (queue.lost, queue.records, queue.bytes)

    assert ["spool.rows_damaged"] == [record.getMessage() for record in caplog.records]


COLUMNS = ["seq", "partition", "count", "codec", "first_ms", "max_ms", "raw_bytes", "crc"]


@pytest.mark.parametrize("bit", [0, 1, 5, 40])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_flipped_bit_in_any_column_is_found(tmp_path: Path, column: str, bit: int) -> None:
    """A batch with another partition, codec or count would be worse than none."""
    path = tmp_path / "spool.db"
    batches = [batch(os.urandom(50), 100) for _ in range(5)]
    with opened(path) as queue:
        queue.put(batches)
        bounds = queue.head, queue.end
    with edited(path) as connection:
        flipped = f"({column} | {1 << bit}) - ({column} & {1 << bit})"
        connection.execute(f"UPDATE spooled_events SET {column} = {flipped} WHERE seq = 200")  # noqa: S608

    for reopened in (False, True):
        with opened(path, bounds) as queue:
            given = held(tiling(queue))
            assert {at: fields(batches[at // 100]) for at in (0, 100, 300, 400)} == given
            assert (0 if reopened else 100, 400) == (queue.lost, queue.records)
            assert bounds == (queue.head, queue.end)


@pytest.mark.parametrize(
    "change",
    [
        "payload = CAST(x'fffefd' AS TEXT)",
        "payload = 7",
        "payload = x''",
        "codec = CAST(x'ff' AS TEXT)",
        "first_ms = 0.5",
        "count = 0",
        "count = -3",
        "count = 'many'",
        "count = 9223372036854775807",
        "codec = -1",
    ],
)
@pytest.mark.parametrize("seq", [0, 100, 200])
def test_a_value_of_a_wrong_kind_stops_no_start_to_come(
    tmp_path: Path, change: str, seq: int
) -> None:
    """One bit makes text of a blob; SQLite minds only when it is read, in each life again."""
    path = tmp_path / "spool.db"
    with opened(path) as queue:
        queue.put(batch(os.urandom(50), 100) for _ in range(3))
    with edited(path) as connection:
        connection.execute(f"UPDATE spooled_events SET {change} WHERE seq = ?", (seq,))  # noqa: S608

    for lost in (100, 0):
        with opened(path) as queue:
            assert {0, 100, 200} - {seq} == set(held(tiling(queue)))
            assert (lost, 200, 100) == (queue.lost, queue.records, queue.bytes)


@pytest.mark.parametrize("change", ["head = 200", "head = 4611686018427387904", '"end" = 5000',
                                    "head = 'x'", "name = 'evfnts'", "crc = 0",
                                    "head = CAST(x'ff' AS TEXT)"])  # fmt: skip
def test_damaged_bounds_neither_drop_rows_nor_invent_losses(tmp_path: Path, change: str) -> None:
    path = tmp_path / "spool.db"
    with opened(path) as queue:
        queue.put(batch(os.urandom(50), 100) for _ in range(4))
        queue.drop_below(100)
    with edited(path) as connection:
        connection.execute(f"UPDATE bounds SET {change} WHERE name = 'events'")  # noqa: S608

    for at_least in ((100, 400), (0, 0)):
        with opened(path, at_least) as queue:
            assert [100, 200, 300] == [row.seq for row in tiling(queue) if row.batch]
            assert (100, 400, 0) == (queue.head, queue.end, queue.lost)


# ---- dropping, and space


def test_what_was_dropped_is_one_row_whatever_it_was_before(tmp_path: Path) -> None:
    """A day of dropping would fill the disk with rows that say so."""
    path = tmp_path / "spool.db"
    dropped = 0
    with opened(path) as queue:
        queue.put([batch(b"in flight", 10, partition=3)])
        for _ in range(50):
            queue.put([batch(os.urandom(1000), 7)])
            dropped += queue.drop_oldest(10, 1)
        queue.put([batch(b"kept", 2)])
        assert 50 * 7 == dropped
        assert [(0, 10), (10, 350), (360, 2)] == [(r.seq, r.records) for r in tiling(queue)]
    with opened(path) as queue:
        assert [10, 350, 2] == [row.records for row in tiling(queue)]
        assert (0, 12) == (queue.lost, queue.records)


def test_the_file_shrinks_once_everything_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    with opened(path) as queue:
        empty = path.stat().st_size
        for _ in range(8):
            queue.put([batch(os.urandom(100_000), 10) for _ in range(10)])
        assert 8 * MIB <= queue.bytes + MIB
        queue.drop_below(queue.end)
        assert (0, 0, []) == (queue.records, queue.bytes, tiling(queue))
        queue.put([batch(b"next")])
        everything = sum(part.stat().st_size for part in tmp_path.glob("spool.db*"))
        assert everything <= 4 * MIB + 20 * 4096, "more than journal_size_limit stays"

    assert path.stat().st_size <= max(empty, 4096) + 20 * 4096
    with opened(path) as queue:
        assert [800] == [row.seq for row in tiling(queue)]


# ---- limits, on file systems of a known size


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 8 MiB of its own. ``remount`` changes its size."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    if not capabilities >> CAP_SYS_ADMIN & 1:
        pytest.skip("CAP_SYS_ADMIN is missing: no small file system can be mounted")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def remount(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def fill(disk: Path, leave: int) -> None:
    """Let somebody else take all of ``disk`` but ``leave`` bytes."""
    stat = os.statvfs(disk)
    (disk / "others").write_bytes(b"\0" * (stat.f_bavail * stat.f_frsize - leave))


def test_bytes_max_is_of_the_payloads(tmp_path: Path) -> None:
    with opened(tmp_path / "spool.db") as queue:
        queue.put([batch(os.urandom(1000)), batch(os.urandom(999))])
        assert queue.full(Limits(2000, 0.0)) is None
        queue.put([batch(b"1")])
        assert "bytes_max" == queue.full(Limits(2000, 0.0))
        queue.drop_oldest(0, 1)
        assert queue.full(Limits(2000, 0.0)) is None


def test_without_a_limit_it_takes_a_twentieth_of_the_disk(tmpfs: Path) -> None:
    share = 8 * MIB // 20
    with opened(tmpfs / "spool.db") as queue:
        queue.put([batch(os.urandom(share - 1))])
        assert queue.full(Limits(None, 0.0)) is None
        queue.put([batch(b"1")])
        assert "bytes_max" == queue.full(Limits(None, 0.0))


def test_without_a_limit_it_never_takes_more_than_a_gib(tmpfs: Path) -> None:
    remount(tmpfs, "100g")
    with opened(tmpfs / "spool.db") as queue:
        queue.bytes = GIB - 1
        assert queue.full(Limits(None, 0.0)) is None
        queue.bytes = GIB
        assert "bytes_max" == queue.full(Limits(None, 0.0))


def test_the_rest_of_the_disk_belongs_to_others(tmpfs: Path) -> None:
    with opened(tmpfs / "spool.db") as queue:
        fill(tmpfs, leave=8 * MIB // 10 + 8192)
        assert queue.full(Limits(GIB, 0.1)) is None
        (tmpfs / "more").write_bytes(b"\0" * 16384)
        assert "disk_free_min" == queue.full(Limits(GIB, 0.1))
        assert queue.full(Limits(GIB, 0.0)) is None


def test_a_full_disk_is_a_store_error_and_takes_nothing_back(tmpfs: Path) -> None:
    """What was committed counts as settled, and what was not must not count as put by."""
    path = tmpfs / "spool.db"
    kept = [batch(os.urandom(50_000), 5) for _ in range(10)]
    with opened(path) as queue:
        queue.put(kept)
        fill(tmpfs, leave=0)
        before = queue.head, queue.end, queue.records, queue.bytes
        for _ in range(2):
            with pytest.raises(StoreError, match="full"):
                queue.put([batch(os.urandom(MIB), 3)])
            assert before == (queue.head, queue.end, queue.records, queue.bytes)
        assert 10 == len(tiling(queue))
        (tmpfs / "others").unlink()
        queue.put([batch(b"next", 2)])
        assert (50, 52) == (tiling(queue)[-1].seq, queue.end)
    with opened(path, (0, 52)) as queue:
        given = held(tiling(queue))
        assert [fields(b) for b in kept] == list(given.values())[:10]
        assert (52, 0) == (queue.records, queue.lost)


def test_a_start_on_a_full_disk_puts_nothing_aside(tmpfs: Path) -> None:
    """A full disk is no damage: once there is room everything is there."""
    path = tmpfs / "spool.db"
    with opened(path) as queue:
        queue.put(batch(os.urandom(1000)) for _ in range(20))
    fill(tmpfs, leave=0)
    with pytest.raises(StoreError, match=str(path)):
        Spool(path, {"events": (0, 40)})
    (tmpfs / "others").unlink()

    assert not list(tmpfs.glob("*.damaged"))
    with opened(path, (0, 40)) as queue:
        assert (20, 20) == (len(held(tiling(queue))), queue.lost)


def test_whatever_the_disk_refuses_is_a_store_error(tmp_path: Path) -> None:
    """``sqlite3.Error`` means nothing to those who ask."""
    with opened(tmp_path / "spool.db") as queue:
        queue.put([batch(b"a"), batch(b"b")])
    for refused in (
        lambda: queue.put([batch(b"c")]),
        lambda: queue.oldest(0, 10),
        lambda: queue.drop_below(1),
        lambda: queue.drop_oldest(0, 1),
    ):
        with pytest.raises(StoreError, match="closed"):
            refused()
    assert (0, 2, 2, 2) == (queue.head, queue.end, queue.records, queue.bytes)

    gone = tmp_path / "gone"
    gone.mkdir()
    with opened(gone / "spool.db") as queue:
        shutil.rmtree(gone)
        with pytest.raises(StoreError, match="gone"):
            queue.full(Limits(None, 0.1))


def test_rows_are_thinned_together_or_not_at_all(tmp_path: Path) -> None:
    """What is left of a row must never lie there without what it was made of being gone, nor the
    other way round."""
    path = tmp_path / "spool.db"
    with opened(path) as queue:
        queue.put([batch(b"one", 3), batch(b"two", 3)])
        before = held(tiling(queue))
        broken = batch(b"", 1)
        broken.partition = None  # type: ignore[assignment] # which no row may have
        rows = queue.oldest(0, 100)
        with pytest.raises(StoreError):
            queue.thin([(rows[0], batch(b"less", 1)), (rows[1], broken)])
        assert (before, 6, 6) == (held(tiling(queue)), queue.records, queue.bytes)
    with opened(path) as queue:
        assert (before, 0) == (held(tiling(queue)), queue.lost)
