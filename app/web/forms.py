"""Forms that browsers send without JavaScript: signing in and out."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends
from starlette.requests import Request

from app.core.sessions import csrf_refusal


async def _fields(request: Request) -> dict[str, str]:
    """The fields of an `application/x-www-form-urlencoded` body, the last of each name."""
    body = (await request.body()).decode("utf-8", "replace")
    return {name: values[-1] for name, values in parse_qs(body, keep_blank_values=True, max_num_fields=20).items()}


def _same_origin(request: Request) -> None:
    """Refuse what another site made the browser send; a client that says nothing of an origin is no browser.

    Raises:
        ProblemError: 403.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    foreign = site not in {"same-origin", "none"} if site else _foreign(origin, request.headers.get("host"))
    if foreign:
        raise csrf_refusal(f"the form was sent by another site: {origin or site}")


def _foreign(origin: str | None, host: str | None) -> bool:
    return origin is not None and urlsplit(origin).netloc != host


Form = Annotated[dict[str, str], Depends(_fields)]
SameOrigin = Depends(_same_origin)
