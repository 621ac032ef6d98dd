"""One request to a receiver: no redirects, no proxies, bounded in time and bytes. Every end is an outcome.

httpcore is used without httpx around it: it follows no redirect, reads no environment, and takes a network of our own.
"""

from __future__ import annotations

import email.utils
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import certifi
import httpcore

from app.core.clock import now
from app.webhooks.addresses import AddressPolicy
from app.webhooks.network import BlockedAddressError, Deadline, GuardedBackend, Resolve, UnknownHostError, resolve
from app.webhooks.secrets import SecretBox
from app.webhooks.signature import signed_headers
from nupes_client.schemas.webhooks import DeliveryErrorCode
from nupes_core import __version__

EXCERPT_BYTES = 1024
BODY_S = 2.0
"""How long the start of an answer's body is waited for: the status says everything that counts."""
MAX_RETRY_AFTER = timedelta(days=1)
_GONE = 410
_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": f"nupes-webhooks/{__version__}",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


@dataclass(frozen=True)
class Parcel:
    """A message on its way, held under a lease.

    `secrets` are encrypted, the newest first; `token` proves the lease when the outcome is recorded.
    """

    delivery_id: str
    webhook_id: str
    token: str
    url: str
    body: str
    secrets: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of one request."""

    started_at: datetime
    duration_ms: int
    error: DeliveryErrorCode | None
    status: int | None = None
    excerpt: str | None = None
    retry_after: timedelta | None = None


@dataclass(frozen=True)
class _Answer:
    status: int
    excerpt: str
    retry_after: timedelta | None


class Sender:
    """Sends parcels; any number of threads may share one.

    Args:
        box: opens the secrets.
        policy: says where messages may go.
        timeout_s: for a whole request.
        resolver: name to addresses.
    """

    def __init__(self, box: SecretBox, policy: AddressPolicy, timeout_s: float, *, resolver: Resolve = resolve) -> None:
        self._box = box
        self._policy = policy
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._ssl = ssl.create_default_context()  # this machine's authorities, SSL_CERT_FILE included
        self._ssl.load_verify_locations(certifi.where())  # a slim container has none of its own

    def send(self, parcel: Parcel) -> Outcome:
        """Send one message and say what came of it.

        Raises:
            UnreadableSecretError: this process has another secret key than the one that stored the secrets.
        """
        keys = [self._box.key(sealed) for sealed in parcel.secrets]
        moment, began = now(), time.monotonic()
        body = parcel.body.encode()
        headers = {**_HEADERS, **signed_headers(parcel.delivery_id, moment, body, keys)}
        answer, error = self._attempt(lambda: self._post(parcel.url, headers, body))
        duration_ms = round((time.monotonic() - began) * 1000)
        if answer is None:
            return Outcome(moment, duration_ms, error)
        return Outcome(moment, duration_ms, _judge(answer.status), answer.status, answer.excerpt, answer.retry_after)

    def _attempt(self, act: Callable[[], _Answer]) -> tuple[_Answer | None, DeliveryErrorCode | None]:
        try:
            return act(), None
        except tuple(_ERRORS) as error:
            return None, _code(error)

    def _post(self, url: str, headers: dict[str, str], body: bytes) -> _Answer:
        deadline = Deadline(self._timeout_s)
        network = GuardedBackend(self._policy, deadline, self._resolver)
        with (
            httpcore.ConnectionPool(ssl_context=self._ssl, network_backend=network, max_connections=1) as pool,
            pool.stream("POST", url, headers=[*headers.items()], content=body) as response,
        ):
            deadline.shorten(BODY_S)
            names = {name.lower(): value for name, value in response.headers}
            return _Answer(response.status, _excerpt(response), _retry_after(names.get(b"retry-after", b"")))


def _judge(status: int) -> DeliveryErrorCode | None:
    if 200 <= status < 300:
        return None
    if status == _GONE:
        return DeliveryErrorCode.GONE
    return DeliveryErrorCode.REDIRECT if 300 <= status < 400 else DeliveryErrorCode.REFUSED


_ERRORS: dict[type[Exception], DeliveryErrorCode] = {
    BlockedAddressError: DeliveryErrorCode.BLOCKED_ADDRESS,
    UnknownHostError: DeliveryErrorCode.DNS_FAILED,
    httpcore.TimeoutException: DeliveryErrorCode.TIMEOUT,
    httpcore.ConnectError: DeliveryErrorCode.CONNECT_FAILED,
    httpcore.NetworkError: DeliveryErrorCode.BROKEN_ANSWER,
    httpcore.ProtocolError: DeliveryErrorCode.BROKEN_ANSWER,
}
"""The first that fits counts."""


def _code(error: Exception) -> DeliveryErrorCode:
    if isinstance(error, httpcore.ConnectError) and isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return DeliveryErrorCode.TLS_FAILED
    return next(code for kind, code in _ERRORS.items() if isinstance(error, kind))


def _excerpt(response: httpcore.Response) -> str:
    """The first bytes of the body as text that every database can hold; what comes late or broken is left out."""
    content = b""
    try:
        for piece in response.iter_stream():
            content += piece
            if len(content) >= EXCERPT_BYTES:
                break
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        pass  # the status is there: the message was taken, or refused
    text = content[:EXCERPT_BYTES].decode("utf-8", errors="replace")
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def _retry_after(value: bytes) -> timedelta | None:
    """Seconds or a date (RFC 9110 §10.2.3), at most a day."""
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return min(timedelta(seconds=int(text[:9])), MAX_RETRY_AFTER)
    try:
        wait = email.utils.parsedate_to_datetime(text) - now()
    except (ValueError, TypeError):  # no date, or one without a zone
        return None
    return max(timedelta(0), min(wait, MAX_RETRY_AFTER))
