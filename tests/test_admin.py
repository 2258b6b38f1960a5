import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from agent import admin
from agent.admin import Admin, Health, Page
from agent.errors import ConfigError
from tests.patience import WITHIN_S


def well() -> Health:
    return Health(True)


def blank() -> Page:
    return Page("<!doctype html>", "default-src 'none'")


@asynccontextmanager
async def serving(
    *,
    health: Callable[[], Health] = well,
    ready: Callable[[], Health] = well,
    status: Callable[[], Mapping[str, object]] = dict,
    page: Callable[[], Page] = blank,
    timeout_s: float = 5.0,
) -> AsyncIterator[Admin]:
    registry = CollectorRegistry()
    Counter("feedback_agent_lines_read", "Lines.", registry=registry).inc(7)
    server = Admin(
        "127.0.0.1",
        0,
        registry=registry,
        health=health,
        ready=ready,
        status=status,
        page=page,
        timeout_s=timeout_s,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not true():  # noqa: ASYNC110  the server offers no event for it
            await asyncio.sleep(0.001)


async def exchange(server: Admin, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(raw)
    try:
        return await reader.read()
    finally:
        writer.close()


async def ask(
    server: Admin, target: str, method: str = "GET", accept: str = "*/*"
) -> tuple[int, dict[str, str], bytes]:
    raw = await exchange(
        server, f"{method} {target} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()
    )
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), body


async def test_metrics_speak_the_format_that_was_asked_for() -> None:
    async with serving() as server:
        status, headers, body = await ask(server, "/metrics")
        assert (200, "text/plain; version=0.0.4; charset=utf-8") == (
            status,
            headers["Content-Type"],
        )
        assert b"feedback_agent_lines_read_total 7.0" in body

        _, headers, body = await ask(
            server, "/metrics", accept="application/openmetrics-text;version=1.0.0"
        )
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_is_a_status_and_its_reasons(path: str) -> None:
    verdict = Health(True, ("spooling",))
    async with serving(health=lambda: verdict, ready=lambda: verdict) as server:
        status, headers, body = await ask(server, path)
        assert (200, "application/json") == (status, headers["Content-Type"])
        assert {"ok": True, "reasons": ["spooling"]} == json.loads(body)

        verdict = Health(False, ("no_partition", "store"))
        status, _, body = await ask(server, path)
        assert 503 == status
        assert {"ok": False, "reasons": ["no_partition", "store"]} == json.loads(body)


async def test_alive_and_ready_are_two_questions() -> None:
    async with serving(ready=lambda: Health(False, ("starting",))) as server:
        assert (200, 503) == ((await ask(server, "/healthz"))[0], (await ask(server, "/readyz"))[0])


async def test_status_carries_any_path_a_file_system_may_hold() -> None:
    name = b"caf\xe9\n.jsonl".decode("utf-8", "surrogateescape")
    async with serving(status=lambda: {"files": [name]}) as server:
        status, _, body = await ask(server, "/status?x=1")

    assert 200 == status
    assert [name] == json.loads(body)["files"]


async def test_the_page_comes_with_what_a_browser_may_do_with_it() -> None:
    page = Page("<!doctype html><p>\u00e9</p>", "default-src 'none'")
    async with serving(page=lambda: page) as server:
        status, headers, body = await ask(server, "/")

    assert (200, "text/html; charset=utf-8") == (status, headers["Content-Type"])
    assert "default-src 'none'" == headers["Content-Security-Policy"]
    assert ("nosniff", "no-referrer") == (
        headers["X-Content-Type-Options"],
        headers["Referrer-Policy"],
    )
    assert page.html == body.decode()


async def test_head_is_get_without_the_body() -> None:
    async with serving() as server:
        _, of_get, body = await ask(server, "/metrics")
        status, of_head, nothing = await ask(server, "/metrics", "HEAD")

    assert (200, b"") == (status, nothing)
    assert of_get == of_head
    assert str(len(body)) == of_head["Content-Length"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_written(method: str) -> None:
    async with serving() as server:
        status, headers, _ = await ask(server, "/metrics", method)

    assert (405, "GET, HEAD") == (status, headers["Allow"])


async def test_what_is_not_there_is_not_found() -> None:
    async with serving() as server:
        assert 404 == (await ask(server, "/favicon.ico"))[0]
        assert 404 == (await ask(server, "/metrics/../etc/passwd"))[0]


async def test_the_absolute_form_is_understood() -> None:
    """RFC 9112, 3.2.2: a server must accept it."""
    async with serving() as server:
        assert 200 == (await ask(server, "http://agent:9108/healthz"))[0]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET /metrics HTTP/2.0\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_bad_request(raw: bytes) -> None:
    async with serving() as server:
        assert (await exchange(server, raw)).startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_request_has_a_size() -> None:
    async with serving() as server:
        raw = b"GET / HTTP/1.1\r\nX: " + b"a" * admin.REQUEST_BYTES_MAX
        got = await exchange(server, raw)

        assert got.startswith(b"HTTP/1.1 431 ")
        assert 200 == (await ask(server, "/healthz"))[0]


async def test_a_client_that_says_nothing_is_dropped() -> None:
    async with serving(timeout_s=0.05) as server:
        assert b"" == await exchange(server, b"GET / HT")
        server._timeout_s = WITHIN_S  # whoever does say something may be slow
        assert 200 == (await ask(server, "/healthz"))[0]


async def test_connections_are_counted() -> None:
    async with serving() as server:
        held = [
            await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(admin.CONNECTIONS_MAX)
        ]
        await until(lambda: len(server._open) == admin.CONNECTIONS_MAX)

        with pytest.raises((ConnectionError, ValueError, IndexError)):
            await ask(server, "/healthz")

        for _, writer in held:
            writer.close()
        await until(lambda: not server._open)
        assert 200 == (await ask(server, "/healthz"))[0]


async def test_a_question_that_fails_costs_a_500_and_never_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> dict[str, object]:
        raise ValueError("the status itself")

    async with serving(status=broken) as server:
        status, _, body = await ask(server, "/status")
        assert 500 == status
        assert b"the status itself" not in body
        assert 200 == (await ask(server, "/healthz"))[0]
    assert ["admin.failed"] == [record.message for record in caplog.records]


async def test_every_answer_closes_its_connection_and_is_not_kept() -> None:
    async with serving() as server:
        for target in ("/metrics", "/healthz", "/nowhere"):
            _, headers, _ = await ask(server, target)
            assert ("close", "no-store") == (headers["Connection"], headers["Cache-Control"])


async def test_a_port_in_use_is_a_mistake_in_the_configuration() -> None:
    async with serving() as server:
        second = Admin(
            "127.0.0.1",
            server.port,
            registry=CollectorRegistry(),
            health=well,
            ready=well,
            status=dict,
            page=blank,
        )
        with pytest.raises(ConfigError, match=r"^http\.port: found \d+, already in use"):
            await second.start()
        await second.close()


async def test_an_address_of_another_machine_is_one_too() -> None:
    registry = CollectorRegistry()
    other = Admin(
        "192.0.2.1", 0, registry=registry, health=well, ready=well, status=dict, page=blank
    )
    with pytest.raises(ConfigError, match=r"^http\.host: found '192\.0\.2\.1'; allowed: "):
        await other.start()


async def test_close_waits_for_no_client_and_leaves_no_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(timeout_s=60.0) as server:
        port = server.port
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: bool(server._open))

        await server.close()
        writer.close()

    assert {asyncio.current_task()} == asyncio.all_tasks()
    assert [] == caplog.records
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@given(st.binary(max_size=100))
def test_parsing_is_total(raw: bytes) -> None:
    parsed = admin._parsed(raw + b"\r\n\r\n")

    assert parsed is None or parsed.path
