"""A token endpoint over HTTPS, for the client credentials grant."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote_plus

from tests.secured_kafka import HOST, Authorities, bearer_token


def basic(user: str, password: str) -> str:
    """Return the header ``Authorization`` that says so (RFC 6749, section 2.3.1)."""
    pair = f"{quote_plus(user)}:{quote_plus(password)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


class Endpoint(ThreadingHTTPServer):
    """``raw`` is what it says, whatever it is asked; ``granted`` counts tokens."""

    daemon_threads = True
    secret = "endpoint-secret"  # noqa: S105 - of this endpoint
    lifetime_s = 3600.0
    granted = 0
    raw: bytes | None = None


class _Grant(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        if self.server.raw is not None:
            self.wfile.write(self.server.raw)
            return
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = basic("the agent", self.server.secret)
        if self.headers["Authorization"] != wanted or "grant_type=client_credentials" not in body:
            self._answer(401, {"error": "invalid_client", "error_description": "endpoint-secret"})
            return
        self.server.granted += 1
        token = bearer_token(self.server.lifetime_s)
        self._answer(200, {"access_token": token, "expires_in": self.server.lifetime_s})

    def _answer(self, status: int, fields: dict[str, object]) -> None:
        body = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of it."""


@contextmanager
def token_endpoint(cas: Authorities, work: Path) -> Iterator[Endpoint]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cas.issue(work / "endpoint.pem", HOST))
    with Endpoint((HOST, 0), _Grant) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield server
        finally:
            server.shutdown()
            serving.join()
