"""ETags and the conditional requests that use them (RFC 9110 §13)."""

from __future__ import annotations

from starlette.requests import Request

from app.core.problems import PreconditionFailedError


def etag(version: int | str) -> str:
    """The strong ETag of a version, quotes included."""
    return f'"{version}"'


def not_modified(request: Request, current: str) -> bool:
    """Whether `If-None-Match` names the current ETag, so that 304 is the answer."""
    return any(_names(value, current, weak=True) for value in request.headers.getlist("if-none-match"))


def check_match(request: Request, current: str) -> None:
    """Refuse a change of another version than the client has seen.

    Raises:
        PreconditionFailedError: `If-Match` is there and names other ETags only.
    """
    values = request.headers.getlist("if-match")
    if values and not any(_names(value, current, weak=False) for value in values):
        raise PreconditionFailedError(current)


def _names(header: str, current: str, *, weak: bool) -> bool:
    candidates = [part.strip() for part in header.split(",")]
    if weak:
        candidates = [part.removeprefix("W/") for part in candidates]
    return "*" in candidates or current in candidates
