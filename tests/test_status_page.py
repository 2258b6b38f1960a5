"""The page at /: what it shows, that nothing in it is markup of others, and how a browser sees it.

The browser is a real one, where there is one: scripts/system-packages installs chromium.
"""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from agent.demo.broker import EmbeddedKafka
from agent.status_page import POLICY, History, page
from agent.status_page.charts import HEIGHT, WIDTH, chart
from agent.status_page.history import SAMPLES_MAX, SPAN_S, Point, Series
from agent.status_page.units import count, size, span
from agent.telemetry import Metrics
from tests.fakes import FakeClock
from tests.running import Agent, append, feedback, mock_topics

EMPTY = Series([], [], [], [])
SINK: dict[str, Any] = {
    "phase": "live",
    "problem": None,
    "breaker": "closed",
    "batches_queued": 0,
    "unanswered_s": 0.0,
    "mode": "live",
    "spooled_records": 0,
    "spooled_bytes": 0,
    "spool_full": None,
}
IMPATIENT: dict[str, Any] = {
    "retry": {"backoff_s": 0.2, "backoff_max_s": 1},
    "breaker": {"cooldown_s": 1, "ack_age_max_s": 1},
}
HOSTILE = "<script>alert(1)</script>\"'&\u202e\udcff"


def status(**more: Any) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "node": "node-1",
        "at": "2026-01-01T00:01:00.000Z",
        "up_s": 61.0,
        "health": {"ok": True, "reasons": ()},
        "ready": {"ok": True, "reasons": ()},
        "root": {"path": "/var/lib/feedback", "problem": None},
        "watcher": None,
        "reloaded": {"redaction": {"version": "2", "problem": None}},
        "sinks": {"events": SINK, "dead_letters": SINK},
        "clients": [{"client": "acme", "lag_bytes": 2048, "lag_s": 9.0, "lines_read": 12}],
        "files_open": 1,
        "files": [file()],
        "unreadable": [{"path": "acme/link", "reason": "symlink"}],
        "problems": [],
        **more,
    }


def file(path: str = "acme/a.jsonl") -> dict[str, Any]:
    return {"path": path, "client": "acme", "watermark": 75, "size": 100, "lag_bytes": 25}


class Outline(HTMLParser):
    """Tags that were opened and not closed, and all there were."""

    VOID = frozenset({"meta", "path", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert tag == self.open.pop()


def test_the_page_says_who_how_far_and_what_is_wrong() -> None:
    problem = {
        "event": "sink.down",
        "at": "2026-01-01T00:00:48.000Z",
        "level": "warning",
        "count": 3,
        "fields": {"reason": "tls"},
    }
    down = {**SINK, "breaker": "open", "mode": "spooling", "problem": "tls", "spooled_bytes": 2048}
    html = page(
        status(
            ready={"ok": True, "reasons": ("events: spooling (tls)",)},
            sinks={"events": down},
            problems=[problem],
        ),
        EMPTY,
    )

    for said in ("node-1", "2.0 KiB", "9 s", "acme/a.jsonl", "acme/link", "symlink", "sink.down",
                 "reason=tls", "12 s ago", "events: spooling (tls)", "up 1 min"):  # fmt: skip
        assert said in html
    assert '<span class="pill bad">open</span>' in html


@pytest.mark.parametrize(
    ("health", "ready", "verdict"),
    [
        ((True, ()), (True, ()), "ready"),
        ((True, ()), (True, ("events: spooling",)), "ready, with remarks"),
        ((True, ()), (False, ("root: missing",)), "not ready"),
        ((False, ("scan: hung",)), (True, ()), "hangs"),
    ],
)
def test_the_title_is_the_verdict(health: Any, ready: Any, verdict: str) -> None:
    """A row of tabs, one for each node, can be told apart."""
    of = [{"ok": ok, "reasons": reasons} for ok, reasons in (health, ready)]
    html = page(status(health=of[0], ready=of[1]), EMPTY)
    assert f"<title>{verdict} - node-1</title>" in html
    for reason in (*health[1], *ready[1]):
        assert f">{reason}</li>" in html


@given(st.text(st.characters(), max_size=400))
def test_no_name_of_another_is_markup(name: str) -> None:
    """Clients choose names of directories and files, and libraries quote what they read."""
    plain, hostile = Outline(page(world("x"), EMPTY)), page(world(name), EMPTY)

    outline = Outline(hostile)

    assert plain.tags == outline.tags
    assert [] == outline.open
    hostile.encode()


def world(name: str) -> dict[str, Any]:
    """Return a status in which ``name`` stands wherever somebody else's text may."""
    problem = {
        "event": name,
        "at": "2026-01-01T00:00:00Z",
        "level": "error",
        "count": 1,
        "fields": {name: name},
    }
    return status(
        node=name,
        root={"path": name, "problem": name},
        watcher=f"w{name}",
        ready={"ok": False, "reasons": (name,)},
        reloaded={name: {"version": None, "problem": name}},
        sinks={name: {**SINK, "problem": f"p{name}", "spool_full": f"f{name}"}},
        clients=[{"client": name, "lag_bytes": 1, "lag_s": None, "lines_read": 1}],
        files=[{**file(name), "client": name}],
        unreadable=[{"path": name, "reason": name}],
        problems=[problem],
    )


def test_the_page_is_bounded() -> None:
    """A tree of 50,000 files must not make a page of as many rows."""
    many = status(
        files=[file("x" * 4096) for _ in range(500)],
        files_open=50_000,
        unreadable=[{"path": "y" * 4096, "reason": "links"}] * 100,
        clients=[{"client": "z" * 64, "lag_bytes": 0, "lag_s": None, "lines_read": 0}] * 33,
    )
    full = [Point(SPAN_S - 5.0 * n, n * 1234.5) for n in range(SAMPLES_MAX)]
    html = page(many, Series(full, full, full, full))

    assert len(html) < 150_000
    assert "25 most behind of 50.0 k" in html


def test_nothing_is_fetched() -> None:
    html = page(status(), EMPTY)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|src=", html)
    assert POLICY.startswith("default-src 'none';")
    assert "unsafe" not in POLICY


def test_rates_are_what_counters_grew_by_and_old_samples_go() -> None:
    """What waits is all of it: in an outage lines are in the spool, and the lag is none."""
    clock, metrics = FakeClock(), Metrics(CollectorRegistry())
    history = History(metrics, clock)
    history.sample()
    clock.advance(5)
    metrics.lines_read.inc(50)
    metrics.events_delivered.inc(40)
    metrics.lines_rejected.labels("invalid_json").inc(5)
    metrics.lines_rejected.labels("too_deep").inc(5)
    metrics.lag_bytes.set(500)
    metrics.spool_bytes.labels("events").set(200)
    history.sample()
    clock.advance(2)

    assert Series([Point(2, 10)], [Point(2, 8)], [Point(2, 2)], [Point(2, 700)]) == history.series()

    for _ in range(1000):
        clock.advance(5)
        history.sample()
    series = history.series()
    assert len(series.unsent_bytes) == SAMPLES_MAX - 1 == len(history._samples) - 1
    assert 0 == series.lines_read[0].value


@given(st.lists(st.floats(0, 1e12), max_size=SAMPLES_MAX))
def test_a_line_stays_within_its_chart(values: list[float]) -> None:
    points = [Point(SPAN_S - 5.0 * n, value) for n, value in enumerate(values)]
    drawn = re.findall(r'class="line" d="M([^"]*)"', chart("Lag", points, "", size))
    for x, y in (pair.split(",") for line in drawn for pair in line.split(" L")):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_no_line_is_drawn_over_a_time_of_which_nothing_is_known() -> None:
    """A machine that slept has no rates for the time it did."""
    points = [Point(300, 1), Point(295, 1), Point(10, 1), Point(5, 1)]
    assert 2 == chart("Lag", points, "", size).count('class="line"')


@pytest.mark.parametrize(
    ("shown", "value", "expected"),
    [
        (count, 0.0, "0"),
        (count, 0.44, "0.4"),
        (count, 1240, "1,240"),
        (count, 12_400, "12.4 k"),
        (count, 3_100_000, "3.1 M"),
        (size, 512, "512 B"),
        (size, 1536, "1.5 KiB"),
        (size, 5 << 40, "5.0 TiB"),
        (span, 4.7, "4 s"),
        (span, 200, "3 min"),
        (span, 7500, "2 h 5 min"),
        (span, 273_600, "3 d 4 h"),
    ],
)
def test_numbers_are_for_people(shown: Callable[[float], str], value: float, expected: str) -> None:
    assert expected == shown(value)


# ---- a real agent, a real browser


@pytest.fixture
def agent(tmp_path: Path, embedded: EmbeddedKafka) -> Iterator[Agent]:
    with Agent(tmp_path, mock_topics(embedded), **IMPATIENT) as agent:
        yield agent


def test_the_page_shows_a_running_agent_also_while_kafka_is_down(
    agent: Agent, embedded: EmbeddedKafka
) -> None:
    append(agent.root / "<b>acme/a.jsonl", [feedback(0), b"no JSON"])
    agent.start()
    agent.until_delivered(1, 1)

    assert escape("<b>acme/a.jsonl") in agent.get("/").body
    assert "<b>acme" not in agent.get("/").body
    assert 2 == sum(one["lines_read"] for one in agent.status()["clients"])

    embedded.broker_down()
    append(agent.root / "<b>acme/a.jsonl", [feedback(1)])
    agent.until(lambda: agent.mode() == "spooling", "spooling")

    html = agent.get("/").body
    assert "events: spooling" in html
    assert "sink.down" in html
    assert "sink.down" in [problem["event"] for problem in agent.status()["problems"]]


def browse(work: Path, url: str, *options: str) -> str:
    """Open ``url`` in a real browser; return what it said."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is missing: scripts/system-packages installs it")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               "--disable-background-networking", f"--user-data-dir={work}/browser",
               *options, url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout + done.stderr


async def test_a_browser_shows_it_and_has_nothing_to_complain_about(agent: Agent) -> None:
    """The policy must let the page's own style through, and name no violation."""
    append(agent.root / "acme/a.jsonl", [feedback(0)])
    await asyncio.to_thread(agent.start)
    await asyncio.to_thread(agent.until_delivered, 1)
    url, shot = f"http://127.0.0.1:{agent._port}/", agent.root.parent / "page.png"

    options = f"--screenshot={shot}", "--window-size=500,900", "--hide-scrollbars"
    said = await asyncio.to_thread(browse, agent.root.parent, url, *options)

    assert "Content Security Policy" not in said, said
    assert shot.read_bytes().startswith(b"\x89PNG")
    document = await asyncio.to_thread(browse, agent.root.parent, url, "--dump-dom")
    assert "acme/a.jsonl" in document
