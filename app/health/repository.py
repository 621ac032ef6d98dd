"""All SQL behind readiness and metrics. These figures span tenants: nothing here names one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func, or_, select, text
from sqlalchemy.orm import Session

from app.db.tables import Artifact, Job, Model, OutboxMessage, Upload, Webhook, WebhookDelivery, Worker
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.webhooks import DeliveryStatus


def schema_version(session: Session) -> str | None:
    """The migration the database is at."""
    version: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def jobs_by_status(session: Session) -> dict[str, int]:
    """How many jobs are in each status that occurs."""
    rows = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
    return {row[0]: row[1] for row in rows}


def expired_leases(session: Session, moment: datetime) -> int:
    """Running jobs whose worker does not renew its lease."""
    held = (JobStatus.RUNNING, JobStatus.CANCELLING)
    query = select(func.count()).select_from(Job).where(Job.status.in_(held), Job.lease_until < moment)
    return session.scalar(query) or 0


def outbox(session: Session) -> tuple[int, datetime | None]:
    """Wake-ups that the broker has not taken, and since when the oldest waits."""
    count, oldest = session.execute(select(func.count(), func.min(OutboxMessage.created_at))).one()
    return count, oldest


def deliveries_by_status(session: Session) -> dict[str, int]:
    """Messages to webhooks by status, as long as they are kept."""
    rows = session.execute(select(WebhookDelivery.status, func.count()).group_by(WebhookDelivery.status)).all()
    return {row[0]: row[1] for row in rows}


def oldest_due_delivery(session: Session, moment: datetime) -> datetime | None:
    """Since when the longest overdue message to a webhook could have been sent."""
    due = (WebhookDelivery.status == DeliveryStatus.PENDING, WebhookDelivery.next_attempt_at <= moment)
    held_back = or_(Webhook.enabled.is_(False), Webhook.paused_until > moment)
    query = select(func.min(WebhookDelivery.next_attempt_at)).join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
    return session.scalar(query.where(*due, ~func.coalesce(held_back, False)))


def disabled_webhooks(session: Session) -> int:
    """Webhooks that the service has switched off because their receiver fails."""
    off = (Webhook.enabled.is_(False), Webhook.disabled_reason.is_not(None))
    return session.scalar(select(func.count()).select_from(Webhook).where(*off)) or 0


def workers(session: Session) -> Sequence[Worker]:
    """All workers."""
    return session.scalars(select(Worker)).all()


def totals(session: Session) -> dict[str, int]:
    """Rows of the things that users leave here."""
    tables = {"models": Model, "uploads": Upload, "artifacts": Artifact}
    return {name: session.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables.items()}


def artifact_bytes(session: Session) -> int:
    """Bytes of all artifacts, equal contents counted each."""
    kept = select(func.sum(Artifact.size)).where(Artifact.expired_at.is_(None))
    return int(session.scalar(kept) or 0)
