"""A server below HTTP: it answers each connection with the bytes a test wrote, and can cut off wherever it likes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class RawServer:
    """Connection number n gets answer number n (the last one again and again); requests are kept."""

    answers: list[bytes]
    port: int = 0
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: str, body: bytes = b"", announced: int | None = None, **headers: str) -> bytes:
    """Bytes of a response; `announced` lies about the length."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body) if announced is None else announced}",
        "Connection: close",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def json_answer(value: object, status: str = "200 OK", **headers: str) -> bytes:
    return answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)


@contextmanager
def raw_server(*answers: bytes) -> Iterator[RawServer]:
    """Serve `answers`; an empty one closes the connection without a word."""
    server = RawServer(list(answers))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        server.port = listener.getsockname()[1]
        over = threading.Event()
        thread = threading.Thread(target=_serve, args=(listener, server, over), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            thread.join(5)


def _serve(listener: socket.socket, server: RawServer, over: threading.Event) -> None:
    count = 0
    while not over.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(2)
            server.requests.append(_read_request(connection))
            reply = server.answers[min(count, len(server.answers) - 1)]
            count += 1
            if reply:
                connection.sendall(reply)


def _read_request(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return data.decode("latin-1")
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += connection.recv(65536)
    return (head + b"\r\n\r\n" + body).decode("latin-1")
