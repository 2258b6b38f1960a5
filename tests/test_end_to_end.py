"""From files to a real Kafka: everything once, in order, across rotation and restarts."""

import json
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from agent.core.places import parse_place
from agent.demo.scene import Topics
from tests import conftest
from tests.running import (
    Agent,
    append,
    assert_each_once,
    event_id,
    feedback,
    records,
    source_of,
)

pytestmark = pytest.mark.kafka

CLIENTS = 5
FILES_EACH = 4
LINES = int(os.environ.get("FEEDBACK_AGENT_END_TO_END_LINES", "200000"))
FILE_LINES = LINES // (CLIENTS * FILES_EACH)
PARTITIONS = 12
WITHIN_S = 120.0 + 300e-6 * LINES
"""For all lines; what hangs, ends sooner by the tests' own timeout."""
WRITE_BYTES = 100_000
"""One write; most end within a line."""
FETCH_RECORDS = 20_000
DRAIN_S = 10


@pytest.fixture
async def real(kafka: str, topics: conftest.Topics) -> Topics:
    return Topics(kafka, await topics(partitions=PARTITIONS), await topics(partitions=1))


# ---- a million


class Written:
    """One file of ``FILE_LINES`` lines, of lengths that differ; ``starts`` is where each begins."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.path = Path()
        begin = b'{"type":"user_feedback","event_id":"%08x-0000-4000-8000-' % number
        more = [b',"comment":"%b"' % (b"very " * (n % 23) + b"good") for n in range(97)]
        lines = [
            b'%b%012x","timestamp":"2026-01-01T00:00:00Z","session_id":"s%d","rating":%d%b}\n'
            % (begin, n, n % 1000, n % 6, more[n % 97])
            for n in range(FILE_LINES)
        ]
        self.starts = array("Q", accumulate(map(len, lines), initial=0))
        self.text = b"".join(lines)


def write(written: list[Written], directory: Path, *, pause_s: float) -> None:
    """Write one client's files one after the other, each under the same name: the one before is
    renamed first and, as many an app does, written to a little longer."""
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / "feedback.jsonl"
    rest: tuple[Path, bytes] | None = None
    for file in written:
        file.path = directory / f"feedback.jsonl.{file.number}"
        body = file.text[:-WRITE_BYTES]
        for at in range(0, len(body), WRITE_BYTES):
            with base.open("ab") as log:
                log.write(body[at : at + WRITE_BYTES])
            if rest is not None:
                with rest[0].open("ab") as late:
                    late.write(rest[1])
                rest = None
            time.sleep(pause_s)
        base.rename(file.path)
        rest = file.path, file.text[-WRITE_BYTES:]
        file.text = b""
    assert rest is not None
    with rest[0].open("ab") as late:
        late.write(rest[1])


def consumed(topics: Topics, records_max: int) -> Iterator[Message]:
    """Read ``topics.events`` from the beginning until nothing more comes."""
    consumer = Consumer(
        {
            "bootstrap.servers": topics.bootstrap_servers,
            "group.id": uuid4().hex,  # required, never used: partitions are assigned
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "queued.max.messages.kbytes": 1 << 18,
            "fetch.wait.max.ms": 50,
            "check.crcs": True,
        }
    )
    try:
        consumer.assign([TopicPartition(topics.events, p, 0) for p in range(PARTITIONS)])
        left = sum(
            consumer.get_watermark_offsets(TopicPartition(topics.events, p))[1]
            for p in range(PARTITIONS)
        )
        assert left <= records_max, f"{left} records: something was sent twice"
        while left > 0:
            messages = consumer.consume(min(FETCH_RECORDS, left), timeout=60.0)
            assert messages, f"{left} records do not come"
            left -= len(messages)
            yield from messages
    finally:
        consumer.close()


class Books:
    """Holds each record against the line that it says it is."""

    def __init__(self, files: list[Written]) -> None:
        self._files = files
        self._seen = [bytearray(FILE_LINES) for _ in files]
        self._latest = [[-1] * PARTITIONS for _ in files]
        self._file_of = {source_of(file.path): file.number for file in files}

    def note(self, message: Message) -> None:
        key, headers = message.key(), message.headers()
        assert isinstance(key, bytes)
        assert headers is not None
        file, line = int(key[:8], 16), int(key[24:], 16)
        source = dict(headers)["source"]
        assert isinstance(source, bytes)
        place = parse_place(source)
        assert place is not None
        starts = self._files[file].starts
        assert (file, 0, starts[line], starts[line + 1]) == (
            self._file_of[place.source],
            place.generation,
            place.start,
            place.end,
        ), f"{key!r} is not what stands at {place}"
        latest, partition = self._latest[file], message.partition()
        assert partition is not None
        assert latest[partition] < line, f"{key!r} behind line {latest[partition]}, or twice"
        latest[partition] = line
        self._seen[file][line] = 1

    def delivered(self) -> int:
        return sum(map(sum, self._seen))


@pytest.mark.timeout(600)
def test_the_lines_of_five_clients_arrive_once_each_and_in_order(
    real: Topics, tmp_path: Path
) -> None:
    """Written before and while the agent runs, rotated by rename, cut anywhere by the writes."""
    files = [Written(number) for number in range(CLIENTS * FILES_EACH)]
    of = {client: files[client * FILES_EACH :][:FILES_EACH] for client in range(CLIENTS)}
    with Agent(tmp_path, real) as agent:
        for client in (0, 1):
            write(of[client], agent.root / f"client-{client}", pause_s=0)
        agent.start()
        writers = [
            threading.Thread(
                target=write,
                args=(of[client], agent.root / f"client-{client}"),
                kwargs={"pause_s": 0.01},
            )
            for client in (2, 3, 4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        agent.until_delivered(LINES, within_s=WITHIN_S)
        assert 0 == agent.stop()
    books = Books(files)
    for message in consumed(real, LINES):
        books.note(message)

    assert LINES == books.delivered()


# ---- restarts


class Writer:
    """Appends good lines to several files, in blocks, until stopped; rotates by rename."""

    def __init__(self, root: Path, *, rotate_lines: int = 3000) -> None:
        self.written = 0
        self._root = root
        self._rotate_lines = rotate_lines
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def stop(self) -> int:
        """Return how many lines were written."""
        self._stop.set()
        self._thread.join()
        return self.written

    def _write(self) -> None:
        turn = 0
        while not self._stop.is_set():
            path = self._root / f"client-{turn % 3}" / "feedback.jsonl"
            append(path, map(feedback, range(self.written, self.written + 100)))
            self.written += 100
            turn += 1
            if self.written % self._rotate_lines == 0:
                path.rename(path.with_name(f"feedback.jsonl.{turn}"))
            self._stop.wait(0.005)


@pytest.mark.long
def test_sigterm_under_load_ends_with_0_in_time_and_nothing_goes_twice(
    real: Topics, tmp_path: Path
) -> None:
    """Stops while apps write and rotate; what a stop drained the next life does not send. The last
    one comes as soon as everything was found, so it has all the rest to drain."""
    with Agent(tmp_path, real, agent={"drain_s": DRAIN_S}) as agent:
        agent.root.mkdir(exist_ok=True)
        writer = Writer(agent.root)
        try:
            for _ in range(4):
                agent.start()
                agent.until_delivered(2000)
                assert 0 == agent.stop()
                assert agent.took_s < DRAIN_S
                assert not agent.log_entries("drain.cut_short"), agent.tail()
        finally:
            lines = writer.stop()
        agent.start()
        agent.until(lambda: bool(agent.log_entries("root.scanned")), "scanned")
        assert 0 == agent.stop()

    assert_each_once(agent, lines)


def settle_a_thousand(agent: Agent, path: Path) -> None:
    append(path, map(feedback, range(1000)))
    agent.start()
    agent.until_delivered(1000)


def test_a_restart_with_nothing_new_sends_nothing(real: Topics, tmp_path: Path) -> None:
    with Agent(tmp_path, real) as agent:
        path = agent.root / "acme/a.jsonl"
        settle_a_thousand(agent, path)
        assert 0 == agent.stop()
        agent.start()
        append(path, [feedback(1000)])
        agent.until_delivered(1)
        assert 0 == agent.stop()

    assert_each_once(agent, 1001)


def test_after_sigkill_at_rest_nothing_is_sent_again(real: Topics, tmp_path: Path) -> None:
    """Once checkpoints have followed, no drain is needed."""
    with Agent(tmp_path, real) as agent:
        path = agent.root / "acme/a.jsonl"
        settle_a_thousand(agent, path)
        agent.until_committed()
        agent.kill()
        agent.start()
        append(path, [feedback(1000)])
        agent.until_delivered(1)
        assert 0 == agent.stop()

    assert_each_once(agent, 1001)


@pytest.mark.parametrize("down", [True, False], ids=["agent_down", "agent_up"])
def test_a_file_that_was_renamed_is_gone_on_with(real: Topics, tmp_path: Path, down: bool) -> None:
    """Rotation by move and create, lines still going into the old one after it."""
    with Agent(tmp_path, real) as agent:
        path = agent.root / "acme/a.jsonl"
        settle_a_thousand(agent, path)
        if down:
            assert 0 == agent.stop()
        append(path, map(feedback, range(1000, 1100)))
        rotated = path.rename(path.with_name("a.jsonl.1"))
        append(rotated, map(feedback, range(1100, 1200)))
        append(path, map(feedback, range(1200, 1300)))
        if down:
            agent.start()
        agent.until_delivered(300 if down else 1300)
        assert 0 == agent.stop()

    assert_each_once(agent, 1300)


def test_two_rotations_while_the_agent_is_down(real: Topics, tmp_path: Path) -> None:
    """Inodes and names move on twice; the files say what is known of them."""
    with Agent(tmp_path, real) as agent:
        path = agent.root / "acme/a.jsonl"
        settle_a_thousand(agent, path)
        assert 0 == agent.stop()
        for begin in (1000, 1100):
            (older := path.with_name("a.jsonl.1")).exists() and older.rename(f"{older}.2")
            path.rename(older)
            append(path, map(feedback, range(begin, begin + 100)))
        agent.start()
        agent.until_delivered(200)
        assert 0 == agent.stop()

    assert_each_once(agent, 1200)


def ids(topics: Topics) -> list[str]:
    return sorted(record.key.decode() for record in records(topics, topics.events))


def generations(topics: Topics) -> dict[str, int]:
    """Return the generation of each record, by event_id."""
    found = {}
    for record in records(topics, topics.events):
        place = parse_place(dict(record.headers)["source"])
        assert place is not None
        found[record.key.decode()] = place.generation
    return found


def copy_truncate(path: Path) -> None:
    """What logrotate's ``copytruncate`` does."""
    copy = path.with_name(f"{path.name}.1")
    copy.write_bytes(path.read_bytes())
    os.truncate(path, 0)


@pytest.mark.parametrize("down", [True, False], ids=["agent_down", "agent_up"])
def test_copy_truncate_sends_each_line_once(real: Topics, tmp_path: Path, down: bool) -> None:
    """The copy is known for what it is; what it holds beyond the watermark is read from it."""
    with Agent(tmp_path, real, source={"scan_s": 1}) as agent:
        path = agent.root / "acme/a.jsonl"
        settle_a_thousand(agent, path)
        if down:
            assert 0 == agent.stop()
            append(path, map(feedback, range(1000, 1100)))
        copy_truncate(path)
        append(path, map(feedback, range(2000, 2100)))
        if down:
            agent.start()
        agent.until_delivered(200 if down else 1100)
        time.sleep(2.5)  # for what must not come
        assert 0 == agent.stop()

    expected = [*range(1100 if down else 1000), *range(2000, 2100)]
    assert [event_id(n) for n in expected] == ids(real)


def truncated(path: Path, text: bytes) -> None:
    os.truncate(path, 0)
    append(path, [text])


def rewritten(path: Path, text: bytes) -> None:
    path.write_bytes(text + b"\n")


@pytest.mark.parametrize("down", [True, False], ids=["agent_down", "agent_up"])
@pytest.mark.parametrize("change", [truncated, rewritten])
def test_a_file_written_anew_is_a_new_generation(
    real: Topics, tmp_path: Path, change: Callable[[Path, bytes], None], down: bool
) -> None:
    """As long as it was before, with other content: its size does not tell."""
    with Agent(tmp_path, real, source={"scan_s": 1}) as agent:
        path = agent.root / "acme/a.jsonl"
        settle_a_thousand(agent, path)
        if down:
            assert 0 == agent.stop()
        change(path, b"\n".join(map(feedback, range(5000, 6000))))
        if down:
            agent.start()
        agent.until_delivered(1000 if down else 2000)
        assert 0 == agent.stop()

    numbers = [*range(1000), *range(5000, 6000)]
    assert {event_id(n): int(n >= 5000) for n in numbers} == generations(real)
    assert len(numbers) == len(ids(real))


def test_a_torn_line_is_sent_when_it_is_whole(real: Topics, tmp_path: Path) -> None:
    """Never half a line, whether the agent lives in between or not."""
    line = feedback(0) + b"\n"
    with Agent(tmp_path, real) as agent:
        path = agent.root / "acme/a.jsonl"
        path.parent.mkdir()
        for part in range(0, len(line), 50):
            agent.start()
            with path.open("ab") as file:
                file.write(line[part : part + 50])
            time.sleep(0.3)
            assert 0 == agent.stop()
        (record,) = records(real, real.events)

    assert {"seq": 0} == {
        k: v for k, v in json.loads(record.value)["metadata"].items() if k == "seq"
    }
    assert_each_once(agent, 1)
