"""Signing in with an API key or a link made with one, and out."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from app.audit import service as audit
from app.core import sessions
from app.core.deps import ReadSession, WriteSession
from app.core.problems import ProblemError, UnauthorizedError, ValidationProblem
from app.core.ratelimit import RateGuard
from app.core.security import Principal, open_session, peer_address
from app.keys import links
from app.web.forms import Form, SameOrigin
from app.web.policy import HEADERS
from app.web.rendering import page
from app.web.routing import LOGIN, pages
from nupes_client.schemas.audit import AuditAction

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
        response: Response = page(request, "login.html", problem.status, next=target, problem=_in_words(problem))
        response.headers.update(problem.headers)
        return response
    return _signed_in(request, target, token)


@router.get(links.PATH)
def show_login_link(request: Request, session: ReadSession, token: str = "") -> Response:  # nosec B107
    """Ask whether to sign in: who only looks at a link, as previews do, leaves it as it is."""
    try:
        link, key = links.find(session, request.app.state.pepper, token)
    except ProblemError as problem:
        return _refused(request, problem)
    return page(request, "login_link.html", link=link, key=key, token=token)


@router.post(links.PATH, dependencies=[SameOrigin])
def use_login_link(request: Request, form: Form, session: WriteSession) -> Response:
    """Exchange the link for a cookie."""
    pepper = request.app.state.pepper
    try:
        link, key = links.use(session, pepper, form.get("token", ""))
    except ProblemError as problem:
        return _refused(request, problem)
    address, request_id = peer_address(request), request.state.request_id
    who = Principal(key.tenant_id, key.id, frozenset(key.scopes), address, request_id)
    audit.record(session, who, AuditAction.LOGIN_LINK_USED, link.id)
    return _signed_in(request, _HOME, sessions.SessionToken.issue(key.id, link.secret_hash, pepper))


def _in_words(problem: ProblemError) -> ProblemError:
    """What is wrong with a key, for who types it; a header is nothing to send from a form."""
    if isinstance(problem, UnauthorizedError):
        problem.hint = "Enter the whole key, from `nupes_` on. It may have been revoked, or its time may be over."
    return problem


def _refused(request: Request, problem: ProblemError) -> Response:
    """The form for a key, with the reason; guesses of links count like guesses of keys.

    Raises:
        TooManyRequestsError: too many from this address.
    """
    guard: RateGuard = request.app.state.rate_guard
    guard.count_failure(peer_address(request))
    return page(request, "login.html", problem.status, next=_HOME, problem=problem)


def _signed_in(request: Request, target: str, token: sessions.SessionToken) -> Response:
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
