"""`/keys`, `/usage`, `/docs`: who may do what, how much of it, and how to do it by program."""

from __future__ import annotations

from typing import get_args

from fastapi import Request
from starlette.responses import Response

from app.core.clock import now
from app.core.deps import ReadSession, Settings_
from app.core.pagination import PageParams
from app.core.security import Authenticated, KeysManage
from app.keys import endpoints as keys
from app.usage import endpoints as usage
from app.web.queries import without_cursor
from app.web.rendering import page
from app.web.routing import pages
from app.web.static_files import missing_files, not_built
from nupes_client.schemas.keys import Scope

router = pages()


@router.get("/keys")
def show_keys(request: Request, who: KeysManage, session: ReadSession, params: PageParams) -> Response:
    """Keys of the tenant, and a form for a new one."""
    return page(
        request,
        "keys.html",
        keys=keys.list_keys(who, session, params),
        scopes=[scope for scope in get_args(Scope) if who.may(scope)],
        moment=now(),
        base_query=without_cursor(request.url.query),
    )


@router.get("/usage")
def show_usage(request: Request, who: Authenticated, session: ReadSession, settings: Settings_) -> Response:
    """What the tenant uses of what it may."""
    return page(request, "usage.html", usage=usage.get_usage(who, request, session, settings))


@router.get("/docs")
def show_docs(request: Request, _who: Authenticated) -> Response:
    """Swagger UI over the OpenAPI document."""
    if missing_files():
        raise not_built()
    return page(request, "docs.html")
