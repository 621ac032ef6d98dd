"""All SQL about artifacts; what a user can cause is filtered by tenant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from app.db.tables import Artifact, Job


def get(session: Session, tenant_id: str, artifact_id: str) -> Artifact | None:
    """One artifact of the tenant."""
    query = select(Artifact).where(Artifact.tenant_id == tenant_id, Artifact.id == artifact_id)
    return session.scalars(query).one_or_none()


def listing(tenant_id: str, job_id: str | None = None, format_name: str | None = None) -> Select[Artifact]:
    """The query of a list, without order and limit, which paging adds."""
    query = select(Artifact).where(Artifact.tenant_id == tenant_id)
    if job_id is not None:
        query = query.where(Artifact.job_id == job_id)
    if format_name is not None:
        query = query.where(Artifact.format == format_name)
    return query


def of_job(session: Session, tenant_id: str, job_id: str) -> Sequence[Artifact]:
    """All artifacts of a job, by format and path."""
    return session.scalars(listing(tenant_id, job_id).order_by(Artifact.format, Artifact.path)).all()


def jobs_with_artifacts_from_before(session: Session, moment: datetime) -> Sequence[str]:
    """Jobs, of all tenants, with artifacts from before a moment that have not expired yet."""
    due = (Artifact.created_at < moment, Artifact.expired_at.is_(None))
    return session.scalars(select(Artifact.job_id).where(*due).distinct()).all()


def lock_job(session: Session, job_id: str) -> Job | None:
    """The job, which nobody else changes before the transaction ends."""
    return session.get(Job, job_id, with_for_update=True)


def expire(session: Session, job_id: str, moment: datetime) -> bool:
    """Note that the artifacts of a job have expired; False when they had."""
    kept = (Artifact.job_id == job_id, Artifact.expired_at.is_(None))
    return session.connection().execute(update(Artifact).where(*kept).values(expired_at=moment)).rowcount > 0
