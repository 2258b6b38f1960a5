"""The rooms of a backfill by themselves: what it takes, whose it is, and what it remembers."""

import gzip
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.clock import SystemClock
from agent.config.sections import Source
from agent.core.discovery import Seen, file_key
from agent.core.identity import Checkpoint
from agent.core.policy import ClientQuotaPolicy
from agent.core.quota import ClientLimits
from agent.errors import ConfigError, StateOwned, StoreError
from agent.harvester import first_generation, starting_at
from agent.opener import Descriptor
from agent.operator.backfill import job as jobs
from agent.operator.backfill import origins
from agent.operator.backfill.job import Asked
from agent.operator.backfill.origins import Known, Origins, checkpoints, running
from agent.operator.backfill.selection import Selection, Wanted, select
from agent.store import Store
from tests.fakes import FakeClock

LINES = b"".join(b'{"n":%d,"text":"enough of it to be known by"}\n' % n for n in range(100))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "feedback").mkdir()
    return Source(root=tmp_path / "feedback")


def put(path: Path, content: bytes = LINES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def chosen(source: Source, *paths: Path, **wanted: object) -> Selection:
    asked = Wanted(paths=tuple(map(str, paths)), **wanted)  # type: ignore[arg-type]
    return select(asked, source, source.root.parent / "state", FakeClock())


def clients(selection: Selection) -> dict[str, str]:
    return {seen.path: seen.client for seen in selection.files}


# ---- what it takes


def test_a_client_is_named_by_the_path_below_the_root(tmp_path: Path, source: Source) -> None:
    put(source.root / "checkout/old/a.jsonl.1.gz")
    put(source.root / "b.jsonl")
    put(source.root / "checkout/c.txt")
    named = put(source.root / "search/notes.txt")

    found = clients(chosen(source, source.root / "checkout", source.root / "b.jsonl", named))

    assert {
        "checkout/old/a.jsonl.1.gz": "checkout",
        "b.jsonl": "default",
        "search/notes.txt": "search",
    } == found, "a file that is named is taken, whatever its name"
    deeper = chosen(replace(source, client_depth=2), source.root)
    assert "checkout/old" == clients(deeper)["checkout/old/a.jsonl.1.gz"]


def test_outside_of_the_root_somebody_must_say_whose_it_is(tmp_path: Path, source: Source) -> None:
    path = put(tmp_path / "archive/checkout/a.jsonl")
    with pytest.raises(ConfigError, match="say --client NAME, or --root DIR"):
        chosen(source, path)

    assert {"checkout/a.jsonl": "checkout"} == clients(
        chosen(source, path, root=str(tmp_path / "archive"))
    )
    assert {"a.jsonl": "old"} == clients(chosen(source, path, client="old"))
    assert {"a.jsonl": "sidecar"} == clients(chosen(replace(source, client="sidecar"), path))


def test_what_the_agent_follows_is_told_apart(source: Source) -> None:
    """By its own patterns, its depth, and how old a file it begins with."""
    put(source.root / "checkout/a.jsonl")
    put(source.root / "checkout/a.jsonl.1.gz")
    old = put(source.root / "checkout/b.jsonl")
    os.utime(old, (1e9, 1e9))
    its = replace(source, exclude=("*.gz",), ignore_older_s=3600.0)

    found = chosen(its, source.root, include=("*",))

    assert 3 == len(found.files)
    assert ("checkout/a.jsonl",) == found.followed


def test_links_and_the_state_directory_are_left_out(tmp_path: Path, source: Source) -> None:
    """The agent reads no links either; its audit log looks like feedback."""
    put(tmp_path / "state/audit.jsonl")
    (source.root / "a.jsonl").symlink_to(put(tmp_path / "secret.jsonl"))

    found = chosen(source, tmp_path, root=str(tmp_path))

    assert {"secret.jsonl"} == set(clients(found))
    assert {"feedback/a.jsonl": "symlink"} == {left.path: left.why for left in found.skipped}


def test_a_file_that_was_replaced_is_another(source: Source) -> None:
    path = put(source.root / "checkout/a.jsonl")
    found = chosen(source, path)
    path.rename(source.root / "kept")
    put(path)

    assert () == found.scan().files
    (source.root / "kept").replace(path)
    assert 1 == len(found.scan().files)


# ---- what it remembers


def asked(**more: object) -> Asked:
    fields = {"wanted": Wanted(paths=("/a",)), "topic": "events", **more}
    return Asked(**fields)  # type: ignore[arg-type]


def begin(directory: Path, what: Asked, *, again: bool = False) -> jobs.Job:
    return jobs.begin(directory, what, again=again, node="n", clock=FakeClock())


def stored(directory: Path) -> int:
    return len(checkpoints(directory) or [])


def settle(directory: Path) -> None:
    store = Store.open(directory, "n")
    store.save([row_of(put(directory / "x"))])
    store.close()


def test_a_job_goes_on_until_it_is_done_and_again_only_if_forced(tmp_path: Path) -> None:
    """A forced one that was cut short goes on as well, and does not begin again and again."""
    what = asked()
    job = begin(tmp_path, what)
    settle(tmp_path)
    assert (2, 1) == (begin(tmp_path, what).lives, stored(tmp_path))

    forced = begin(tmp_path, what, again=True)
    assert (1, True, 0) == (forced.lives, forced.again, stored(tmp_path))
    settle(tmp_path)
    assert 1 == stored(tmp_path), "cut short"
    assert 2 == begin(tmp_path, what, again=True).lives
    assert begin(tmp_path, what).again, "who forgets it goes on with it"
    assert 1 == stored(tmp_path)

    jobs.end(tmp_path, job, FakeClock())
    assert 1 == stored(tmp_path)
    assert 1 == begin(tmp_path, what, again=True).lives
    assert 0 == stored(tmp_path)


def test_each_job_has_a_state_of_its_own(tmp_path: Path) -> None:
    """One that left lines out by their time knows nothing of those it left out."""
    names = {asked().name, asked(topic="other").name, asked(since_s=1.0).name}
    assert 3 == len(names)
    begin(tmp_path, asked())
    with pytest.raises(ConfigError, match="another backfill keeps its state"):
        begin(tmp_path, asked(topic="other"))


def test_a_job_runs_once_at_a_time(tmp_path: Path) -> None:
    begin(tmp_path, asked())
    store = Store.open(tmp_path, "n")
    try:
        with pytest.raises(StateOwned):
            begin(tmp_path, asked(), again=True)
    finally:
        store.close()


def test_a_job_that_cannot_be_read_is_not_guessed(tmp_path: Path) -> None:
    put(tmp_path / jobs.FILE, b"{")
    with pytest.raises(StoreError, match="delete it to begin anew"):
        begin(tmp_path, asked())


# ---- who files are


def row_of(path: Path, watermark: int = len(LINES), **more: object) -> Checkpoint:
    """Return what the agent would have of ``path``."""
    with Descriptor(os.open(path, os.O_RDONLY)) as file:
        first = first_generation(file.birth, path.name, "checkout")
        return starting_at(watermark, file, replace(first, **more))


def judged(path: Path, known: Known) -> tuple[Checkpoint, str]:
    made = Origins(known, client=None, clock=SystemClock())  # births are of the real one
    with Descriptor(os.open(path, os.O_RDONLY)) as file:
        status = path.stat()
        seen = Seen(
            path.name, "checkout", file_key(status.st_dev, status.st_ino), status.st_size, 0
        )
        row = made.of(file, seen)
    return row, made.kinds[seen.key]


def known(rows: Iterable[Checkpoint], sent: Iterable[Checkpoint] = ()) -> Known:
    return Known([*rows], [*sent], readable=True)


def test_the_very_file_begins_behind_what_was_sent(tmp_path: Path) -> None:
    """With the generation that it had. What is known and was not sent there is sent."""
    path = put(tmp_path / "a.jsonl")
    row = row_of(path, 2000, generation=3)

    assert (2000, 3) == _begins(*judged(path, known([row], [row])), "same_file")
    assert (0, 3) == _begins(*judged(path, known([row])), "same_file")
    less, more = (row_of(path, offset, generation=3) for offset in (500, 900))
    assert (900, 3) == _begins(*judged(path, known([row], [less, more])), "same_file")


def _begins(row: Checkpoint, kind: str, expected: str) -> tuple[int, int]:
    assert expected == kind
    return row.watermark, row.generation


def test_what_was_sent_counts_only_where_the_content_is_the_same(tmp_path: Path) -> None:
    """Else lines would be passed over that nobody sent."""
    path = put(tmp_path / "a.jsonl")
    row, lie = row_of(path, 2000), row_of(put(tmp_path / "other", LINES[::-1]), 1500)
    lie = replace(lie, birth=row.birth)

    assert (0, 0) == _begins(*judged(path, known([row], [lie])), "same_file")


def test_a_file_with_other_content_is_another_generation(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl")
    row = row_of(path, 2000, generation=3)
    with path.open("r+b") as file:
        file.write(b"#" * 100)

    assert (0, 4) == _begins(*judged(path, known([row], [row])), "changed")


def test_a_copy_is_who_its_original_was(tmp_path: Path) -> None:
    """It continues it, or begins as it."""
    path = put(tmp_path / "a.jsonl")
    copy = put(tmp_path / "a.jsonl.1", LINES + b"more\n")
    row = row_of(path, generation=2)

    continued, kind = judged(copy, known([row], [row]))
    assert (len(LINES), 2) == _begins(continued, kind, "copy")
    again, _ = judged(copy, known([row]))
    assert (row.birth, 0) == (again.birth, again.watermark)
    assert row.source_id == again.source_id == continued.source_id


def test_a_stranger_is_itself_and_that_nobody_knows_is_said(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl")
    assert (0, 0) == _begins(*judged(path, known([])), "unknown_to_agent")
    unreadable = Known([], [], readable=False)
    assert (0, 0) == _begins(*judged(path, unreadable), "nobody_knows")


def test_checkpoints_are_read_while_their_owner_writes_them(tmp_path: Path) -> None:
    """What is read was committed together: half of a transaction would be a lie."""
    state, rows = tmp_path / "state", [row_of(put(tmp_path / f"{n}.jsonl")) for n in range(20)]
    assert [] == checkpoints(state), "nobody was ever here"
    store, stopped = Store.open(state, "n"), threading.Event()
    store.save(rows)

    def write() -> None:
        generation = 0
        while not stopped.is_set():
            generation += 1
            store.save([replace(row, path=f"{generation}") for row in rows])

    writing = threading.Thread(target=write)
    writing.start()
    try:
        assert running(state)
        for _ in range(20):
            found = checkpoints(state)
            assert found is not None
            assert 20 == len(found)
            assert 1 == len({row.path for row in found} - {row.path for row in rows} or {""})
    finally:
        stopped.set()
        writing.join()
        store.close()
    assert not running(state)
    assert 20 == len(checkpoints(state) or [])


def test_a_copy_counts_only_where_the_log_was_not_written_back_meanwhile(tmp_path: Path) -> None:
    """A database of before and a log of after make rows that never were. A longer log is no matter:
    what is half written at its end does not count."""
    rows, path = [row_of(put(tmp_path / "x"))], tmp_path / "state/checkpoints.db"
    store = Store.open(path.parent, "n")
    store.save(rows)
    before = origins._stamp(path)
    store.save(rows)
    assert before == origins._stamp(path)

    store._database.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert before != origins._stamp(path)
    store.save(rows)
    assert before != origins._stamp(path)
    store.close()


def test_a_database_that_is_none_gives_no_checkpoints(tmp_path: Path) -> None:
    put(tmp_path / "checkpoints.db", gzip.compress(b"no database"))
    assert checkpoints(tmp_path) is None


# ---- how fast


def test_all_clients_together_wait_where_one_has_taken_too_much() -> None:
    clock = FakeClock()
    limits = ClientLimits(ClientQuotaPolicy(), None, clock.monotonic, together_per_s=100.0)
    assert 0.0 == limits.wait_s("a") == limits.wait_s("b")

    limits.take("a", events=210, read_bytes=1, dead_letters=0)

    assert limits.wait_s("b") == pytest.approx(2.0, abs=0.01)
    assert "together_per_s" == limits.reason("b")
    clock.advance(2.01)
    assert 0.0 == limits.wait_s("a")
