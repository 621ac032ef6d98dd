"""`/secrets`: values that jobs take to a hub, by name; no page ever has one."""

from __future__ import annotations

from typing import get_args

from fastapi import Request
from starlette.responses import Response

from app.core.deps import ReadSession
from app.core.pagination import PageParams
from app.core.security import SecretsManage
from app.secrets import endpoints as secrets
from app.web.queries import without_cursor
from app.web.rendering import page
from app.web.routing import pages
from nupes_client.schemas.secrets import SecretKind

router = pages()


@router.get("/secrets")
def show_secrets(request: Request, who: SecretsManage, session: ReadSession, params: PageParams) -> Response:
    """Secrets of the tenant, and a form for a new one."""
    return page(
        request,
        "secrets.html",
        secrets=secrets.list_secrets(who, session, params),
        kinds=get_args(SecretKind),
        base_query=without_cursor(request.url.query),
    )


@router.get("/secrets/{secret_name}")
def show_secret(secret_name: str, request: Request, who: SecretsManage, session: ReadSession) -> Response:
    """One secret, to give it another value or to delete it."""
    return page(request, "secret.html", secret=secrets.get_secret(secret_name, who, session))
