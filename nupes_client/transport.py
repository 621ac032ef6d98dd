"""HTTP with retries: what may be sent again is sent again, what came back wrong becomes a typed exception."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from nupes_client.credentials import Credentials
from nupes_client.errors import ConfigurationError, ServiceUnreachableError, api_error
from nupes_client.schemas.problems import Problem
from nupes_client.version import USER_AGENT

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
UNPROCESSED_STATUSES = frozenset({429, 503})
"""Answers that say the request was not acted upon, so that even a plain POST may be repeated."""
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE"})
MAX_DELAY_S = 8.0
MAX_RETRY_AFTER_S = 60.0
Body = Callable[[], Iterator[bytes]]


class Transport:
    """A connection pool to one service.

    Args:
        credentials: where to and with which key.
        timeout_s: for connecting, and for each wait for bytes.
        attempts: how often a request that may be repeated is tried in all.
        backoff_s: first delay; doubles, with jitter.
    """

    def __init__(
        self, credentials: Credentials, *, timeout_s: float = 60.0, attempts: int = 5, backoff_s: float = 0.25
    ) -> None:
        self.url = credentials.url.rstrip("/")
        self._attempts = attempts
        self._backoff_s = backoff_s
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if credentials.api_key:
            headers["Authorization"] = f"Bearer {credentials.api_key}"
        self._client = httpx.Client(
            base_url=_checked(self.url),
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=not _is_loopback(self.url),  # a proxy from the environment can not reach this machine's loopback
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        repeatable: bool | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """Send a request and read the answer whole; 2xx and 304 return, everything else raises.

        Args:
            method: HTTP method.
            path: below the service's address.
            json: body as JSON.
            params: query; None values are left out.
            headers: further headers.
            body: makes the raw body anew for each attempt.
            repeatable: whether repeating it does no harm; by default judged by the method and `Idempotency-Key`.
            timeout_s: other than the pool's.

        Raises:
            ApiError: the service refused.
            ServiceUnreachableError: no answer, or only gateway errors, after all attempts.
        """
        headers = dict(headers or {})
        if repeatable is None:
            repeatable = method in IDEMPOTENT_METHODS or "Idempotency-Key" in headers
        options: dict[str, Any] = {"json": json, "params": _present(params), "headers": headers}
        if timeout_s is not None:
            options["timeout"] = timeout_s
        for attempt in range(1, self._attempts + 1):
            last = attempt == self._attempts
            try:
                response = self._client.request(method, path, content=body() if body else None, **options)
            except httpx.TransportError as error:
                if last or not (repeatable or isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))):
                    raise unreachable(self.url, error) from error
                self._pause(attempt, None)
                continue
            if last or not _worth_repeating(response, repeatable):
                return checked(response)
            self._pause(attempt, response)
        raise AssertionError("attempts is at least 1")

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], timeout_s: float, follow_redirects: bool = False
    ) -> Iterator[httpx.Response]:
        """GET an answer to be read piece by piece; one attempt, transport errors come out as httpx raises them.

        Redirects (to object storage) lose the key on the way: httpx drops `Authorization` for another host.
        """
        with self._client.stream(
            "GET", path, headers=dict(headers), timeout=timeout_s, follow_redirects=follow_redirects
        ) as response:
            yield response

    def pause(self, attempt: int) -> None:
        """Sleep before attempt `attempt + 1`."""
        self._pause(attempt, None)

    def _pause(self, attempt: int, response: httpx.Response | None) -> None:
        delay = min(MAX_DELAY_S, self._backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
        time.sleep(max(delay, _retry_after(response)))


def checked(response: httpx.Response) -> httpx.Response:
    """Return the (read) response when it is a success or 304.

    Raises:
        ApiError: it is not.
    """
    if response.is_success or response.status_code == httpx.codes.NOT_MODIFIED:
        return response
    raise api_error(_problem(response))


_WITHOUT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL says, by its release and the first bytes of the answer, of one who speaks plain HTTP."""


def unreachable(url: str, error: Exception) -> ServiceUnreachableError:
    """The exception for a request nobody answered."""
    reason = str(error) or type(error).__name__
    hint = "Is the service running (`nupes up`)? NUPES_URL says where to look."
    if any(sign in reason for sign in _WITHOUT_TLS):
        hint = (
            f"Something answers there without TLS: is it http{url.removeprefix('https')}? NUPES_URL says where to look."
        )
    return ServiceUnreachableError(f"no answer from {url}: {reason}", hint=hint)


def _worth_repeating(response: httpx.Response, repeatable: bool) -> bool:
    if response.status_code == httpx.codes.CONFLICT and repeatable:
        return _problem(response).retryable  # an equal request with the same Idempotency-Key is still at work
    if _retry_after(response) > MAX_RETRY_AFTER_S:
        return False  # tomorrow, say: the caller shall know now
    return response.status_code in (RETRIED_STATUSES if repeatable else UNPROCESSED_STATUSES)


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:  # a proxy's page, or not our service at all
        return Problem(
            type="about:blank",
            title=response.reason_phrase or "error",
            status=response.status_code,
            detail=f"{response.url} answered {response.status_code} {response.reason_phrase}, not in our words",
            instance=str(response.url),
            code=f"http_{response.status_code}",
            request_id=response.headers.get("X-Request-Id", ""),
        )


def _retry_after(response: httpx.Response | None) -> float:
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if value.isdigit() else 0.0


def _present(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {name: value for name, value in params.items() if value is not None} if params else None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"NUPES_URL is {url!r}: it must look like http://host:port")
    return url


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
