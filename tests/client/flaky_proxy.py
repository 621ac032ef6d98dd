"""A connection that breaks: forwards to a service and cuts each connection after some bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

_READ = 65536


@dataclass
class Proxy:
    """Settings may change while it runs.

    Attributes:
        port: where it listens.
        cut_after: bytes of a connection from the client before it is cut; None: never.
        pause_s: between two reads from the client, so that a test can be in time.
        sent: bytes that went to the service so far.
    """

    port: int
    cut_after: int | None = None
    pause_s: float = 0.0
    sent: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def flaky_proxy(target: str) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(listener.getsockname()[1])
        over = threading.Event()
        thread = threading.Thread(target=_accept, args=(listener, proxy, target, over), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            over.set()
            thread.join(5)


def _accept(listener: socket.socket, proxy: Proxy, target: str, over: threading.Event) -> None:
    listener.settimeout(0.1)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, proxy, target), daemon=True).start()


def _serve(client: socket.socket, proxy: Proxy, target: str) -> None:
    parts = urlsplit(target)
    with client, socket.create_connection((parts.hostname, parts.port)) as service:
        threading.Thread(target=_answers, args=(service, client), daemon=True).start()
        seen = 0
        with contextlib.suppress(OSError):
            while data := client.recv(_READ):
                if proxy.cut_after is not None and seen + len(data) > proxy.cut_after:
                    break
                service.sendall(data)
                seen += len(data)
                proxy.sent += len(data)
                time.sleep(proxy.pause_s)
        for end in (client, service):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _answers(service: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := service.recv(_READ):
            client.sendall(data)
