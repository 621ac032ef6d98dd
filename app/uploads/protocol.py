"""What tus asks of every request and answer, whatever the endpoint."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads.tus import VERSION

PATH = "/v1/uploads"
_OVERRIDES = frozenset({"PATCH", "DELETE", "HEAD"})


class TusMiddleware:
    """Takes the method from `X-HTTP-Method-Override`, for clients that can send GET and POST alone, and answers those
    that say `Tus-Resumable` with the same.
    """  # noqa: D205

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        override = headers.get("x-http-method-override", "").upper()
        if scope["method"] == "POST" and override in _OVERRIDES:
            scope = {**scope, "method": override}

        async def send_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = VERSION
            await send(message)

        await self.app(scope, receive, send_version if "tus-resumable" in headers else send)
