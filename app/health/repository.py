"""All SQL behind readiness and metrics. These figures span tenants: nothing here names one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Row, func, select, text
from sqlalchemy.orm import Session

from app.db.tables import Artifact, Job, Model, OutboxMessage, Upload, Worker
from nupes_client.schemas.jobs import JobStatus


def schema_version(session: Session) -> str | None:
    """The migration the database is at."""
    version: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def jobs_by_status(session: Session) -> dict[str, int]:
    """How many jobs are in each status that occurs."""
    rows = session.execute(select(Job.status, func.count()).group_by(Job.status)).all()
    return {row[0]: row[1] for row in rows}


def queues(session: Session) -> Sequence[Row[str, int, datetime]]:
    """Per device class: jobs that wait, and since when the oldest does."""
    query = select(Job.device_class, func.count(), func.min(Job.created_at)).where(Job.status == JobStatus.QUEUED)
    return session.execute(query.group_by(Job.device_class)).all()


def expired_leases(session: Session, moment: datetime) -> int:
    """Running jobs whose worker does not renew its lease."""
    held = (JobStatus.RUNNING, JobStatus.CANCELLING)
    query = select(func.count()).select_from(Job).where(Job.status.in_(held), Job.lease_until < moment)
    return session.scalar(query) or 0


def outbox(session: Session) -> tuple[int, datetime | None]:
    """Wake-ups that the broker has not taken, and since when the oldest waits."""
    count, oldest = session.execute(select(func.count(), func.min(OutboxMessage.created_at))).one()
    return count, oldest


def workers(session: Session) -> Sequence[Worker]:
    """All workers."""
    return session.scalars(select(Worker)).all()


def totals(session: Session) -> dict[str, int]:
    """Rows of the things that users leave here."""
    tables = {"models": Model, "uploads": Upload, "artifacts": Artifact}
    return {name: session.scalar(select(func.count()).select_from(table)) or 0 for name, table in tables.items()}


def artifact_bytes(session: Session) -> int:
    """Bytes of all artifacts, equal contents counted each."""
    return int(session.scalar(select(func.coalesce(func.sum(Artifact.size), 0))) or 0)
