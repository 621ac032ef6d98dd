"""All SQL about artifacts, filtered by tenant."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.db.tables import Artifact


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
