import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import logs
from agent.logs import ConsoleFormatter, JsonFormatter, setup
from agent.telemetry import event

log = logging.getLogger("agent.tests")


class StoppedClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _untouched_logging() -> Iterator[None]:
    """``setup`` is for a whole process; a test gives back what it changed."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.captureWarnings(capture=False)
    for name in logs.TAMED:
        logging.getLogger(name).setLevel(logging.NOTSET)


def fail(why: str) -> None:
    raise ValueError(why)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# ---- the shape of a line


def test_a_line_is_json_with_its_time_in_utc() -> None:
    stream = io.StringIO()
    setup("info", "json", stream)

    event(log, logging.WARNING, "breaker.opened", failures=5, retry_in_s=30.0)

    (line,) = lines(stream)
    assert str(line.pop("at")).endswith("Z")
    assert {
        "level": "warning",
        "logger": "agent.tests",
        "event": "breaker.opened",
        "failures": 5,
        "retry_in_s": 30.0,
    } == line


def test_an_exception_is_one_field_of_one_line() -> None:
    stream = io.StringIO()
    setup("info", "json", stream)

    try:
        fail("\x1b[2Jgone")
    except ValueError:
        log.exception("room.failed")

    (line,) = lines(stream)
    assert "Traceback" in str(line["exception"])
    assert "ValueError: \\x1b[2Jgone" in str(line["exception"])


HOSTILE = st.text(st.characters(codec=None, categories=None), max_size=50) | st.sampled_from(
    ["a\nb", "\x1b[2J", "\u202e", "\udcff", "\x9b", "\u2028"]
)
VALUES = st.recursive(
    HOSTILE | st.none() | st.integers() | st.floats() | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=5,
)


@given(VALUES)
def test_no_value_breaks_a_line_or_reaches_the_terminal(value: object) -> None:
    record = logging.LogRecord("agent.x", logging.INFO, "", 0, "a.name", (), None)
    record.fields = {"path": value}

    as_json = JsonFormatter().format(record)
    as_console = ConsoleFormatter(coloured=False).format(record)

    assert as_json.isprintable()
    assert as_console.isprintable()
    assert "a.name" == json.loads(as_json)["event"]


def test_a_value_has_an_end() -> None:
    assert logs.TEXT_CHARACTERS_MAX + 3 == len(logs.escaped("x" * 1_000_000))


def test_a_name_that_is_not_utf8_stays_readable() -> None:
    assert "caf\\udce9.jsonl" == logs.escaped(b"caf\xe9.jsonl".decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("stream", "chosen", "ends"),
    [
        (io.StringIO, None, '"event":"a.name"}\n'),
        (Terminal, None, " a.name [agent.tests]\n"),
        (Terminal, "json", '"event":"a.name"}\n'),
        (io.StringIO, "console", " a.name [agent.tests]\n"),
    ],
)
def test_json_unless_a_terminal_or_the_configuration_says_otherwise(
    stream: type[io.StringIO], chosen: logs.Format | None, ends: str
) -> None:
    opened = stream()
    setup("info", chosen, opened)
    event(log, logging.INFO, "a.name")

    assert opened.getvalue().endswith(ends)


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_that_want_them(
    monkeypatch: pytest.MonkeyPatch, no_colour: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_colour)
    terminal, plain = Terminal(), io.StringIO()
    for stream in (terminal, plain):
        setup("info", "console", stream)
        event(log, logging.ERROR, "a.name")

    assert coloured == ("\x1b[31m" in terminal.getvalue())
    assert "\x1b" not in plain.getvalue()


def test_the_console_indents_a_traceback() -> None:
    stream = io.StringIO()
    setup("info", "console", stream)
    try:
        fail("why")
    except ValueError:
        log.exception("room.failed", extra={"fields": {"path": "a b"}})

    first, *rest = stream.getvalue().splitlines()
    assert 'room.failed path="a b"' in first
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_setting_up_twice_logs_once() -> None:
    old, new = io.StringIO(), io.StringIO()
    setup("info", "json", old)
    setup("info", "json", new)

    event(log, logging.INFO, "a.name")

    assert (0, 1) == (len(lines(old)), len(lines(new)))


def test_stderr_is_where_lines_go() -> None:
    handler = setup("info", "json")

    assert isinstance(handler, logging.StreamHandler)
    assert handler.stream is sys.stderr


# ---- what is shown of a text


def test_whatever_may_quote_a_line_is_redacted_and_our_own_names_are_not() -> None:
    """Errors, libraries and names quote what somebody wrote; the name of an event never does."""
    stream = io.StringIO()
    setup("info", "json", stream, shown=lambda text: text.replace("jo@x.de", "[EMAIL]"))

    fields = {"detail": "of jo@x.de", "path": b"jo@x.de", "all": [{"jo@x.de": ("jo@x.de", 1)}]}
    event(log, logging.INFO, "file.opened", **fields)
    logging.getLogger("aiokafka.conn").warning("sent %s", "jo@x.de")

    ours, library = lines(stream)
    assert ("of [EMAIL]", "[EMAIL]") == (ours["detail"], ours["path"])
    assert [{"[EMAIL]": ["[EMAIL]", 1]}] == ours["all"]
    assert "file.opened" == ours["event"]
    assert "sent [EMAIL]" == library["event"]


# ---- floods


def test_aiokafka_is_never_heard_below_warning() -> None:
    """It logs keys and values at DEBUG, and someone may set the level of one of its loggers."""
    stream = io.StringIO()
    setup("debug", "json", stream)
    inner = logging.getLogger("aiokafka.producer.sender")
    inner.setLevel(logging.DEBUG)
    try:
        inner.debug("value %s", "alice@example.org")
        inner.info("value %s", "alice@example.org")
        logging.getLogger("aiokafka").info("value %s", "alice@example.org")
    finally:
        inner.setLevel(logging.NOTSET)

    assert "" == stream.getvalue()


@pytest.mark.parametrize("name", ["aiokafka", "asyncio", "grpc", "opentelemetry", "watchdog"])
def test_no_library_is_heard_below_warning(name: str) -> None:
    """Who looks for a fault of ours at DEBUG would not find it among what they say."""
    stream = io.StringIO()
    setup("debug", "json", stream)

    logging.getLogger(name).info("not wanted")
    logging.getLogger(f"{name}.inner").debug("not wanted")

    assert "" == stream.getvalue()


@pytest.mark.parametrize("name", logs.TAMED)
def test_a_quiet_level_is_not_raised_by_taming(name: str) -> None:
    stream = io.StringIO()
    setup("error", "json", stream)

    logging.getLogger(name).warning("not wanted")

    assert "" == stream.getvalue()


def test_a_library_says_the_same_once_in_thirty_seconds_and_then_how_often() -> None:
    stream, clock = io.StringIO(), StoppedClock()
    setup("info", "json", stream, clock)
    library = logging.getLogger("aiokafka.conn")

    for node in range(60):
        library.warning("Unable to connect to node %s", node)
    library.warning("another template")
    clock.now += 29.999
    library.warning("Unable to connect to node %s", 61)
    clock.now += 0.001
    library.warning("Unable to connect to node %s", 62)

    said = [(line["event"], line.get("suppressed")) for line in lines(stream)]
    assert [
        ("Unable to connect to node 0", None),
        ("another template", None),
        ("Unable to connect to node 62", 60),
    ] == said


def test_our_own_events_may_come_in_a_burst_and_no_more() -> None:
    stream, clock = io.StringIO(), StoppedClock()
    setup("info", "json", stream, clock)

    for _ in range(logs.BURST + 7):
        event(log, logging.WARNING, "line.rejected")
    event(log, logging.WARNING, "file.opened")
    clock.now += logs.QUIET_S
    event(log, logging.WARNING, "line.rejected")

    said = lines(stream)
    assert logs.BURST + 2 == len(said)
    assert 7 == said[-1]["suppressed"]


def test_after_a_burst_one_passes_now_and_then_and_says_how_many_did_not() -> None:
    """A flood that lasts for days stays one line in ten seconds, and none is forgotten."""
    stream, clock = io.StringIO(), StoppedClock()
    setup("info", "json", stream, clock)

    for _ in range(1000):
        event(log, logging.WARNING, "line.rejected")
        clock.now += 0.1

    said = lines(stream)
    assert logs.BURST + 9 <= len(said) <= logs.BURST + 10
    hidden = 1000 - len(said)
    assert hidden - 100 <= sum(int(str(line.get("suppressed", 0))) for line in said) <= hidden


def test_a_flood_of_warnings_hides_no_error_of_that_name() -> None:
    stream = io.StringIO()
    setup("info", "json", stream, StoppedClock())

    for _ in range(logs.BURST + 5):
        event(log, logging.WARNING, "disk.slow")
    event(log, logging.ERROR, "disk.slow")

    assert "error" == lines(stream)[-1]["level"]


def test_a_copy_gets_what_is_written_and_nothing_else() -> None:
    """Redacted as the line is, and no more of a flood than the line shows."""
    stream, copied = io.StringIO(), list[dict[str, object]]()
    setup("info", "json", stream, StoppedClock(), shown=lambda text: text.replace("jo", "[NAME]"))
    logs.copy_to(lambda _record, entry: copied.append(dict(entry)))

    for _ in range(logs.BURST + 5):
        event(log, logging.WARNING, "file.refused", path="jo")
    event(log, logging.DEBUG, "not.wanted")
    logs.copy_to(None)
    event(log, logging.WARNING, "later")

    assert lines(stream)[:-1] == copied
    assert "[NAME]" == copied[0]["path"]


def test_a_critical_line_always_passes() -> None:
    stream = io.StringIO()
    setup("info", "json", stream, StoppedClock())

    for _ in range(100):
        log.critical("invariant.broken")

    assert 100 == len(lines(stream))


def test_the_memory_of_names_is_bounded() -> None:
    gate = logs.Floodgate(StoppedClock())
    for number in range(logs.KEPT_NAMES_MAX * 2):
        gate.filter(logging.LogRecord("lib", logging.INFO, "", 0, f"made up {number}", (), None))

    assert logs.KEPT_NAMES_MAX == len(gate._seen)
