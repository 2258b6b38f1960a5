"""The app's side: each line whole, in a file of its own process, whatever the app and the disk do.

A subprocess runs the module as an app has it: copied, without the package.
"""

import ast
import asyncio
import ctypes
import datetime as dt
import errno
import inspect
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import writer
from agent.config.sections import Source
from agent.core import events
from agent.core.decode import Decoded, Decoder
from agent.core.deletion import rotated
from agent.core.policy import SchemaPolicy
from agent.writer import AsyncFeedbackWriter, FeedbackHandler, FeedbackWriter, Refused
from tests.patience import WITHIN_S
from tests.test_queue import fill, tmpfs  # noqa: F401 - a fixture

MODULE = Path(writer.__file__)
EVENT = {"type": "user_feedback", "session_id": "s"}
PAD = "x" * 1000
INCLUDE = ("*.jsonl", "*.jsonl.*", "*.jsonl-*")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "root/checkout"


def files(directory: Path) -> list[Path]:
    """Return all files, in the order in which they were begun by one process."""
    return sorted(directory.glob("*.jsonl*"), key=lambda path: path.stat().st_mtime_ns)


def bodies(directory: Path) -> list[bytes]:
    """Return what stands between newlines; the last one of a file has one too."""
    found = []
    for path in files(directory):
        content = path.read_bytes()
        assert content.endswith(b"\n") or not content, path
        found += [body for body in content.split(b"\n")[:-1] if body]
    return found


def numbers(directory: Path) -> list[int]:
    """Return ``metadata.n`` of each line that is an event."""
    lines = [line for line in bodies(directory) if line.endswith(b"}")]
    return [json.loads(line)["metadata"]["n"] for line in lines]


def numbered(n: int, pad: str = "") -> dict[str, Any]:
    return {**EVENT, "metadata": {"n": n, "pad": pad}}


def app(directory: Path, code: str, python: str = sys.executable) -> str:
    """Run an app that has the module copied beside it. Return what it printed."""
    copied = directory.parent / "app"
    copied.mkdir(parents=True, exist_ok=True)
    shutil.copy(MODULE, copied / "feedback_writer.py")
    (copied / "app.py").write_text(
        "import os, sys, signal, threading, time\n"
        "from feedback_writer import *\n"
        f"directory = {str(directory)!r}\n"
        "def numbered(n, pad=''):\n"
        f"    return {{**{EVENT}, 'metadata': {{'n': n, 'pad': pad}}}}\n"
        f"{code}"
    )
    done = subprocess.run(
        [python, str(copied / "app.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in {0, -9}, done.stderr
    return done.stdout


# ---- one module


def test_it_imports_the_standard_library_alone() -> None:
    """An app copies it as a file."""
    found = set()
    for node in ast.walk(ast.parse(MODULE.read_text())):
        match node:
            case ast.Import(names):
                found |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
            case ast.ImportFrom():
                found.add("agent")
            case _:
                pass
    assert found <= sys.stdlib_module_names


def test_its_syntax_is_that_of_python_3_9() -> None:
    ast.parse(MODULE.read_text(), feature_version=(3, 9))


def test_it_runs_on_python_3_9(directory: Path) -> None:
    python = shutil.which("python3.9")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip("python3.9 is missing")
    app(directory, "w = FeedbackWriter(directory)\nassert w.write(numbered(1))\n", python)
    assert [1] == numbers(directory)


# ---- what a line is


@pytest.mark.parametrize("name", events.EVENT_TYPES)
def test_a_helper_takes_the_fields_of_its_type(name: str) -> None:
    """No less, no more, and the same ones are required."""
    taken = inspect.signature(getattr(FeedbackWriter, name)).parameters
    kind = events.EVENT_TYPES[name]
    own = set(kind.__struct_fields__) - {"event_id", "timestamp", "schema_version"}
    assert own == taken.keys() - {"self"}
    required = {n for n, p in taken.items() if p.default is p.empty} - {"self"}
    assert {field.name for field in msgspec.structs.fields(kind) if field.required} == required


def test_what_the_helpers_write_is_accepted(directory: Path) -> None:
    experiment = str(uuid.uuid4())
    with FeedbackWriter(directory) as w:
        assert w.user_feedback("s", rating=4.5, thumbs="up", comment="é\n🙏", tags=["a"])
        assert w.performance_metrics("m", 12.5, tokens_input=3, custom_metrics={"x": 1})
        assert w.model_response("m", quality_dimensions={"safety": 1.0})
        assert w.system_health("router", "degraded", resources={"cpu_percent": 1})
        assert w.experiment_result(experiment, "v", metrics={"cost": 1}, metadata={"k": [None]})
        assert {"written": 5} == {k: v for k, v in w.stats().items() if k == "written"}
    decoder = Decoder(SchemaPolicy())
    decoded = [decoder.decode(line, time.time_ns() / 1e9) for line in bodies(directory)]
    assert 5 == len(decoded)
    for one, kind in zip(decoded, events.EVENT_TYPES.values(), strict=True):
        assert isinstance(one, Decoded), one
        assert type(one.event) is kind
        assert not one.suspect
        assert not one.extras


def test_id_and_time_are_made_where_the_app_gives_none() -> None:
    """At creation: a line that waits is not younger for it. And a copy keeps its id."""
    mine = {"event_id": str(uuid.uuid4()), "timestamp": "2026-01-01T00:00:00Z"}
    kept = json.loads(writer.line_of({**EVENT, **mine}))
    assert mine == {name: kept[name] for name in mine}
    made = json.loads(writer.line_of({**EVENT, "event_id": None}))
    at = dt.datetime.fromisoformat(made["timestamp"])
    assert abs(at.timestamp() - time.time_ns() / 1e9) < 60
    assert dt.timedelta() == at.utcoffset()


@given(st.lists(st.integers(0, 2**47 * 10**6), min_size=2, max_size=5))
def test_ids_are_uuids_of_version_7_in_the_order_of_time(at_ns: list[int]) -> None:
    made = [uuid.UUID(writer.uuid7(ns)) for ns in sorted(at_ns)]
    assert {7} == {one.version for one in made}
    assert {uuid.RFC_4122} == {one.variant for one in made}
    for one, ns in zip(made, sorted(at_ns), strict=True):
        assert one.int >> 80 == ns // 10**6
    parts = [one.int >> 64 for one in made]
    assert sorted(parts) == parts


def test_ids_do_not_follow_a_seed(directory: Path) -> None:
    """Apps seed ``random`` alike in each process; two events with one id would be one."""
    code = "import random; random.seed(1); print(uuid7(0))"
    assert app(directory, code) != app(directory, code)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(exclude_categories=())), json_values, max_size=4))
def test_whatever_an_app_hands_over_is_one_line_of_utf_8(fields: dict[str, Any]) -> None:
    """Only halves of surrogate pairs are replaced: the agent rejects them."""
    line = writer.line_of(fields)
    assert 1 == line.count(b"\n")
    assert line.endswith(b"\n")
    read = json.loads(line.decode())
    text = json.dumps(fields, ensure_ascii=False)
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        assert fields == {name: read[name] for name in fields}


def test_a_lone_surrogate_is_replaced_and_a_pair_in_two_halves_is_joined() -> None:
    read = json.loads(writer.line_of({"a": "x\ud83dy", "b": "\ud83d\ude4f"}))
    assert ("x\ufffdy", "🙏") == (read["a"], read["b"])


class Colour(Enum):
    RED = "red"


class Scalar:
    """As a number of numpy."""

    def tolist(self) -> float:
        return 1.5


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (
            dt.datetime(2026, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
            "2026-01-01T00:00:00.000000+00:00",
        ),
        (dt.date(2026, 1, 1), "2026-01-01"),
        (Decimal("1.5"), 1.5),
        (Decimal(3), 3),
        (Colour.RED, "red"),
        ({"a"}, ["a"]),
        (os.environ.__class__({"a": "b"}, str, str, str, str), {"a": "b"}),
        (Scalar(), 1.5),
    ],
)
def test_what_has_an_obvious_form_gets_it(value: object, written: object) -> None:
    assert written == json.loads(writer.line_of({"v": value}))["v"]


def circle() -> dict[str, Any]:
    event: dict[str, Any] = {}
    event["self"] = event
    return event


class Liar:
    def tolist(self) -> float:
        raise RuntimeError


@pytest.mark.parametrize(
    "event",
    [
        {"v": math.nan},
        {"v": math.inf},
        {"v": [-math.inf]},
        {"v": Decimal("NaN")},
        {"v": Decimal("Infinity")},
        {math.nan: 1},
        {(1, 2): 1},
        {"v": b"bytes"},
        {"v": object()},
        {"v": Liar()},
        circle(),
        None,
        "text",
        [1],
    ],
)
def test_what_is_no_json_is_refused_and_counted(event: Any, directory: Path) -> None:
    """NaN in a line makes all of it a dead letter. Here the app can see its mistake."""
    with FeedbackWriter(directory) as w:
        assert not w.write(event)
        assert {"refused_not_json": 1} == w.stats()
    assert not files(directory)


def test_a_line_is_as_long_as_the_agent_reads_it_and_no_longer(directory: Path) -> None:
    assert Source().line_bytes_max == writer.LINE_BYTES_MAX
    size = len(writer.line_of(numbered(1))) - 1
    with FeedbackWriter(directory) as w:
        assert w.write(numbered(1, "x" * (writer.LINE_BYTES_MAX - size)))
        assert not w.write(numbered(1, "x" * (writer.LINE_BYTES_MAX - size + 1)))
        assert 1 == w.stats()["refused_oversize"]
    assert [writer.LINE_BYTES_MAX] == [len(line) for line in bodies(directory)]


def test_a_line_that_the_app_encoded_is_written_as_it_is(directory: Path) -> None:
    """But for one that the agent would read as two, or as none."""
    line = b'{"metadata":{"n":1}}\n'
    with FeedbackWriter(directory) as w:
        assert w.write_line(line)
        wrong = [
            b"",
            line[:-1],
            line + line,
            b"\n" + line,
            b"x" * (writer.LINE_BYTES_MAX + 1) + b"\n",
        ]
        assert not any(map(w.write_line, wrong))
        assert 4 == w.stats()["refused_not_json"]
        assert 1 == w.stats()["refused_oversize"]
    assert [line[:-1]] == bodies(directory)


def test_strict_raises_and_says_why(directory: Path) -> None:
    with FeedbackWriter(directory, strict=True) as w, pytest.raises(Refused, match="not_json"):
        w.write({"v": math.nan})
    with pytest.raises(Refused, match="closed"):
        w.write(EVENT)


def test_settings_that_make_no_sense_are_refused(directory: Path) -> None:
    for wrong in ({"fsync": "often"}, {"name": "a/b"}, {"when_full": "x"}, {"bytes_max": 5}):
        with pytest.raises(ValueError, match=r"fsync|name|bytes_max"):
            FeedbackWriter(directory, **wrong)


# ---- files


def test_every_name_is_read_and_only_finished_ones_may_be_deleted(directory: Path) -> None:
    with FeedbackWriter(directory, rotate_bytes=2000) as w:
        for n in range(10):
            w.write(numbered(n, PAD))
        names = [path.name for path in directory.iterdir()]
        assert 10 == len(names)
        assert all(any(fnmatchcase(name, p) for p in INCLUDE) for name in names)
        assert tuple(Source().include) == INCLUDE
        assert 9 == sum(rotated(name, INCLUDE) for name in names)
    assert all(rotated(path.name, INCLUDE) for path in files(directory))
    assert list(range(10)) == numbers(directory)


def test_a_file_never_grows_beyond_its_size_but_for_one_line(directory: Path) -> None:
    with FeedbackWriter(directory, rotate_bytes=5000) as w:
        w.write(numbered(0, "x" * 9000))
        for n in range(1, 40):
            w.write(numbered(n, PAD))
    sizes = [path.stat().st_size for path in files(directory)]
    assert sizes[0] > 9000
    assert max(sizes[1:]) <= 5000
    assert list(range(40)) == numbers(directory)


def test_a_file_is_finished_at_its_age_by_the_next_line(directory: Path) -> None:
    with FeedbackWriter(directory, rotate_age_s=0.0) as w:
        for n in range(3):
            w.write(numbered(n))
        assert 3 == len(files(directory))


def test_nothing_written_is_no_file(directory: Path) -> None:
    with FeedbackWriter(directory) as w:
        w.rotate()
    assert not directory.exists()


@pytest.mark.parametrize("fsync", ["never", "rotate", "line"])
def test_fsync_is_done_as_often_as_asked(directory: Path, fsync: str) -> None:
    """Seen by strace: what a power cut takes cannot be played here."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing")
    log = directory.parent / "strace"
    log.parent.mkdir(parents=True)
    copied = shutil.copy(MODULE, log.parent)  # beside it, rooms have names of the standard library
    code = f"import sys; sys.path.insert(0, {str(Path(copied).parent)!r}); from writer import *\n"
    code += f"w = FeedbackWriter({str(directory)!r}, fsync={fsync!r})\n"
    code += "for n in range(3): assert w.write({'n': n})\nw.close()"
    command = ["strace", "-qq", "-f", "-e", "trace=fsync,fdatasync", "-o", str(log)]
    done = subprocess.run([*command, sys.executable, "-c", code], check=False, timeout=60)
    if done.returncode and not log.exists():
        pytest.skip("strace may trace nothing here: ptrace is not allowed")
    text = log.read_text()
    calls = {"never": (0, 0), "rotate": (2, 0), "line": (2, 3)}  # a name, a file; lines
    assert calls[fsync] == (text.count("fsync("), text.count("fdatasync("))


def test_the_mode_is_what_was_asked_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        with FeedbackWriter(directory, mode=0o640) as w:
            w.write(EVENT)
    finally:
        os.umask(before)
    assert [0o640] == [path.stat().st_mode & 0o777 for path in files(directory)]


def test_a_file_that_somebody_took_away_is_missed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a second; here at once. What went between is gone with the file."""
    monkeypatch.setattr(writer, "LOOK_S", 0.0)
    with FeedbackWriter(directory) as w:
        w.write(numbered(1))
        shutil.rmtree(directory)
        w.write(numbered(2))
        (path,) = files(directory)
        path.rename(path.with_name("by-somebody.jsonl-1"))
        w.write(numbered(3))
    assert [2, 3] == numbers(directory)


def test_a_descriptor_that_somebody_closed_is_not_written_to_again(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As programs do that become daemons. The number may be another file's by then."""
    monkeypatch.setattr(writer, "LOOK_S", 0.0)
    other = tmp_path / "other"
    with FeedbackWriter(directory) as w:
        w.write(numbered(1))
        os.close(w._of_this_process()._fd)
        w.write(numbered(2))
        fd = w._of_this_process()._fd
        os.close(fd)
        with other.open("wb") as file:
            assert fd == file.fileno()
            w.write(numbered(3))
    assert b"" == other.read_bytes()
    assert [1, 2, 3] == numbers(directory)


def test_a_closed_number_is_met_without_a_look_too(directory: Path) -> None:
    with FeedbackWriter(directory) as w:
        w.write(numbered(1))
        os.close(w._of_this_process()._fd)
        assert w.write(numbered(2))
    assert {1, 2} == set(numbers(directory))


# ---- threads, forks, deaths


def test_threads_share_a_file_and_tear_no_line(directory: Path) -> None:
    def write(thread: int) -> None:
        for n in range(200):
            assert w.write(numbered(thread * 1000 + n, PAD * (n % 7)))

    with FeedbackWriter(directory, rotate_bytes=200_000, wait_s=WITHIN_S) as w:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 3200 == w.stats()["written"]
    found = numbers(directory)
    assert 3200 == len(found) == len(set(found))
    for number in range(16):
        own = [n for n in found if n // 1000 == number]
        assert sorted(own) == own


FORKS = """
import ctypes
fork = ctypes.PyDLL(None).fork if C else os.fork
w = FeedbackWriter(directory)
w.write(numbered(0))
stop = threading.Event()
def write():
    while not stop.is_set(): w.write(numbered(-1))
thread = threading.Thread(target=write, daemon=True)
if not C: thread.start()  # who may hold the lock
children = []
for child in range(1, 9):
    pid = fork()
    if not pid:
        done = [w.write(numbered(child)) for _ in range(10)]
        w.close()
        os._exit(0 if all(done) and w.stats()["written"] == 10 else 1)
    children.append(pid)
assert [0] * 8 == [os.waitpid(pid, 0)[1] for pid in children]
stop.set(); C or thread.join()
assert w.write(numbered(9))
"""


@pytest.mark.parametrize("by_c", [False, True])
def test_a_forked_child_has_a_file_of_its_own(directory: Path, by_c: bool) -> None:
    """Also while a thread of the parent writes, or where the hooks of Python are not run.

    Not both: CPython itself hangs in such a child where a thread had asked for the GIL, for it
    waits until that thread takes it (ceval_gil.h, FORCE_SWITCHING).
    """
    if by_c and not hasattr(ctypes.PyDLL(None), "fork"):
        pytest.skip("no fork in libc")
    app(directory, f"C = {by_c}\n{FORKS}")
    files_of: dict[int, set[str]] = {}
    for path in files(directory):
        for n in map(int, re.findall(rb'"n":(-?[0-9]+)', path.read_bytes())):
            files_of.setdefault(max(n, 0) % 9, set()).add(path.name)
    assert set(range(9)) == files_of.keys()
    assert 9 == len(set().union(*files_of.values()))
    found = numbers(directory)
    assert all(found.count(child) == 10 for child in range(1, 9))


KILLED = """
w = FeedbackWriter(directory)
w.write(numbered(1))
os.write(w._of_this_process()._fd, b'{"torn')
print(w._of_this_process()._path)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_finished_by_the_next_one(directory: Path) -> None:
    """Or the agent would wait for the end of its last line, and delete the file never."""
    path = Path(app(directory, KILLED).strip())
    with FeedbackWriter(directory, name="another") as w:
        w.write(numbered(0))
    assert path.exists(), "of another name"

    with FeedbackWriter(directory) as w:
        w.write(numbered(2))
    assert not path.exists()
    assert path.with_name(path.name + ".1").read_bytes().endswith(b'\n{"torn\n')
    assert [1, 2] == sorted(numbers(directory))[1:]


ORPHANED = """
w = FeedbackWriter(directory)
w.write(numbered(1))
child = os.fork()
if not child:
    os.close(1); os.close(2)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_that_lives_on_does_not_keep_the_file_of_its_parent(directory: Path) -> None:
    """The lock on it would be the child's too, and it would be finished by nobody."""
    child = int(app(directory, ORPHANED))
    try:
        with FeedbackWriter(directory) as w:
            w.write(numbered(2))
            assert 1 == len(list(directory.glob("*.1")))
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_file_of_a_living_process_is_left_alone(directory: Path) -> None:
    with FeedbackWriter(directory) as mine, FeedbackWriter(directory) as other:
        mine.write(numbered(1))
        (path,) = files(directory)
        other.write(numbered(2))
        assert path.exists()
        assert not list(directory.glob("*.1"))


def test_a_process_that_ends_finishes_its_file(directory: Path) -> None:
    app(directory, "w = FeedbackWriter(directory)\nassert w.write(numbered(1))\n")
    assert [True] == [path.name.endswith(".jsonl.1") for path in files(directory)]


def test_a_thread_that_hangs_in_the_disk_holds_nobody_longer_than_asked(directory: Path) -> None:
    with FeedbackWriter(directory, wait_s=0.01) as w:
        with w._of_this_process()._lock:
            assert not w.write(EVENT)
        assert w.write(EVENT)
        assert 1 == w.stats()["refused_busy"]


# ---- room


def test_beyond_its_bytes_the_oldest_finished_file_goes_and_is_counted(directory: Path) -> None:
    with FeedbackWriter(directory, rotate_bytes=10_000, bytes_max=50_000) as w:
        for n in range(200):
            assert w.write(numbered(n, PAD))
            assert sum(path.stat().st_size for path in files(directory)) <= 50_000
        stats = w.stats()
    found = numbers(directory)
    assert list(range(found[0], 200)) == found
    assert stats["dropped_files"] > 5
    assert found[0] > 5 * stats["dropped_files"]
    total = sum(path.stat().st_size for path in files(directory))
    assert stats["written_bytes"] == total + stats["dropped_bytes"]


def test_it_may_refuse_instead_until_there_is_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was taken is dropped. Whoever ships deletes, and it goes on."""
    monkeypatch.setattr(writer, "LOOK_S", 0.0)
    settings = {"rotate_bytes": 10_000, "bytes_max": 50_000, "when_full": "refuse"}
    with FeedbackWriter(directory, **settings) as w:
        taken = [n for n in range(100) if w.write(numbered(n, PAD))]
        assert taken == list(range(len(taken))) == numbers(directory)
        assert 20 < len(taken) < 50
        assert 100 - len(taken) == w.stats()["refused_full"]
        files(directory)[0].unlink()
        assert w.write(numbered(1))


def test_a_file_that_cannot_be_dropped_costs_no_event(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have dropped it first."""

    def gone(path: str) -> None:
        raise FileNotFoundError(path)

    with FeedbackWriter(directory, rotate_bytes=10_000, bytes_max=50_000) as w:
        monkeypatch.setattr(os, "unlink", gone)
        assert all(w.write(numbered(n, PAD)) for n in range(100))
        assert "dropped_files" not in w.stats()


def test_a_thread_that_cannot_be_started_is_no_error_of_the_app(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with AsyncFeedbackWriter(directory) as w:
        assert not w.write(EVENT)
        assert {"refused_error": 1} == w.stats()
        monkeypatch.undo()
        assert w.write(EVENT)


def test_files_of_another_name_are_none_of_its_business(directory: Path) -> None:
    directory.mkdir(parents=True)
    names = ["feedback-other-20260101T000000Z-1-00000000.jsonl.1", "feedback.jsonl.1", "x"]
    for name in names:
        (directory / name).write_bytes(b"x" * 60_000)
    with FeedbackWriter(directory, rotate_bytes=10_000, bytes_max=20_000) as w:
        for n in range(30):
            w.write(numbered(n, PAD))
    assert all((directory / name).exists() for name in names)


def test_a_full_disk_costs_the_events_of_that_time_and_no_other(tmpfs: Path) -> None:  # noqa: F811
    """The first one is torn: it stays alone, between two newlines."""
    directory, taken = tmpfs / "checkout", []
    with FeedbackWriter(directory) as w:
        taken += [n for n in range(10) if w.write(numbered(n, PAD))]
        fill(tmpfs, leave=20_000)
        taken += [n for n in range(10, 200) if w.write(numbered(n, PAD))]
        assert w.stats()["refused_disk"] > 100
        (tmpfs / "others").unlink()
        taken += [n for n in range(200, 300) if w.write(numbered(n, PAD))]
        assert len(taken) == w.stats()["written"]
    assert taken == numbers(directory)
    assert list(range(200, 300)) == taken[-100:]
    torn = [line for line in bodies(directory) if not line.endswith(b"}")]
    assert 1 == len(torn)
    assert 1 == len(files(directory))


@pytest.mark.parametrize("room", range(-3, 4))
def test_a_write_that_is_cut_anywhere_damages_no_other_line(directory: Path, room: int) -> None:
    """A limit of a file's size is a short write, then an error; here around the end of a line.

    Where not even a newline has room, the next file that is begun without the limit ends the line.
    """
    limit = 2 * len(writer.line_of(numbered(0))) + room
    with FeedbackWriter(directory) as w:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            taken = [n for n in range(9) if w.write(numbered(n))]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        w.rotate()
        assert w.write(numbered(9))
    assert len(taken) > 3
    assert {*taken, 9} <= set(numbers(directory))
    assert all(path.name.endswith(".1") for path in files(directory))


def test_a_disk_that_fails_is_no_error_of_the_app(directory: Path) -> None:
    """No directory can be made, there is a file in its place."""
    directory.parent.mkdir(parents=True)
    directory.write_bytes(b"")
    with FeedbackWriter(directory) as w:
        assert not any(w.write(numbered(n)) for n in range(5))
        assert {"refused_disk": 5} == w.stats()


# ---- without waiting


async def test_the_asyncio_one_writes_all_in_order(directory: Path) -> None:
    async with AsyncFeedbackWriter(directory, rotate_bytes=20_000) as w:
        for n in range(200):
            assert w.write(numbered(n, PAD))
        assert await w.flush(WITHIN_S)
        assert list(range(200)) == numbers(directory)
        assert w.write(numbered(200))
    assert list(range(201)) == numbers(directory)
    assert not w.write(EVENT)


async def test_a_disk_that_hangs_fills_the_queue_and_holds_nobody_up(directory: Path) -> None:
    w = AsyncFeedbackWriter(directory, queue_bytes_max=50_000, wait_s=60.0)
    files_of = w._of_this_process()
    with files_of._lock:
        taken = [n for n in range(200) if w.write(numbered(n, PAD))]
        assert 30 < len(taken) < 50
        assert not await w.flush(timeout_s=0.01)
    assert await w.flush(WITHIN_S)
    assert 200 - len(taken) == w.stats()["refused_queue"]
    await asyncio.to_thread(w.close)
    assert taken == numbers(directory)


def test_the_queue_of_a_parent_is_not_written_by_its_child(directory: Path) -> None:
    code = "w = AsyncFeedbackWriter(directory)\n"
    code += "for n in range(500): w.write(numbered(n))\n"
    code += "pid = os.fork()\nif not pid: w.write(numbered(1000)); w.close(); os._exit(0)\n"
    code += "os.waitpid(pid, 0)\n"
    app(directory, code)
    assert [*range(500), 1000] == sorted(numbers(directory))


def test_the_exit_of_the_process_waits_for_the_queue(directory: Path) -> None:
    code = "w = AsyncFeedbackWriter(directory)\nfor n in range(500): w.write(numbered(n))\n"
    app(directory, code)
    assert list(range(500)) == numbers(directory)


# ---- logging


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.Logger("app")  # noqa: LOG001  of this test alone
    yield logger
    for attached in logger.handlers:
        attached.close()


def test_what_a_log_call_carries_is_written(directory: Path, log: logging.Logger) -> None:
    with FeedbackWriter(directory) as w:
        log.addHandler(FeedbackHandler(w))
        log.info("rated", extra={"feedback": numbered(1)})
        log.info("nothing")
        log.info("wrong", extra={"feedback": {"v": math.nan}})
        assert 1 == w.stats()["refused_not_json"]
    assert [1] == numbers(directory)


def test_a_strict_writer_tells_logging(
    directory: Path, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which decides, as with all handlers, whether that is said."""
    with FeedbackWriter(directory, strict=True) as w:
        log.addHandler(FeedbackHandler(w))
        log.info("wrong", extra={"feedback": {"v": math.nan}})
    assert "Refused: not_json" in capsys.readouterr().err


def test_signals_and_errno_are_as_the_module_takes_them() -> None:
    """Python ignores SIGXFSZ, so a limit on file sizes is an error and no death."""
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    assert errno.EFBIG in writer._LEFT
