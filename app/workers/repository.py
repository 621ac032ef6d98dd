"""All SQL about workers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.orm import Session

from app.db.tables import Job, Worker
from nupes_client.schemas.jobs import JobStatus

_TAKING = select(Worker).where(Worker.heartbeat_at > bindparam("moment"), ~Worker.draining).order_by(Worker.id)


def all_workers(session: Session) -> Sequence[Worker]:
    """Every worker that ever reported in, those seen last first."""
    return session.scalars(select(Worker).order_by(Worker.heartbeat_at.desc(), Worker.id)).all()


def taking_since(session: Session, moment: datetime) -> Sequence[Worker]:
    """Workers that reported in after a moment and take jobs."""
    return session.scalars(_TAKING, {"moment": moment}).all()


def set_draining(session: Session, worker_id: str, *, draining: bool) -> Worker | None:
    """Tell a worker to take no more jobs, or to take jobs again; None when there is no such worker."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(draining=draining))
    return session.get(Worker, worker_id, populate_existing=True)


def queues(session: Session) -> Sequence[Row[str, int, datetime]]:
    """Per device class: jobs that wait, and since when the oldest does."""
    query = select(Job.device_class, func.count(), func.min(Job.created_at)).where(Job.status == JobStatus.QUEUED)
    return session.execute(query.group_by(Job.device_class)).all()


def own_jobs(session: Session, tenant_id: str, job_ids: Sequence[str]) -> set[str]:
    """Which of these jobs belong to the tenant."""
    return set(session.scalars(select(Job.id).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))))
