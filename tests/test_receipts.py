"""Receipts on disk: bounded, readable while they are written, and never in the way of shipping."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from agent import receipts
from agent.core.batch import Batch
from agent.core.ledger import Chunk, Ledger
from agent.core.policy import MIB, ReceiptsPolicy
from agent.receipts import FILES_MAX, NAME, Receipts, read
from agent.telemetry import Metrics
from tests.fakes import FakeClock
from tests.patience import WITHIN_S

Make = Callable[..., Receipts]
TOPICS = {"events": "feedback-events", "dead_letters": "feedback-events-dlq"}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def make(tmp_path: Path, clock: FakeClock, metrics: Metrics) -> Make:
    def made(**policy: float) -> Receipts:
        chosen = ReceiptsPolicy(**policy)  # type: ignore[arg-type]  # by name, from a test
        return Receipts(tmp_path, chosen, TOPICS, clock=clock, metrics=metrics)

    return made


def batch(source: str, start: int, end: int, count: int = 3) -> Batch:
    chunk = Chunk(Ledger(start, b"", (source, 0)), start, end, b"", count)
    return Batch(
        partition=2, count=count, payload=b"", codec=0, first_ms=0, max_ms=0, raw_bytes=0,
        opened_at_s=0.0, chunks=[chunk],
    )  # fmt: skip


def on_disk(state_dir: Path) -> int:
    return sum(path.stat().st_size for path in state_dir.glob(f"{NAME}*"))


def ranges(state_dir: Path, since_s: float = 0.0) -> list[tuple[str, int, int]]:
    return [(r.source, r.start, r.end) for r in read(state_dir, since_s)]


async def test_what_was_acknowledged_is_on_disk_after_a_stop(make: Make, tmp_path: Path) -> None:
    kept = make()
    kept.acked("events", batch("a", 0, 30), 7)
    kept.acked("dead_letters", batch("a", 30, 40, 1), -1)
    await kept.close()

    (told,) = read(tmp_path, 0.0)

    acked = {"feedback-events": {"2": (7, 9)}, "feedback-events-dlq": {"2": (-1, -1)}}
    assert ("a", 0, 40, acked) == (told.source, told.start, told.end, told.acked)
    assert 0o600 == (tmp_path / NAME).stat().st_mode & 0o777


async def test_bytes_are_bounded_and_the_oldest_go(make: Make, tmp_path: Path) -> None:
    kept = make(bytes_max=MIB)
    for number in range(60):
        for source in range(200):
            kept.acked("events", batch(f"{source:x}", number, number + 1), number)
        await kept.close()
        assert on_disk(tmp_path) <= MIB + (MIB // FILES_MAX)

    starts = [start for _, start, _ in ranges(tmp_path)]
    assert starts == sorted(starts)
    assert 59 == starts[-1]
    assert 0 < starts[0]


async def test_what_is_too_old_goes(make: Make, clock: FakeClock, tmp_path: Path) -> None:
    kept = make(keep_s=80.0)
    for number in range(40):
        kept.acked("events", batch("a", number, number + 1), number)
        await kept.close()
        os.utime(tmp_path / NAME, (clock.wall(), clock.wall()))
        clock.advance(5.0)
    oldest = min(start for _, start, _ in ranges(tmp_path))
    assert 40 - (80 + 2 * 80 / FILES_MAX) / 5 <= oldest
    assert ranges(tmp_path, clock.wall() - 12.0)[0][1] == 38


async def test_after_a_long_rest_nothing_old_stays(
    make: Make, clock: FakeClock, tmp_path: Path
) -> None:
    kept = make(keep_s=80.0)
    for number in range(3):
        kept.acked("events", batch("a", number, number + 1), number)
        await kept.close()
        os.utime(tmp_path / NAME, (clock.wall(), clock.wall()))
        clock.advance(20.0)
    clock.advance(1000.0)
    kept.acked("events", batch("b", 0, 1), 3)
    await kept.close()
    assert [("b", 0, 1)] == ranges(tmp_path)


async def test_a_torn_one_costs_no_other(make: Make, tmp_path: Path) -> None:
    """A crash in the middle of a write."""
    kept = make()
    kept.acked("events", batch("a", 0, 10), 0)
    await kept.close()
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"at":1,"source":"b","gen')
    again = make()
    again.acked("events", batch("c", 0, 10), 0)
    await again.close()
    assert [("a", 0, 10), ("c", 0, 10)] == ranges(tmp_path)


async def test_what_cannot_be_written_is_counted_and_said_once(
    make: Make, metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk must not stop shipping: nothing is raised, and nothing is held."""
    kept = make()
    (tmp_path / NAME).mkdir()
    for number in range(3):
        kept.acked("events", batch("a", number, number + 1), number)
        await kept.close()
    said = [r for r in caplog.records if r.getMessage().startswith("receipts.unwritable")]
    assert 1 == len(said)
    assert 3.0 == metrics.receipts_lost._value.get()
    (tmp_path / NAME).rmdir()
    kept.acked("events", batch("a", 5, 6), 5)
    await kept.close()
    assert [("a", 5, 6)] == ranges(tmp_path)


async def test_a_disk_that_hangs_holds_no_stop_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "CLOSE_S", 0.05)
    released = asyncio.Event()

    async def hang(*_: object) -> None:
        await released.wait()

    kept = make()
    kept.acked("events", batch("a", 0, 1), 0)
    monkeypatch.setattr(asyncio, "to_thread", hang)
    async with asyncio.timeout(WITHIN_S):
        await kept.close()
    released.set()


@pytest.mark.parametrize(("bound", "of"), [("WINDOWS_MAX", 8), ("LIVES_MAX", 4)])
async def test_files_in_crowds_are_written_before_their_time(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, of: int
) -> None:
    """Memory is for so many of them: half of the windows, or all of the files, are written."""
    monkeypatch.setattr(receipts, bound, of)
    kept = make(write_s=3600.0)
    running = asyncio.create_task(kept.run())
    await asyncio.sleep(0)
    for number in range(4):
        kept.acked("events", batch(f"{number}", 0, 1), 0)
    async with asyncio.timeout(WITHIN_S):
        while len(ranges(tmp_path)) < 4:  # noqa: ASYNC110 - nobody is told of a write
            await asyncio.sleep(0.01)
    running.cancel()


async def test_without_them_nothing_is_written(make: Make, tmp_path: Path) -> None:
    kept = make(enabled=False)
    kept.acked("events", batch("a", 0, 1), 0)
    kept.spooled("events", batch("a", 0, 1).places, (0, 2))
    async with asyncio.timeout(WITHIN_S):
        await kept.run()
    await kept.close()
    assert not on_disk(tmp_path)


def test_there_may_be_none(tmp_path: Path) -> None:
    assert [] == [*read(tmp_path, 0.0)]
    assert [] == [*read(tmp_path / "missing", 0.0)]
