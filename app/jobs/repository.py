"""All SQL about jobs, their events, layers and metrics. Every read a user can cause is filtered by tenant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Select, and_, bindparam, delete, insert, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import QueryableAttribute, Session, aliased, undefer

from app.db.tables import (
    Artifact,
    IdempotencyKey,
    Job,
    JobEvent,
    JobLabel,
    JobLayer,
    JobMetric,
    JobShard,
    JobShardFile,
    OutboxMessage,
)
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobStatus

_INSERTS: dict[str, Callable[..., postgresql.Insert | sqlite.Insert]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
"""With ON CONFLICT, which SQL itself does not have."""


@dataclass(frozen=True)
class JobFilter:
    """What a list of jobs is narrowed to; None and empty do not narrow."""

    statuses: Sequence[JobStatus] = ()
    model_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    verdict: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class JobState:
    """As much of a job as watchers compare."""

    version: int
    event_seq: int
    status: JobStatus


Owned = tuple[str, str]
"""A tenant and one of its jobs."""

_EQUAL = (
    select(Job)
    .where(Job.tenant_id == bindparam("tenant_id"), Job.cache_key == bindparam("cache_key"))
    .where(Job.code_version == bindparam("code_version"))
    # Only what has a result has a code version: also a job whose push failed, or was cancelled.
    .where(Job.status.in_([status.value for status in TERMINAL_STATUSES]), Job.artifacts_expired_at.is_(None))
    .order_by(Job.id.desc())
    .limit(1)
)
_STATES = select(Job.tenant_id, Job.id, Job.version, Job.event_seq, Job.status)
_ASKED_FOR = (
    Job.tenant_id.in_(bindparam("tenant_ids", expanding=True)),
    Job.id.in_(bindparam("job_ids", expanding=True)),
)
_STATES_OF_TENANTS = _STATES.where(*_ASKED_FOR)
_OF_TENANTS = select(Job).where(*_ASKED_FOR)


def get(session: Session, tenant_id: str, job_id: str, *, lock: bool = False) -> Job | None:
    """One job of the tenant; with `lock` nobody else changes it before the transaction ends."""
    query = select(Job).where(Job.tenant_id == tenant_id, Job.id == job_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def get_many(session: Session, tenant_id: str, job_ids: Sequence[str]) -> Sequence[Job]:
    """Those of the jobs that are there and the tenant's, in no order."""
    return session.scalars(select(Job).where(Job.tenant_id == tenant_id, Job.id.in_(job_ids))).all()


def listing(tenant_id: str, narrow: JobFilter) -> tuple[Select[Job], QueryableAttribute[str]]:
    """The query of a list, without order and limit, which paging adds, and the column of ids to order it by.

    Where a label is asked for, that is the label's: SQLite would else walk through all jobs of the tenant in order.
    """
    order: QueryableAttribute[str] = Job.id
    query = select(Job).where(Job.tenant_id == tenant_id)
    if narrow.statuses:
        query = query.where(Job.status.in_([status.value for status in narrow.statuses]))
    if narrow.model_id is not None:
        query = query.where(Job.model_id == narrow.model_id)
    if narrow.created_after is not None:
        query = query.where(Job.created_at > narrow.created_after)
    if narrow.created_before is not None:
        query = query.where(Job.created_at < narrow.created_before)
    if narrow.name is not None:
        query = query.where(Job.name == narrow.name)
    if narrow.verdict is not None:
        query = query.where(Job.verdict == narrow.verdict)
    for key, value in narrow.labels.items():
        label = aliased(JobLabel)
        query = query.join(label, label.job_id == Job.id)
        query = query.where(label.tenant_id == tenant_id, label.key == key, label.value == value)
        order = label.job_id
    return query, order


def overdue(session: Session, moment: datetime, limit: int) -> Sequence[str]:
    """Jobs of any tenant that no worker has ever taken and that waited too long, the longest first."""
    never_taken = (Job.status == JobStatus.QUEUED.value, Job.started_at.is_(None))
    query = select(Job.id).where(*never_taken, Job.queue_until < moment)
    return session.scalars(query.order_by(Job.queue_until).limit(limit)).all()


def set_labels(session: Session, job: Job) -> None:
    """Write the rows of the labels of a job, instead of those there may be."""
    session.execute(delete(JobLabel).where(JobLabel.job_id == job.id))
    add_labels(session, job)


def add_labels(session: Session, job: Job) -> None:
    """Write the rows of the labels of a new job."""
    rows = [
        {"job_id": job.id, "tenant_id": job.tenant_id, "key": key, "value": value} for key, value in job.labels.items()
    ]
    if rows:
        session.execute(insert(JobLabel), rows)


def remove(session: Session, job: Job) -> None:
    """Delete the job and all rows about it."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.resource_id == job.id))
    session.execute(delete(OutboxMessage).where(OutboxMessage.job_id == job.id))
    session.execute(delete(Artifact).where(Artifact.job_id == job.id))
    session.execute(delete(JobLabel).where(JobLabel.job_id == job.id))
    session.execute(delete(JobLayer).where(JobLayer.job_id == job.id))
    session.execute(delete(JobMetric).where(JobMetric.job_id == job.id))
    session.execute(delete(JobEvent).where(JobEvent.job_id == job.id))
    session.execute(delete(JobShardFile).where(JobShardFile.job_id == job.id))
    session.execute(delete(JobShard).where(JobShard.job_id == job.id))
    session.execute(delete(Job).where(Job.id == job.id))


def events(session: Session, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    """Events with a number above `after`, oldest first; the caller has checked the tenant."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq)
    return session.scalars(query.limit(limit)).all()


def events_of_types(session: Session, job_id: str, types: Sequence[str]) -> Sequence[JobEvent]:
    """All events of some types, oldest first; the caller has checked the tenant."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type.in_(types)).order_by(JobEvent.seq)
    return session.scalars(query).all()


def layers(
    session: Session,
    job_id: str,
    after: int,
    limit: int | None,
    *,
    names: Sequence[str] = (),
    histograms: bool = False,
) -> Sequence[JobLayer]:
    """Layers behind position `after`, in checkpoint order; the caller has checked the tenant.

    Only those called so, of all when empty; with their histograms where asked for.
    """
    query = select(JobLayer).where(JobLayer.job_id == job_id, JobLayer.position > after).order_by(JobLayer.position)
    if names:
        query = query.where(JobLayer.name.in_(names))
    if histograms:
        query = query.options(undefer(JobLayer.histogram))
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


def copy_metrics(session: Session, source_id: str, job_id: str) -> None:
    """Give a job the curves of another one."""
    points = select(literal(job_id), JobMetric.series, JobMetric.step, JobMetric.value).where(
        JobMetric.job_id == source_id
    )
    session.execute(insert(JobMetric).from_select(["job_id", "series", "step", "value"], points))


def equal_job(session: Session, job: Job, code_version: str, *, lock: bool) -> Job | None:
    """The newest ended job of the same tenant with a result, the same cache key and code; with `lock` it stays."""
    wanted = {"tenant_id": job.tenant_id, "cache_key": job.cache_key, "code_version": code_version}
    return session.scalars(_EQUAL.with_for_update(read=True) if lock else _EQUAL, wanted).one_or_none()


def files_of(session: Session, job_id: str, *, lock: bool) -> Sequence[Artifact]:
    """The artifacts of a job; with `lock` they stay until the transaction ends."""
    query = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.id)
    return session.scalars(query.with_for_update(read=True) if lock else query).all()


def states(session: Session, job_ids: Iterable[str]) -> dict[str, JobState]:
    """The present state of jobs that are being watched; jobs that are gone are missing."""
    rows = session.execute(_STATES.where(Job.id.in_(list(job_ids))))
    return {row.id: JobState(row.version, row.event_seq, JobStatus(row.status)) for row in rows}


def states_of_tenants(session: Session, wanted: Collection[Owned]) -> dict[Owned, JobState]:
    """The present state of jobs, each asked for by a tenant; those that are not there or another's are missing."""
    rows = session.execute(_STATES_OF_TENANTS, _ids(wanted))
    return {(row.tenant_id, row.id): JobState(row.version, row.event_seq, JobStatus(row.status)) for row in rows}


def of_tenants(session: Session, wanted: Collection[Owned]) -> dict[Owned, Job]:
    """Jobs, each asked for by a tenant; those that are not there or another's are missing."""
    return {(job.tenant_id, job.id): job for job in session.scalars(_OF_TENANTS, _ids(wanted))}


def _ids(wanted: Collection[Owned]) -> dict[str, list[str]]:
    return {"tenant_ids": list({tenant_id for tenant_id, _ in wanted}), "job_ids": list({each for _, each in wanted})}


def events_since(session: Session, seen: Mapping[str, int]) -> Sequence[JobEvent]:
    """All events above the number seen, of several jobs in one query, each job's in order."""
    behind = [and_(JobEvent.job_id == job_id, JobEvent.seq > seq) for job_id, seq in seen.items()]
    return session.scalars(select(JobEvent).where(or_(*behind)).order_by(JobEvent.job_id, JobEvent.seq)).all()


def idempotency_key(session: Session, tenant_id: str, key: str, *, since: datetime) -> IdempotencyKey | None:
    """What is known of a key that the tenant used at some moment or later."""
    row = session.get(IdempotencyKey, (tenant_id, key), populate_existing=True)
    return row if row and row.created_at >= since else None


def take_idempotency_key(session: Session, row: IdempotencyKey, *, since: datetime) -> bool:
    """Write a key, over one that is older than a moment or led to nothing, in one statement.

    Waits for the end of a transaction that writes the same key.

    Returns:
        Whether it was free.
    """
    insert = _INSERTS[session.get_bind().dialect.name](IdempotencyKey)
    values = {column.key: getattr(row, column.key) for column in IdempotencyKey.__table__.columns}
    taken = insert.values(values).on_conflict_do_update(
        index_elements=[IdempotencyKey.tenant_id, IdempotencyKey.key],
        set_=values,
        where=or_(IdempotencyKey.created_at < since, IdempotencyKey.resource_id.is_(None)),
    )
    return session.scalar(taken.returning(IdempotencyKey.key)) is not None


def purge_idempotency_keys(session: Session, before: datetime) -> None:
    """Forget keys that were used before a moment, whoever's they are."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < before))
