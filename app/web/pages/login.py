"""Signing in with an API key, and out."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from app.core import sessions
from app.core.problems import ProblemError, ValidationProblem
from app.core.security import open_session
from app.web.forms import Form, SameOrigin
from app.web.policy import HEADERS
from app.web.rendering import page
from app.web.routing import LOGIN, pages

router = pages()
_HOME = "/"


@router.get(LOGIN)
def show_login(request: Request, next: str = _HOME) -> Response:  # noqa: A002
    """The form."""
    return page(request, "login.html", next=_local(next))


@router.post(LOGIN, dependencies=[SameOrigin])
async def login(request: Request, form: Form) -> Response:
    """Exchange the key for a cookie; a key that opens nothing leaves the form with the reason."""
    target, secret = _local(form.get("next", _HOME)), form.get("api_key", "").strip()
    try:
        if not secret:
            raise ValidationProblem("no key was entered", hint="`nupes up` prints one.")
        token = await open_session(request, secret)
    except ProblemError as problem:
        response: Response = page(request, "login.html", problem.status, next=target, problem=problem)
        response.headers.update(problem.headers)
        return response
    response = RedirectResponse(target, 303, headers=HEADERS)
    response.set_cookie(
        sessions.COOKIE,
        str(token),
        max_age=int(sessions.LIFETIME.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout", dependencies=[SameOrigin])
def logout() -> Response:
    """Drop the cookie."""
    response = RedirectResponse(LOGIN, 303, headers=HEADERS)
    response.delete_cookie(sessions.COOKIE)
    return response


def _local(target: str) -> str:
    """A place on this service: what would lead elsewhere leads home."""
    is_path = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_path else _HOME
