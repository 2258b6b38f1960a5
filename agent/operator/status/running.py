"""What a running agent says of itself, over HTTP."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from agent.config.sections import Http
from agent.errors import AgentError

TIMEOUT_S = 5.0
BYTES_MAX = 64 << 20
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  an address that is listened on


class NoAnswer(Exception):
    """Nobody answers there, or nobody who is an agent. ``str()`` is for people."""


def url_of(section: Http) -> str | None:
    """Return where the agent of this configuration answers; None where it took any free port."""
    if section.port == 0:
        return None
    host = LOOPBACK.get(section.host, section.host)
    return f"http://[{host}]:{section.port}" if ":" in host else f"http://{host}:{section.port}"


def asked(url: str) -> dict[str, Any]:
    """Return what ``/status`` of ``url`` says. Raises ``NoAnswer``; ``AgentError`` for no URL."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise AgentError(f"--url {url}: {error}") from None
    if parts.scheme not in {"", "http"} or not host:
        raise AgentError(f"--url {url}: found no http://host:port")
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        found = json.loads(answer.read(BYTES_MAX))
    except TimeoutError:
        raise NoAnswer(f"{url} takes longer than {TIMEOUT_S:.0f} s to answer") from None
    except OSError as error:
        raise NoAnswer(f"{url}: {(error.strerror or str(error)).lower()}") from None
    except (http.client.HTTPException, ValueError):
        raise NoAnswer(f"{url} does not answer as an agent does") from None
    finally:
        connection.close()
    if not isinstance(found, dict) or not {"node", "sinks", "files"} <= found.keys():
        raise NoAnswer(f"{url} does not answer as an agent does")
    return found
