"""Connections to strangers' addresses: resolved once, checked, connected to exactly what was checked, on a deadline."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore

from app.webhooks.addresses import AddressPolicy

Resolve = Callable[[str, int], list[str]]


class BlockedAddressError(Exception):
    """The host has no address that messages may go to."""


class UnknownHostError(Exception):
    """The host has no address at all."""


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order of preference of this machine.

    Raises:
        UnknownHostError: there are none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnknownHostError(f"{host}: {error}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Deadline:
    """A moment at which everything ends, however the time is spent until then."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def shorten(self, seconds: float) -> None:
        """End after so many seconds from now, if that is earlier."""
        self._at = min(self._at, time.monotonic() + seconds)

    def left(self, timeout: float | None, expired: type[httpcore.TimeoutException]) -> float:
        """Seconds that a step with a limit of its own may take; raises `expired` when the time is over."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise expired("the time for the whole request is over")
        return left if timeout is None else min(left, timeout)


class GuardedBackend(httpcore.NetworkBackend):
    """Network of one request.

    A name that resolves to something else a moment later gains nothing: the address that was checked is the address
    that is connected to, and the socket's peer is checked once more.

    Args:
        policy: says where connections may go.
        deadline: of the whole request; the limits of single steps only shorten it.
        resolver: name to addresses.
    """

    def __init__(self, policy: AddressPolicy, deadline: Deadline, resolver: Resolve = resolve) -> None:
        self._policy = policy
        self._deadline = deadline
        self._resolve = resolver
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first permitted address that answers.

        Raises:
            BlockedAddressError, UnknownHostError: there is no address to try.
            httpcore.ConnectError, httpcore.ConnectTimeout: nobody answers there.
        """
        addresses = [each for each in self._resolve(host.strip("[]"), port) if self._policy.permits(each)]
        if not addresses:
            raise BlockedAddressError(f"{host} has no address on the public internet")
        for address in addresses[:-1]:
            try:
                return self._connect(address, port, timeout, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return self._connect(addresses[-1], port, timeout, socket_options)

    def _connect(
        self, address: str, port: int, timeout: float | None, socket_options: Iterable[Any] | None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        stream = self._sockets.connect_tcp(address, port, timeout=left, socket_options=socket_options)
        peer = str(stream.get_extra_info("server_addr")[0])
        if not self._policy.permits(peer):
            stream.close()
            raise BlockedAddressError(f"connected to {peer}")
        return _DeadlineStream(stream, self._deadline)


class _DeadlineStream(httpcore.NetworkStream):
    """A stream that ends at a moment, however slowly the other side drips."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        self._stream.close()
