"""All SQL about workers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Job, Worker


def all_workers(session: Session) -> Sequence[Worker]:
    """Every worker that ever reported in, those seen last first."""
    return session.scalars(select(Worker).order_by(Worker.heartbeat_at.desc(), Worker.id)).all()


def own_jobs(session: Session, tenant_id: str, job_ids: Sequence[str]) -> set[str]:
    """Which of these jobs belong to the tenant."""
    return set(session.scalars(select(Job.id).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))))
