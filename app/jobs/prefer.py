"""`Prefer: wait=N` (RFC 7240 §4.3): hold the answer back until there is something to say."""

from __future__ import annotations

import re
from collections.abc import Awaitable

import anyio
from starlette.requests import Request

MAX_WAIT_S = 60

_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


def preferred_wait(request: Request) -> int:
    """Seconds the client wants to wait, at most `MAX_WAIT_S`; 0 without the preference."""
    match = _WAIT.search(",".join(request.headers.getlist("prefer")))
    return min(int(match[1]), MAX_WAIT_S) if match else 0


async def while_connected(request: Request, wait: Awaitable[None]) -> None:
    """Wait, but no longer than the client stays."""
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(listen)
        await wait
        group.cancel_scope.cancel()
