"""`/webhooks`: who is told of jobs, and what became of each message."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from app.core.deps import ReadSession
from app.core.pagination import PageParams
from app.core.security import WebhooksManage
from app.web.queries import without_cursor
from app.web.rendering import page
from app.web.routing import pages
from app.webhooks import endpoints as webhooks
from nupes_client.schemas.webhooks import ENDS, WebhookEvent

router = pages()


@router.get("/webhooks")
def show_webhooks(request: Request, who: WebhooksManage, session: ReadSession, params: PageParams) -> Response:
    """Receivers of the tenant, and a form for a new one."""
    return page(
        request,
        "webhooks.html",
        webhooks=webhooks.list_webhooks(who, session, params),
        events=list(WebhookEvent),
        ends=ENDS,
        base_query=without_cursor(request.url.query),
    )


@router.get("/webhooks/{webhook_id}")
def show_webhook(
    webhook_id: str, request: Request, who: WebhooksManage, session: ReadSession, params: PageParams
) -> Response:
    """One receiver with its delivery log."""
    return page(
        request,
        "webhook.html",
        webhook=webhooks.get_webhook(webhook_id, who, session),
        deliveries=webhooks.list_deliveries(webhook_id, who, session, params),
        base_query=without_cursor(request.url.query),
    )
