"""`/v1/webhooks`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response, status

from app.core.deps import ReadSession, Settings_, WriteSession
from app.core.openapi import problems
from app.core.pagination import PageParams, paginate
from app.core.security import WebhooksManage
from app.db import tables
from app.webhooks import repository, service
from app.webhooks.secrets import SecretBox
from nupes_client.schemas.base import Page
from nupes_client.schemas.webhooks import (
    Delivery,
    DeliveryStatus,
    Webhook,
    WebhookCreate,
    WebhookCreated,
    WebhookPatch,
    WebhookRotate,
)

PATH = "/v1/webhooks"
router = APIRouter(prefix=PATH, tags=["webhooks"])


async def _box(request: Request) -> SecretBox:
    return SecretBox(request.app.state.pepper)


Box = Annotated[SecretBox, Depends(_box)]
Statuses = Annotated[list[DeliveryStatus], Query(alias="status", description="One of these; repeat the parameter.")]


@router.post("", status_code=status.HTTP_201_CREATED, responses=problems(409))
def create_webhook(
    body: WebhookCreate, who: WebhooksManage, session: WriteSession, settings: Settings_, box: Box, response: Response
) -> WebhookCreated:
    """Ask to be told of jobs. The signing secret is in this answer and nowhere else."""
    webhook = service.create(session, settings, box, who, body)
    response.headers["Location"] = f"{PATH}/{webhook.id}"
    return webhook


@router.get("")
def list_webhooks(who: WebhooksManage, session: ReadSession, params: PageParams) -> Page[Webhook]:
    """Webhooks of the tenant, newest first."""
    rows, cursor = paginate(session, repository.listing(who.tenant_id), tables.Webhook.id, params)
    return Page(data=[service.view(row) for row in rows], next_cursor=cursor, has_more=cursor is not None)


@router.get("/{webhook_id}")
def get_webhook(webhook_id: str, who: WebhooksManage, session: ReadSession) -> Webhook:
    """One webhook, and how it fares."""
    return service.view(service.get(session, who.tenant_id, webhook_id))


@router.patch("/{webhook_id}")
def change_webhook(
    webhook_id: str, body: WebhookPatch, who: WebhooksManage, session: WriteSession, settings: Settings_
) -> Webhook:
    """Change what is sent and where, switch it off, or on again."""
    return service.change(session, settings, who, webhook_id, body)


@router.delete("/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_webhook(webhook_id: str, who: WebhooksManage, session: WriteSession) -> None:
    """Delete a webhook and the log of its deliveries."""
    service.remove(session, who, webhook_id)


@router.post("/{webhook_id}/rotate")
def rotate_secret(
    webhook_id: str, who: WebhooksManage, session: WriteSession, box: Box, body: WebhookRotate | None = None
) -> WebhookCreated:
    """Replace the secret; for the time of the overlap messages carry the signatures of both."""
    overlap = timedelta(seconds=(body or WebhookRotate()).overlap_s)
    return service.rotate(session, box, who, webhook_id, overlap)


@router.post("/{webhook_id}/test", status_code=status.HTTP_202_ACCEPTED, responses=problems(409))
def test_webhook(webhook_id: str, who: WebhooksManage, session: WriteSession, response: Response) -> Delivery:
    """Send a test message, whatever the filters; its `Location` tells how it went."""
    delivery = service.test(session, who, webhook_id)
    response.headers["Location"] = f"{PATH}/{webhook_id}/deliveries/{delivery.id}"
    return delivery


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: str,
    who: WebhooksManage,
    session: ReadSession,
    params: PageParams,
    statuses: Statuses = [],  # noqa: B006
) -> Page[Delivery]:
    """What was sent, newest first, with every attempt; kept for 30 days."""
    service.get(session, who.tenant_id, webhook_id)
    statement = repository.deliveries(who.tenant_id, webhook_id, statuses)
    rows, cursor = paginate(session, statement, tables.WebhookDelivery.id, params)
    return Page(data=service.delivery_views(session, rows), next_cursor=cursor, has_more=cursor is not None)


@router.get("/{webhook_id}/deliveries/{delivery_id}")
def get_delivery(webhook_id: str, delivery_id: str, who: WebhooksManage, session: ReadSession) -> Delivery:
    """One message and what became of it."""
    row = service.delivery(session, who.tenant_id, webhook_id, delivery_id)
    return service.delivery_views(session, [row])[0]


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=status.HTTP_202_ACCEPTED, responses=problems(409)
)
def redeliver(webhook_id: str, delivery_id: str, who: WebhooksManage, session: WriteSession) -> Delivery:
    """Send a message again, under the same message id."""
    return service.redeliver(session, who, webhook_id, delivery_id)
