"""Around every request: an id, one access log line, a limit on the body, and a problem when nobody caught the error."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core import tracing
from app.core.handlers import internal_error
from app.core.ids import new_id
from app.core.problems import TooLargeError, problem_response

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_RAW_BODIES = {
    "PUT": re.compile(r"/v1/uploads/[^/]+/content"),
    "PATCH": re.compile(r"/v1/uploads/[^/]+"),
    "POST": re.compile(r"/v1/uploads"),
}
_RAW_TYPES = frozenset({"application/offset+octet-stream"})
_QUIET = re.compile(r"/livez|/readyz|/metrics|/static/.*")
"""Asked for all the time by machines and browsers: neither logged, but for debugging, nor traced."""

log = structlog.get_logger("app.access")


class RequestContextMiddleware:
    """Gives the request an id (the client's when it is well formed), logs it, and answers 500 to what nobody caught."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id), _request_span(scope, request_id):
            await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if rate := scope["state"].get("rate"):
                    headers.update(rate.headers())
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error", method=scope["method"], path=scope["path"])
            if status:  # the head is out: all that is left is to break off, so that the client sees a cut body
                raise
            await problem_response(Request(scope), internal_error())(scope, receive, send_with_id)
        finally:
            _log_access(scope, status, time.perf_counter() - started)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")


def _request_span(scope: Scope, request_id: str) -> AbstractContextManager[Any]:
    """Named by the method alone: a path holds ids, and there must be few names."""
    if not tracing.is_on() or _QUIET.fullmatch(scope["path"]):
        return nullcontext()
    given = Headers(scope=scope).get("traceparent")
    return tracing.span(
        scope["method"], parent=given, kind="server", **{"url.path": scope["path"], "nupes.request_id": request_id}
    )


def _log_access(scope: Scope, status: int, seconds: float) -> None:
    """One line a request. The query is left out: a signed link carries its signature there."""
    level = log.debug if _QUIET.fullmatch(scope["path"]) else log.info
    principal: Any = scope["state"].get("principal")
    level(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        ms=round(seconds * 1000, 1),
        key_id=getattr(principal, "key_id", None),
    )


def _is_streamed(scope: Scope) -> bool:
    path = _RAW_BODIES.get(scope["method"])
    if path is None or not path.fullmatch(scope["path"]):
        return False
    headers = Headers(scope=scope)
    return scope["method"] != "POST" or ("tus-resumable" in headers and headers.get("content-type") in _RAW_TYPES)


class BodyLimitMiddleware:
    """Refuses bodies over `limit` bytes, by their announced length or once they grow past it.

    The raw bodies of uploads are left alone: their endpoint streams them and knows the announced size.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or _is_streamed(scope):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > self.limit:
            await problem_response(Request(scope), TooLargeError(self._detail()))(scope, receive, send)
            return
        await self.app(scope, self._counting(receive), send)

    def _detail(self) -> str:
        return f"the body has more than {self.limit} bytes"

    def _counting(self, receive: Receive) -> Receive:
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                # The framework passes its own exception through while it reads a body, and hides any other.
                raise HTTPException(413, self._detail())
            return message

        return receive_counted
