"""Random programs of what apps and rotation do to real files, under an agent that comes and goes.

Lines carry a number, blank first kilobytes are nobody's, so the books need no knowledge of files:
each line that was written must arrive, as what it is, and twice only where a kill explains it.
Programs destroy a line only once it was delivered. A failing program is run again by its seed;
``FEEDBACK_AGENT_ROTATION_ROUNDS`` runs more of them.
"""

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.core.continuation import CONTINUE_BYTES_MIN
from agent.demo.broker import ALL_BROKERS, EmbeddedKafka
from tests.patience import WITHIN_S
from tests.running import (
    Agent,
    append,
    event_id,
    feedback,
    mock_topics,
    records,
    source_of,
)

ROUNDS = int(os.environ.get("FEEDBACK_AGENT_ROTATION_ROUNDS", "2"))
STEPS = 16
CLIENTS = ("checkout", "search")
EVENTS_MAX = 400
"""In flight: what one kill may send twice."""
SCAN_S = 0.4
DELIVERED_WITHIN_S = 120.0
"""A file that may be a copy is looked at for 10 s before it is read in full."""
BEGUN_WITHIN_S = 10.0
KEPT = 4
FIRST = 10_000
"""Numbers of one width, so that lines may be of one length."""
EQUAL_BEGINNING = b" " * 1500
LATE_MS = 60
PACKERS = {".gz": ["gzip", "-q"], ".zst": ["zstd", "-q", "--rm"]}
LOGROTATE = shutil.which("logrotate", path="/usr/sbin:/usr/bin:/sbin:/bin")
ZSTD = shutil.which("zstd")
SOURCE = {"scan_s": SCAN_S}
IN_FLIGHT = {"events_max": EVENTS_MAX}


class Books:
    """What was written against what arrived, by the number that each line carries."""

    def __init__(self, agent: Agent, *, alike: bool) -> None:
        self.written: set[bytes] = set()
        self._agent = agent
        self._alike = alike  # lines of one length, that end alike

    def line(self, draw: random.Random) -> bytes:
        """Return a line nobody wrote before: tiny ones are dead letters, the others events."""
        number = FIRST + len(self.written)
        if not self._alike and draw.random() < 0.2:
            line = b'{"n":%d}' % number
        else:
            times = 20 if self._alike else draw.randrange(20)
            line = feedback(number, comment="very " * times + "good")
        self.written.add(line)
        return line

    def arrived(self) -> Counter[bytes]:
        topics = self._agent.topics
        by_id = {event_id(number_of(line)).encode(): line for line in self.written}
        found: Counter[bytes] = Counter()
        for record in records(topics, topics.events):
            line = by_id.get(record.key, b"")
            comment = msgspec.json.decode(line)["comment"] if line else None
            assert msgspec.json.decode(record.value).get("comment") == comment, record.key
            found[line] += 1
        for record in records(topics, topics.dead_letters):
            assert record.value.startswith(b'{"n":'), record.value
            found[record.value] += 1
        assert not found.keys() - self.written, "a line that nobody wrote"
        return found

    def until_delivered(self) -> Counter[bytes]:
        deadline_s = time.monotonic() + DELIVERED_WITHIN_S
        while lost := self.written - (found := self.arrived()).keys():
            assert time.monotonic() < deadline_s, (
                f"{len(lost)} of {len(self.written)} lost, as {sorted(lost, key=number_of)[:3]}"
                f"\n{self._agent.tail()}"
            )
            time.sleep(0.1)
        return found


def number_of(line: bytes) -> int:
    found = re.search(rb'"(?:n|seq)": ?(\d+)', line)
    assert found is not None
    return int(found[1])


class Program:
    """One seeded program: ``run`` carries it out. ``said`` is what it did, for a failing one."""

    def __init__(self, seed: int, agent: Agent) -> None:
        self._draw = random.Random(seed)  # noqa: S311  to be repeated, not to be secret
        self._agent = agent
        self.books = Books(agent, alike=self._draw.random() < 0.5)
        self._running = False
        self._cut: dict[str, int] = {}  # by source: the generation that a truncation began
        self.kills = 0
        self._too_short: set[bytes] = set()  # lines of files too short to be known for copies
        self.said: list[str] = []

    def run(self) -> None:
        online: list[tuple[Callable[[Path], None], int]] = [
            (self._append, 10),
            (self._rename, 4),
            (self._move_and_back, 2),
            (self._copy_truncate, 4),
            (self._compress, 4),
            (self._delete, 1),
            (self._replace, 2),
            (self._come_or_go, 4),
            (self._pause, 3),
        ]
        steps, weights = zip(*online, strict=True)
        for _ in range(STEPS):
            path = self._agent.root / self._draw.choice(CLIENTS) / "feedback.jsonl"
            (step,) = self._draw.choices(steps, weights)
            self.said.append(f"{step.__name__} {path.parent.name} {self._running}")
            step(path)
        self._start()
        self.books.until_delivered()
        self._agent.until(lambda: self._agent.metric("in_flight_events") == 0, "all is on disk")
        time.sleep(3 * SCAN_S)  # for what must not come
        assert 0 == self._agent.stop()

    def check(self) -> None:
        found = self.books.arrived()
        assert found.keys() == self.books.written
        copies = {line: n - 1 for line, n in found.items() if n > 1}
        copies = {line: n for line, n in copies.items() if line not in self._too_short}
        twice = f"{sum(copies.values())} copies after {self.kills} kills"
        assert sum(copies.values()) <= self.kills * EVENTS_MAX, (twice, [*copies][:3])

    def _start(self) -> None:
        if not self._running:
            self._agent.start()
            self._running = True

    def _append(self, path: Path) -> None:
        lines = [self.books.line(self._draw) for _ in range(self._draw.choice([1, 3, 60, 150]))]
        if self._draw.random() < 0.3 and not path.exists():
            lines.insert(0, EQUAL_BEGINNING)
        append(path, lines)

    def _shift(self, path: Path) -> Path:
        """Make way for the next ``.1``; what falls out of the last place was delivered."""
        for packed in ("", *PACKERS):
            oldest = numbered(path, KEPT, packed)
            if oldest.exists():
                self._start()
                self.books.until_delivered()
                oldest.unlink()
        for n in range(KEPT - 1, 0, -1):
            for packed in ("", *PACKERS):
                if numbered(path, n, packed).exists():
                    numbered(path, n, packed).rename(numbered(path, n + 1, packed))
        return numbered(path, 1)

    def _compress(self, path: Path) -> None:
        plain = [p for n in range(1, KEPT + 1) if (p := numbered(path, n)).exists()]
        if plain:
            chosen, ending = self._draw.choice(plain), self._draw.choice([*PACKERS])
            if chosen.stat().st_size < CONTINUE_BYTES_MIN:
                self._too_short |= {*chosen.read_bytes().splitlines()}
            subprocess.run([*PACKERS[ending], chosen], check=True, timeout=WITHIN_S)
            # What was written a moment ago is read before the next copy of it: a copy that is met
            # before its original was read is nobody's yet, and sent twice.
            time.sleep(SCAN_S)

    def _rename(self, path: Path) -> None:
        if path.exists():
            path.rename(self._shift(path))
            if self._draw.random() < 0.5:
                self._append(path)

    def _move_and_back(self, path: Path) -> None:
        if not path.exists():
            return
        inside = self._draw.random() < 0.5
        away = (path.parent / "old" if inside else self._agent.root.parent / "out") / path.name
        away.parent.mkdir(exist_ok=True)
        path.rename(away)
        self._linger()
        if self._draw.random() < 0.5:
            append(away, [self.books.line(self._draw)])
        away.rename(path)

    def _copy_truncate(self, path: Path) -> None:
        if not path.exists() or not path.stat().st_size:
            return
        with path.open("ab") as log:
            to = self._shift(path)
            self._begun(path)
            if log.tell() < CONTINUE_BYTES_MIN:
                self._too_short |= {*path.read_bytes().splitlines()}
            shutil.copyfile(path, to)
            if self._draw.random() < 0.3:
                self._linger()
            log.truncate(0)
            if self._draw.random() < 0.7:
                log.write(
                    b"".join(
                        self.books.line(self._draw) + b"\n"
                        for _ in range(self._draw.choice([1, 30, 150]))
                    )
                )

    def _begun(self, path: Path) -> None:
        """Give a slow machine time to read something of what ``path`` holds before it is copied.

        A copy that is met before that is nobody's yet, and sent twice (docs/delivery.md).
        """
        if not self._running or path.stat().st_size < CONTINUE_BYTES_MIN:
            return
        source = source_of(path)
        ends_s = time.monotonic() + BEGUN_WITHIN_S
        while time.monotonic() < ends_s and not begun(self._agent, path, self._cut.get(source, 0)):
            time.sleep(0.05)
        self._cut[source] = generation(self._agent, path) + 1

    def _delete(self, path: Path) -> None:
        if path.exists():
            self._start()
            self.books.until_delivered()
            path.unlink()

    def _replace(self, path: Path) -> None:
        """Delete and create at once: ext4 gives the inode again."""
        if path.exists():
            self._delete(path)
            if self._draw.random() < 0.5:
                self._agent.kill() if self._draw.random() < 0.5 else self._agent.stop()
                self._running = False
            self._append(path)

    def _come_or_go(self, _: Path) -> None:
        if not self._running:
            self._start()
        elif self._draw.random() < 0.5:
            self._running = False
            self.kills += 1
            self._agent.kill()
        else:
            self._running = False
            assert 0 == self._agent.stop()

    def _pause(self, _: Path) -> None:
        self._linger()

    def _linger(self) -> None:
        time.sleep(self._draw.choice([0.0, 0.02, 0.2, 0.6]))


def followed(agent: Agent, path: Path) -> dict[str, Any]:
    """Return what ``agent`` says of the file at ``path``, nothing where it has not met it."""
    source = source_of(path)
    rows: list[dict[str, Any]] = agent.status()["files"]
    return next((row for row in rows if row["source"] == source), {})


def generation(agent: Agent, path: Path) -> int:
    return int(followed(agent, path).get("generation", 0))


def begun(agent: Agent, path: Path, number: int) -> bool:
    """Return whether ``agent`` has settled enough of generation ``number`` to know a copy of it."""
    row = followed(agent, path)
    return bool(row) and row["generation"] >= number and row["watermark"] >= CONTINUE_BYTES_MIN


def numbered(path: Path, n: int, packed: str = "") -> Path:
    return path.with_name(f"{path.name}.{n}{packed}")


@pytest.mark.parametrize("number", range(ROUNDS))
def test_no_program_of_rotation_and_restarts_loses_a_line(
    embedded: EmbeddedKafka, tmp_path: Path, number: int
) -> None:
    """Some of the brokers answer late, so that much is in flight when files change."""
    seed = int(os.environ.get("FEEDBACK_AGENT_ROTATION_SEED") or secrets.randbelow(1 << 32))
    print(f"FEEDBACK_AGENT_ROTATION_SEED={seed}")  # noqa: T201  shown where it fails
    topics = mock_topics(embedded)
    embedded.rtt(ALL_BROKERS, seed % 3 * LATE_MS)
    with Agent(tmp_path, topics, source=SOURCE, in_flight=IN_FLIGHT) as agent:
        program = Program(seed, agent)
        try:
            program.run()
            program.check()
        except AssertionError as broken:
            broken.add_note(f"{program.said}")
            raise


# ---- what must not depend on chance


def alike(first: int, count: int) -> list[bytes]:
    """Return good lines of one length that end in the same 100 bytes."""
    return [feedback(FIRST + n, comment="same " * 20) for n in range(first, first + count)]


def arrived(agent: Agent) -> list[bytes]:
    return sorted(record.key for record in records(agent.topics, agent.topics.events))


def ids(*ranges: range) -> list[bytes]:
    return sorted(event_id(FIRST + n).encode() for numbers in ranges for n in numbers)


def test_a_file_cut_and_grown_past_the_position_between_two_reads_is_read_anew(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """Where lines end alike, the bytes before the position do not show it: the first bytes do."""
    with Agent(tmp_path, mock_topics(embedded)) as agent:
        path = agent.root / "checkout" / "feedback.jsonl"
        append(path, alike(0, 100))
        agent.start().until_delivered(100)
        agent.signal(signal.SIGSTOP)
        os.truncate(path, 0)
        append(path, alike(100, 150))
        agent.signal(signal.SIGCONT)
        agent.until_delivered(250)
        assert 0 == agent.stop()

        assert ids(range(250)) == arrived(agent)


def test_a_file_created_where_one_was_deleted_is_read_from_its_first_line(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """Both begin with the same kilobyte and their lines end alike: whole lines tell them apart."""
    with Agent(tmp_path, mock_topics(embedded), source=SOURCE) as agent:
        path = agent.root / "checkout" / "feedback.jsonl"
        append(path, [EQUAL_BEGINNING, *alike(0, 3)])
        agent.start().until_delivered(3)
        path.unlink()
        append(path, [EQUAL_BEGINNING, *alike(3, 10)])
        agent.until_delivered(13)
        assert 0 == agent.stop()

        assert ids(range(13)) == arrived(agent)


def test_a_kill_right_after_a_truncation_does_not_send_the_copy_again(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """The generation that ended is a tombstone at the next start, noted before the crash or not."""
    with Agent(tmp_path, mock_topics(embedded), source={"scan_s": 60}) as agent:
        path = agent.root / "checkout" / "feedback.jsonl"
        append(path, alike(0, 100))
        agent.start().until_delivered(100)
        agent.until(lambda: agent.metric("in_flight_events") == 0, "all is on disk")
        os.truncate(path, 0)
        append(path, alike(100, 110))
        agent.until_delivered(210)
        agent.until(lambda: agent.metric("in_flight_events") == 0, "all is on disk")
        agent.kill()
        append(numbered(path, 1), alike(0, 100))
        agent.start()
        append(path, alike(210, 1))
        agent.until_delivered(1)
        time.sleep(2)  # for what must not come
        assert 0 == agent.stop()

        assert ids(range(211)) == arrived(agent)


def test_a_copy_made_while_the_first_lines_are_in_flight_is_not_sent_again(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """Nothing of the original is settled yet: it is known by what was read."""
    with Agent(tmp_path, mock_topics(embedded), source={"scan_s": 1}) as agent:
        path = agent.root / "checkout" / "feedback.jsonl"
        append(path, alike(0, 1))
        agent.start().until_delivered(1)  # connected
        path = path.with_name("other.jsonl")
        embedded.rtt(ALL_BROKERS, 4000)
        append(path, alike(1, 100))
        agent.until(lambda: agent.metric("lines_read_total") >= 101, "read")
        shutil.copyfile(path, numbered(path, 1))
        os.truncate(path, 0)
        append(path, alike(101, 150))
        time.sleep(2)
        embedded.rtt(ALL_BROKERS, 0)
        agent.until_delivered(251)
        time.sleep(3)
        assert 0 == agent.stop()

        assert ids(range(251)) == arrived(agent)


# ---- the real logrotate

MODES = {
    "create": "create",
    "copytruncate": "copytruncate",
    "dateext": "create\n dateext\n dateformat -%Y%m%d-%s",
    "dateext_copytruncate": "copytruncate\n dateext\n dateformat -%Y%m%d-%s",
    "delaycompress": "create\n compress\n delaycompress",
    "compress": "create\n compress",
    "compress_dateext": "create\n compress\n dateext\n dateformat -%Y%m%d-%s",
    "compress_copytruncate": "copytruncate\n compress",
    "olddir": "create\n olddir old\n createolddir 755",
    "nocreate": "nocreate",
    "copy": "copy",  # the original grows on, and each copy is its beginning
    "renamecopy": "renamecopy\n create",
    "extension": "create\n extension .jsonl",
    "extension_dateext": "create\n extension .jsonl\n dateext\n dateformat -%Y%m%d-%s",
}
if ZSTD is not None:  # what it makes is read in test_unpacking too, where it is missing
    MODES["zstd"] = (
        f"create\n compress\n compresscmd {ZSTD}\n compressext .zst\n compressoptions -q"
    )
TURNS = 5


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
def test_logrotate_under_a_live_writer_loses_nothing(
    embedded: EmbeddedKafka, tmp_path: Path
) -> None:
    """One client for each mode. The writer opens anew for each burst, as after ``postrotate``. What
    ``copytruncate`` cuts off between copy and cut is lost by its own account: it waits there.
    """
    rules, state = tmp_path / "logrotate.conf", tmp_path / "logrotate.state"
    pausing, done, written = threading.Lock(), threading.Event(), 0
    with Agent(tmp_path, mock_topics(embedded), source={"scan_s": 0.5}) as agent:
        paths = {mode: agent.root / mode / "feedback.jsonl" for mode in MODES}
        common = "rotate 9\n missingok\n su root root"
        texts = [f"{paths[mode]} {{\n {common}\n {rule}\n}}\n" for mode, rule in MODES.items()]
        rules.write_text("".join(texts))

        def write() -> None:
            nonlocal written
            while not done.is_set():
                for mode, path in paths.items():
                    with pausing if "copytruncate" in mode else contextlib.nullcontext():
                        append(path, alike(written, 20))
                        written += 20
                time.sleep(0.05)

        agent.start()
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for turn in range(TURNS):
                time.sleep(1.1)  # a dateext of its own
                # A copy that is met before anything of its original was read is sent twice.
                for cut in (path for mode, path in paths.items() if "copytruncate" in mode):
                    agent.until(lambda p=cut, n=turn: begun(agent, p, n), "begun")  # type: ignore[misc]
                with pausing:
                    command = [str(LOGROTATE), "-f", "-s", str(state), str(rules)]
                    subprocess.run(command, check=True, timeout=WITHIN_S)
        finally:
            done.set()
            writer.join()
        agent.until_delivered(written)
        time.sleep(1.5)  # for what must not come
        assert 0 == agent.stop()

        assert ids(range(written)) == arrived(agent)


COMPRESSING = [mode for mode, rule in MODES.items() if "compress" in rule.split()]


@pytest.mark.skipif(LOGROTATE is None, reason="logrotate is not installed")
@pytest.mark.parametrize(
    "killed",
    [pytest.param(False, id="stopped", marks=pytest.mark.long), pytest.param(True, id="killed")],
)
def test_what_logrotate_compresses_arrives_whoever_comes_and_goes(
    embedded: EmbeddedKafka, tmp_path: Path, killed: bool
) -> None:
    """Unread tails are packed while the agent is down, and rotated on before it comes back."""
    rules, state = tmp_path / "logrotate.conf", tmp_path / "logrotate.state"
    command = [str(LOGROTATE), "-f", "-s", str(state), str(rules)]
    topics = mock_topics(embedded)
    with Agent(tmp_path, topics, source={"scan_s": 0.5}, in_flight=IN_FLIGHT) as agent:
        paths = {mode: agent.root / mode / "feedback.jsonl" for mode in COMPRESSING}
        common = "rotate 9\n missingok\n su root root"
        texts = [f"{p} {{\n {common}\n {MODES[mode]}\n}}\n" for mode, p in paths.items()]
        rules.write_text("".join(texts))
        written = 0
        agent.start()
        for turn in range(TURNS):
            for path in paths.values():
                append(path, alike(written, 60))
                written += 60
            if turn % 2:
                time.sleep(0.3)
                agent.kill() if killed else agent.stop()
                for path in paths.values():
                    append(path, alike(written, 60))
                    written += 60
                for _ in range(turn):
                    time.sleep(1.1)  # a dateext of its own
                    subprocess.run(command, check=True, timeout=WITHIN_S)
                agent.start()
            time.sleep(1.1)
            subprocess.run(command, check=True, timeout=WITHIN_S)

        def missing() -> set[bytes]:
            return set(ids(range(written))) - set(arrived(agent))

        agent.until(lambda: not missing(), "all arrived", DELIVERED_WITHIN_S, every_s=0.5)
        time.sleep(1.5)  # for what must not come
        assert 0 == agent.stop()

        found = arrived(agent)
        assert set(ids(range(written))) == set(found)
        assert len(found) - written <= killed * EVENTS_MAX * (TURNS // 2)
