"""All SQL about webhooks. What a user can cause is filtered by tenant; the rest is the couriers' work.

Whoever needs both locks takes the webhook's row before the delivery's: deleting a webhook does so too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import Webhook, WebhookAttempt, WebhookDelivery
from nupes_client.schemas.webhooks import DeliveryStatus

_PENDING = WebhookDelivery.status == DeliveryStatus.PENDING.value


def get(session: Session, tenant_id: str, webhook_id: str, *, lock: bool = False) -> Webhook | None:
    """One webhook of the tenant; with `lock` nobody else changes it before the transaction ends."""
    query = select(Webhook).where(Webhook.tenant_id == tenant_id, Webhook.id == webhook_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def listing(tenant_id: str) -> Select[Webhook]:
    """The query of a list."""
    return select(Webhook).where(Webhook.tenant_id == tenant_id)


def count(session: Session, tenant_id: str) -> int:
    """How many webhooks the tenant has."""
    return session.scalar(select(func.count()).select_from(Webhook).where(Webhook.tenant_id == tenant_id)) or 0


_LISTENERS = (
    select(Webhook)
    .where(Webhook.tenant_id == bindparam("tenant_id"), Webhook.enabled.is_(True))
    .order_by(Webhook.id)
    .with_for_update(read=True, key_share=True)
)


def listeners(session: Session, tenant_id: str) -> Sequence[Webhook]:
    """The enabled webhooks of a tenant, kept from being deleted until the end of the transaction.

    Without that a webhook deleted at this moment would make the insert of its delivery fail, and with it the job's
    change of status.
    """
    return session.scalars(_LISTENERS, {"tenant_id": tenant_id}).all()


def remove(session: Session, webhook: Webhook) -> None:
    """Delete a webhook with its deliveries and their attempts."""
    session.execute(delete(Webhook).where(Webhook.id == webhook.id))


def delivery(
    session: Session, tenant_id: str, webhook_id: str, delivery_id: str, *, lock: bool = False
) -> WebhookDelivery | None:
    """One delivery of one webhook of the tenant."""
    query = deliveries(tenant_id, webhook_id).where(WebhookDelivery.id == delivery_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def deliveries(tenant_id: str, webhook_id: str, statuses: Sequence[DeliveryStatus] = ()) -> Select[WebhookDelivery]:
    """The query of a webhook's log."""
    query = select(WebhookDelivery).where(
        WebhookDelivery.tenant_id == tenant_id, WebhookDelivery.webhook_id == webhook_id
    )
    return query.where(WebhookDelivery.status.in_([each.value for each in statuses])) if statuses else query


def attempts(session: Session, delivery_ids: Collection[str]) -> dict[str, list[WebhookAttempt]]:
    """The attempts of several deliveries, in order."""
    found: dict[str, list[WebhookAttempt]] = defaultdict(list)
    query = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(delivery_ids)).order_by(WebhookAttempt.number)
    for attempt in session.scalars(query):
        found[attempt.delivery_id].append(attempt)
    return found


def due(session: Session, moment: datetime, *, failing: bool, each: int, limit: int) -> dict[str, list[str]]:
    """Ids of deliveries that could be sent now, by webhook: first one of each webhook, the longest waiting.

    Args:
        session: where to read.
        moment: now.
        failing: look at webhooks whose last attempt failed, or at all others.
        each: at most so many of one webhook, those that are being sent included: none waits behind another's backlog.
        limit: at most so many in all.
    """
    place = func.row_number().over(
        partition_by=WebhookDelivery.webhook_id, order_by=(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
    )
    waiting = (
        select(WebhookDelivery.id, WebhookDelivery.webhook_id, WebhookDelivery.next_attempt_at, place.label("place"))
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(_is_open(moment, failing=failing), _is_due(moment))
        .subquery()
    )
    flying = _flying(moment).group_by(WebhookDelivery.webhook_id).subquery()
    query = (
        select(waiting.c.webhook_id, waiting.c.id)
        .outerjoin(flying, flying.c.webhook_id == waiting.c.webhook_id)
        .where(waiting.c.place + func.coalesce(flying.c.number, 0) <= each)
        .order_by(waiting.c.place, waiting.c.next_attempt_at, waiting.c.id)
        .limit(limit)
    )
    found: dict[str, list[str]] = defaultdict(list)
    for webhook_id, delivery_id in session.execute(query):
        found[webhook_id].append(delivery_id)
    return found


def open_webhook(session: Session, webhook_id: str, moment: datetime) -> Webhook | None:
    """A webhook that may be sent to now, locked; None when it is gone, disabled or paused."""
    query = select(Webhook).where(Webhook.id == webhook_id, _is_open(moment)).with_for_update()
    return session.scalars(query).one_or_none()


def flying(session: Session, webhook_id: str, moment: datetime) -> int:
    """How many deliveries of a webhook are being sent."""
    query = _flying(moment).where(WebhookDelivery.webhook_id == webhook_id).group_by(WebhookDelivery.webhook_id)
    row = session.execute(query).one_or_none()
    return int(row.number) if row else 0


def take(session: Session, delivery_id: str, token: str, moment: datetime, until: datetime) -> WebhookDelivery | None:
    """Put a lease on a delivery that is due; None when another courier was faster."""
    statement = (
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, _is_due(moment))
        .values(lease_owner=token, lease_until=until)
        .execution_options(synchronize_session=False)
    )
    if session.connection().execute(statement).rowcount != 1:
        return None
    return session.get(WebhookDelivery, delivery_id, populate_existing=True)


def held(session: Session, webhook_id: str, delivery_id: str, token: str) -> tuple[Webhook, WebhookDelivery] | None:
    """A delivery under its lease and its webhook, both locked; None when the lease was lost or all is deleted."""
    webhook = session.scalars(select(Webhook).where(Webhook.id == webhook_id).with_for_update()).one_or_none()
    query = select(WebhookDelivery).where(WebhookDelivery.id == delivery_id, WebhookDelivery.lease_owner == token)
    row = session.scalars(query.with_for_update()).one_or_none()
    return (webhook, row) if webhook and row else None


def stranded(before: datetime) -> ColumnElement[bool]:
    """Deliveries that were due before a moment and whose webhook is disabled."""
    disabled = select(Webhook.id).where(Webhook.enabled.is_(False))
    return and_(_PENDING, WebhookDelivery.next_attempt_at < before, WebhookDelivery.webhook_id.in_(disabled))


def outdated(before: datetime) -> ColumnElement[bool]:
    """Deliveries that were made before a moment and have ended."""
    return and_(~_PENDING, WebhookDelivery.created_at < before)


def any_delivery(session: Session, which: ColumnElement[bool]) -> bool:
    """Whether there is such a delivery."""
    return session.scalar(select(WebhookDelivery.id).where(which).limit(1)) is not None


def give_up(session: Session, which: ColumnElement[bool], moment: datetime) -> None:
    """End such deliveries without success."""
    values = {"status": DeliveryStatus.FAILED.value, "next_attempt_at": None, "finished_at": moment}
    statement = update(WebhookDelivery).where(which).values(**values)
    session.execute(statement.execution_options(synchronize_session=False))


def forget(session: Session, which: ColumnElement[bool]) -> None:
    """Delete such deliveries and their attempts."""
    session.execute(delete(WebhookDelivery).where(which).execution_options(synchronize_session=False))


def _is_open(moment: datetime, *, failing: bool | None = None) -> ColumnElement[bool]:
    ready = and_(Webhook.enabled.is_(True), or_(Webhook.paused_until.is_(None), Webhook.paused_until <= moment))
    if failing is None:
        return ready
    return and_(ready, Webhook.failing_since.is_not(None) if failing else Webhook.failing_since.is_(None))


def _is_due(moment: datetime) -> ColumnElement[bool]:
    free = or_(WebhookDelivery.lease_until.is_(None), WebhookDelivery.lease_until < moment)
    return and_(_PENDING, WebhookDelivery.next_attempt_at <= moment, free)


def _flying(moment: datetime) -> Select[str, int]:
    number = func.count().label("number")
    return select(WebhookDelivery.webhook_id, number).where(_PENDING, WebhookDelivery.lease_until >= moment)
