"""Real receivers of webhooks on this machine, well and badly behaved."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from standardwebhooks import Webhook as Verifier


@dataclass(frozen=True)
class Received:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    def verified_by(self, secret: str) -> dict[str, object]:
        """Its content, when the official library accepts the signature."""
        return dict(Verifier(secret).verify(self.body, self.headers))


Behave = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Reads the message, notes it, and behaves as the receiver was told."""

    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the sender was killed at it: no request at all
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.receiver.got.append(Received(self.path, headers, body))
        self.close_connection = True
        with contextlib.suppress(OSError):  # the sender may have hung up
            self.receiver.behave(self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


@dataclass
class Receiver:
    """A running receiver; `behave` may be replaced while it runs."""

    url: str
    behave: Behave
    got: list[Received] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    """Set when the receiver is closed: what hangs must not outlive its test."""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


def taking(handler: Handler) -> None:
    """Take every message."""
    handler.answer(200, b"thanks")


def answering(status: int, body: bytes = b"", **headers: str) -> Behave:
    """Answer always the same."""
    return lambda handler: handler.answer(status, body, **headers)


def hanging(handler: Handler) -> None:
    """Never answer."""
    handler.receiver.released.wait(60)


def dripping_head(handler: Handler) -> None:
    """Send a head that never ends, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def dripping_body(handler: Handler) -> None:
    """Send a body that never ends, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    _drip(handler)


def pouring(handler: Handler) -> None:
    """Send a body of a gigabyte, if anybody reads it."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**30))
    handler.end_headers()
    for _ in range(1024):
        handler.wfile.write(b"x" * 2**20)


def garbling(handler: Handler) -> None:
    """Answer what is no HTTP."""
    handler.wfile.write(b"\x00\x01\x02 nonsense\r\n\r\n")


def _drip(handler: Handler) -> None:
    while not handler.receiver.released.is_set():
        handler.wfile.write(b"x")
        time.sleep(0.05)


@contextmanager
def receiver(behave: Behave = taking, *, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver on a free port of 127.0.0.1."""
    handler = type("BoundHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    scheme = "https" if tls else "http"
    running = Receiver(f"{scheme}://127.0.0.1:{server.server_address[1]}/hook", behave)
    handler.receiver = running  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        running.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
