"""What a tenant can do with its webhooks, in the caller's transaction. Other tenants' webhooks do not exist."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from pydantic import HttpUrl
from sqlalchemy.orm import Session

from app.audit import service as audit
from app.core.clock import now
from app.core.problems import ConflictError, NotFoundError, ValidationProblem
from app.core.security import Principal
from app.db.tables import Webhook as WebhookRow
from app.db.tables import WebhookDelivery
from app.settings import Settings
from app.webhooks import repository
from app.webhooks.addresses import AddressPolicy
from app.webhooks.announce import announce_test
from app.webhooks.results import disable, enable
from app.webhooks.secrets import SecretBox
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.webhooks import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    DisabledReason,
    Webhook,
    WebhookCreate,
    WebhookCreated,
    WebhookPatch,
)

MAX_WEBHOOKS = 100
"""Of one tenant: each change of each of its jobs looks at all of them."""


def create(session: Session, settings: Settings, box: SecretBox, who: Principal, body: WebhookCreate) -> WebhookCreated:
    """Add a webhook.

    Raises:
        ValidationProblem: messages may not go to this address.
        ConflictError: the tenant has as many as it can have.
    """
    _check(body.url, settings)
    if repository.count(session, who.tenant_id) >= MAX_WEBHOOKS:
        raise ConflictError(
            "too_many_webhooks", f"there are {MAX_WEBHOOKS} webhooks already", hint="Delete one that is not needed."
        )
    secret, sealed = box.make()
    row = WebhookRow(tenant_id=who.tenant_id, secret=sealed, **body.model_dump(mode="json"))
    session.add(row)
    session.flush()
    audit.record(session, who, AuditAction.WEBHOOK_CREATED, row.id)
    return WebhookCreated(**view(row).model_dump(), secret=secret)


def get(session: Session, tenant_id: str, webhook_id: str, *, lock: bool = False) -> WebhookRow:
    """Return one webhook.

    Raises:
        NotFoundError: no such webhook in this tenant.
    """
    row = repository.get(session, tenant_id, webhook_id, lock=lock)
    if row is None:
        raise NotFoundError("webhook", webhook_id)
    return row


def change(session: Session, settings: Settings, who: Principal, webhook_id: str, patch: WebhookPatch) -> Webhook:
    """Change the fields that are in the patch; the rest stays."""
    row = get(session, who.tenant_id, webhook_id, lock=True)
    if patch.url is not None:
        _check(patch.url, settings)
    if patch.enabled is True:
        enable(row)
    if patch.enabled is False and row.enabled:
        disable(row, DisabledReason.USER)
    for name, value in patch.model_dump(mode="json", exclude_unset=True, exclude={"enabled"}).items():
        setattr(row, name, value)
    session.flush()
    audit.record(session, who, AuditAction.WEBHOOK_CHANGED, row.id)
    return view(row)


def remove(session: Session, who: Principal, webhook_id: str) -> None:
    """Delete a webhook and its log; what waits for it is not sent."""
    repository.remove(session, get(session, who.tenant_id, webhook_id, lock=True))
    audit.record(session, who, AuditAction.WEBHOOK_DELETED, webhook_id)


def rotate(session: Session, box: SecretBox, who: Principal, webhook_id: str, overlap: timedelta) -> WebhookCreated:
    """Replace the secret; for the time of the overlap messages are signed with the old one too."""
    row = get(session, who.tenant_id, webhook_id, lock=True)
    secret, sealed = box.make()
    row.previous_secret, row.secret = row.secret, sealed
    row.previous_secret_until = now() + overlap
    session.flush()
    audit.record(session, who, AuditAction.WEBHOOK_ROTATED, row.id)
    return WebhookCreated(**view(row).model_dump(), secret=secret)


def test(session: Session, who: Principal, webhook_id: str) -> Delivery:
    """Queue a test message.

    Raises:
        ConflictError: the webhook is disabled.
    """
    row = announce_test(session, _enabled(session, who.tenant_id, webhook_id))
    audit.record(session, who, AuditAction.WEBHOOK_TESTED, webhook_id)
    return delivery_views(session, [row])[0]


def delivery(
    session: Session, tenant_id: str, webhook_id: str, delivery_id: str, *, lock: bool = False
) -> WebhookDelivery:
    """Return one delivery.

    Raises:
        NotFoundError: no such delivery of a webhook of this tenant.
    """
    row = repository.delivery(session, tenant_id, webhook_id, delivery_id, lock=lock)
    if row is None:
        raise NotFoundError("delivery", delivery_id)
    return row


def redeliver(session: Session, who: Principal, webhook_id: str, delivery_id: str) -> Delivery:
    """Send a message again, under its old id, with a whole day of attempts.

    Raises:
        ConflictError: it is still being delivered, or the webhook is disabled.
    """
    delivery(session, who.tenant_id, webhook_id, delivery_id)
    _enabled(session, who.tenant_id, webhook_id)
    row = delivery(session, who.tenant_id, webhook_id, delivery_id, lock=True)
    if row.status == DeliveryStatus.PENDING:
        raise ConflictError(
            "delivery_pending", f"{row.id} is still being delivered", hint="Look at its next_attempt_at."
        )
    row.status = DeliveryStatus.PENDING.value
    row.tries = 0
    row.next_attempt_at = now()
    row.gives_up_at = row.finished_at = None
    session.flush()
    audit.record(session, who, AuditAction.WEBHOOK_REDELIVERED, row.id)
    return delivery_views(session, [row])[0]


def view(row: WebhookRow) -> Webhook:
    """The wire model of a webhook."""
    return Webhook.model_validate(row, from_attributes=True)


def delivery_views(session: Session, rows: Sequence[WebhookDelivery]) -> list[Delivery]:
    """The wire models of several deliveries, their attempts read in one query."""
    attempts = repository.attempts(session, [row.id for row in rows])
    return [_delivery_view(row, attempts.get(row.id, ())) for row in rows]


def _delivery_view(row: WebhookDelivery, attempts: Sequence[object]) -> Delivery:
    same = {name: getattr(row, name) for name in Delivery.model_fields if name != "attempts"}
    listed = [DeliveryAttempt.model_validate(each, from_attributes=True) for each in attempts]
    return Delivery.model_validate({**same, "attempts": listed})


def _enabled(session: Session, tenant_id: str, webhook_id: str) -> WebhookRow:
    row = get(session, tenant_id, webhook_id, lock=True)
    if not row.enabled:
        raise ConflictError(
            "webhook_disabled",
            f"{row.id} is disabled ({row.disabled_reason})",
            hint='Enable it first: PATCH {"enabled": true}.',
        )
    return row


def _check(url: HttpUrl, settings: Settings) -> None:
    if url.scheme != "https" and not settings.webhook_http:
        raise ValidationProblem(
            f"{url.scheme}:// is not allowed for webhooks: anybody on the way could read the messages",
            code="insecure_url",
            pointer="/url",
            hint="Use https, or set NUPES_WEBHOOK_HTTP=true on a service for development.",
        )
    if not AddressPolicy(settings.allowed_webhook_networks).permits_host(url.host or ""):
        raise ValidationProblem(
            f"{url.host!r} is not on the public internet",
            code="blocked_address",
            pointer="/url",
            hint="Use a public address; the operator can allow networks with NUPES_WEBHOOK_NETWORKS.",
        )
