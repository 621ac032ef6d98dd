"""All SQL about quotas and usage."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ScalarResult, bindparam, delete, func, select, union_all
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Artifact, Job, Model, ModelFile, Tenant, Upload, UsageEntry
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobStatus

_ACTIVE = [status.value for status in JobStatus if status not in TERMINAL_STATUSES]

_TENANT = select(Tenant).where(Tenant.id == bindparam("tenant_id"))


def tenant(session: Session, tenant_id: str, *, lock: bool = False) -> Tenant:
    """The tenant; with `lock` nobody else who locks it goes on before the transaction ends."""
    query = _TENANT.with_for_update(key_share=True) if lock else _TENANT
    return session.scalars(query, {"tenant_id": tenant_id}).one()


def set_quotas(session: Session, tenant_id: str, quotas: dict[str, Any] | None) -> None:
    """Replace what differs from the limits of the service."""
    tenant(session, tenant_id, lock=True).quotas = quotas


def add(session: Session, entry: UsageEntry) -> None:
    """Add an entry to the caller's transaction."""
    session.add(entry)


def active_jobs(session: Session, tenant_id: str) -> int:
    """Jobs that have not ended."""
    query = select(func.count()).select_from(Job).where(Job.tenant_id == tenant_id, Job.status.in_(_ACTIVE))
    return session.scalar(query) or 0


def total(session: Session, tenant_id: str, kind: str, since: datetime) -> float:
    """The sum of a kind of entry from a moment on."""
    query = select(func.coalesce(func.sum(UsageEntry.amount), 0.0)).where(
        UsageEntry.tenant_id == tenant_id, UsageEntry.kind == kind, UsageEntry.created_at >= since
    )
    return float(session.scalar(query) or 0)


def stored_bytes(session: Session, tenant_id: str) -> int:
    """Bytes the tenant has here: each content once, however often it is referred to; announced files by their size."""
    live = Upload.expires_at.is_(None) | (Upload.expires_at > now())
    contents = union_all(
        select(Upload.sha256, Upload.size).where(Upload.tenant_id == tenant_id, Upload.sha256.is_not(None), live),
        select(ModelFile.sha256, ModelFile.size)
        .join(Model, Model.id == ModelFile.model_id)
        .where(Model.tenant_id == tenant_id, ModelFile.sha256.is_not(None)),
        select(Artifact.sha256, Artifact.size).where(Artifact.tenant_id == tenant_id, Artifact.expired_at.is_(None)),
    ).subquery()
    once = select(func.max(contents.c.size).label("size")).group_by(contents.c.sha256).subquery()
    announced = select(func.sum(Upload.size)).where(Upload.tenant_id == tenant_id, Upload.sha256.is_(None), live)
    return int(session.scalar(select(func.sum(once.c.size))) or 0) + int(session.scalar(announced) or 0)


def delete_before(session: Session, moment: datetime) -> int:
    """Forget entries made before a moment; return how many."""
    statement = delete(UsageEntry).where(UsageEntry.created_at < moment)
    return session.connection().execute(statement).rowcount


def tenants(session: Session) -> ScalarResult[Tenant]:
    """All tenants, by name: for commands of the operator only."""
    return session.scalars(select(Tenant).order_by(Tenant.name))
