"""All SQL about jobs, their events, layers and metrics. Every read a user can cause is filtered by tenant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, delete, or_, select, update
from sqlalchemy.orm import Session

from app.db.tables import Artifact, IdempotencyKey, Job, JobEvent, JobLayer, JobMetric, OutboxMessage
from nupes_client.schemas.jobs import JobStatus


@dataclass(frozen=True)
class JobFilter:
    """What a list of jobs is narrowed to; None and empty do not narrow."""

    statuses: Sequence[JobStatus] = ()
    model_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class JobState:
    """As much of a job as watchers compare."""

    version: int
    event_seq: int
    status: JobStatus


def get(session: Session, tenant_id: str, job_id: str, *, lock: bool = False) -> Job | None:
    """One job of the tenant; with `lock` nobody else changes it before the transaction ends."""
    query = select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def listing(tenant_id: str, narrow: JobFilter) -> Select[Job]:
    """The query of a list, without order and limit, which paging adds."""
    query = select(Job).where(Job.tenant_id == tenant_id)
    if narrow.statuses:
        query = query.where(Job.status.in_([status.value for status in narrow.statuses]))
    if narrow.model_id is not None:
        query = query.where(Job.model_id == narrow.model_id)
    if narrow.created_after is not None:
        query = query.where(Job.created_at > narrow.created_after)
    if narrow.verdict is not None:
        query = query.where(Job.verdict == narrow.verdict)
    return query.where(*(Job.labels[key].as_string() == value for key, value in narrow.labels.items()))


def remove(session: Session, job: Job) -> None:
    """Delete the job and all rows about it."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.resource_id == job.id))
    session.execute(delete(OutboxMessage).where(OutboxMessage.job_id == job.id))
    session.execute(delete(Artifact).where(Artifact.job_id == job.id))
    session.execute(delete(JobLayer).where(JobLayer.job_id == job.id))
    session.execute(delete(JobMetric).where(JobMetric.job_id == job.id))
    session.execute(delete(JobEvent).where(JobEvent.job_id == job.id))
    session.execute(delete(Job).where(Job.id == job.id))


def events(session: Session, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    """Events with a number above `after`, oldest first; the caller has checked the tenant."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq)
    return session.scalars(query.limit(limit)).all()


def layers(session: Session, job_id: str, after: int, limit: int | None) -> Sequence[JobLayer]:
    """Layers behind position `after`, in checkpoint order; the caller has checked the tenant."""
    query = select(JobLayer).where(JobLayer.job_id == job_id, JobLayer.position > after).order_by(JobLayer.position)
    return session.scalars(query.limit(limit)).all()


def metrics(session: Session, job_id: str, series: Sequence[str]) -> list[tuple[str, int, float | None]]:
    """Points (series, step, value) of these series, of all when empty, in order; the caller has checked the tenant."""
    query = select(JobMetric.series, JobMetric.step, JobMetric.value).where(JobMetric.job_id == job_id)
    if series:
        query = query.where(JobMetric.series.in_(series))
    return [(*row,) for row in session.execute(query.order_by(JobMetric.series, JobMetric.step))]


def cut_metrics(session: Session, job_id: str, starts: Mapping[str, int]) -> None:
    """Delete the points of each series from its step in `starts` on."""
    for series, step in starts.items():
        behind = (JobMetric.job_id == job_id, JobMetric.series == series, JobMetric.step >= step)
        session.execute(delete(JobMetric).where(*behind))


def states(session: Session, job_ids: Iterable[str]) -> dict[str, JobState]:
    """The present state of jobs that are being watched; jobs that are gone are missing."""
    query = select(Job.id, Job.version, Job.event_seq, Job.status).where(Job.id.in_(list(job_ids)))
    return {row.id: JobState(row.version, row.event_seq, JobStatus(row.status)) for row in session.execute(query)}


def events_since(session: Session, seen: Mapping[str, int]) -> Sequence[JobEvent]:
    """All events above the number seen, of several jobs in one query, each job's in order."""
    behind = [and_(JobEvent.job_id == job_id, JobEvent.seq > seq) for job_id, seq in seen.items()]
    return session.scalars(select(JobEvent).where(or_(*behind)).order_by(JobEvent.job_id, JobEvent.seq)).all()


def idempotency_key(session: Session, tenant_id: str, key: str) -> IdempotencyKey | None:
    """What is known of a key of the tenant; locked until the end of the transaction."""
    return session.get(IdempotencyKey, (tenant_id, key), populate_existing=True, with_for_update=True)


def add_idempotency_key(session: Session, row: IdempotencyKey) -> None:
    """Reserve a key; an `IntegrityError` says that somebody else has it."""
    session.add(row)
    session.flush()


def answer_idempotency_key(session: Session, reserved: IdempotencyKey, resource_id: str) -> bool:
    """Note what a reserved key led to; False when the reservation was taken over meanwhile."""
    statement = update(IdempotencyKey).where(*_is_reservation(reserved)).values(resource_id=resource_id)
    return session.connection().execute(statement).rowcount == 1


def release_idempotency_key(session: Session, reserved: IdempotencyKey) -> None:
    """Give a reserved key free; one that was answered stays."""
    session.execute(delete(IdempotencyKey).where(*_is_reservation(reserved)))


def purge_idempotency_keys(session: Session, tenant_id: str, before: datetime) -> None:
    """Forget the tenant's keys that were used before a moment."""
    outdated = (IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.created_at < before)
    session.execute(delete(IdempotencyKey).where(*outdated))


def _is_reservation(reserved: IdempotencyKey) -> list[ColumnElement[bool]]:
    return [
        IdempotencyKey.tenant_id == reserved.tenant_id,
        IdempotencyKey.key == reserved.key,
        IdempotencyKey.created_at == reserved.created_at,
        IdempotencyKey.resource_id.is_(None),
    ]
