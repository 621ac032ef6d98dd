"""The one writer of `jobs.status`: legal moves, fencing, and in the same transaction the event and the messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, or_, select, true, update
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, JobEvent, OutboxMessage, Tenant, Worker
from app.jobs import repository
from app.usage import ledger
from app.webhooks.announce import announce
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobStatus
from nupes_client.schemas.specs import QUEUE_TIMEOUT_S

LEGAL: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED, JobStatus.SUCCEEDED}  # the last: from the cache
    ),
    JobStatus.RUNNING: frozenset(
        {JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.FAILED, JobStatus.SUCCEEDED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


HELD = frozenset({JobStatus.RUNNING, JobStatus.CANCELLING})
"""A worker has the job."""

AT_START: dict[str, Any] = {
    "phase": None,
    "progress_fraction": 0.0,
    "progress_current": 0,
    "progress_total": 0,
    "eta_seconds": None,
    "waiting_reason": None,
    "waiting_largest_bytes": None,
}
"""Where an attempt begins."""


@dataclass(frozen=True)
class Fence:
    """Proof of holding a job: every write of a worker repeats it, so a zombie whose lease was taken writes nothing."""

    owner: str
    attempt: int

    def condition(self) -> ColumnElement[bool]:
        """The WHERE clause that holds only for the current holder."""
        return and_(Job.lease_owner == self.owner, Job.attempt == self.attempt)

    def holds(self, job: Job) -> bool:
        """Whether `job`, as read, is held by this worker."""
        return job.lease_owner == self.owner and job.attempt == self.attempt


class StaleFenceError(Exception):
    """The job is no longer held by this worker, or no longer in a status that allows the write."""


class IllegalTransitionError(Exception):
    """The table of legal moves does not know this one."""


def transition(
    session: Session,
    job: Job,
    to: JobStatus,
    *,
    fence: Fence | None = None,
    data: dict[str, Any] | None = None,
    **columns: Any,
) -> None:
    """Move `job` to status `to`, append event and messages, bump the version; all in the caller's transaction.

    Args:
        session: an open write session.
        job: the row as last read; refreshed on return.
        to: the new status.
        fence: what the worker holds; None for the service itself.
        data: goes into the event next to `from` and `to`.
        columns: further columns to set in the same statement.

    Raises:
        IllegalTransitionError: the move is not in `LEGAL`.
        StaleFenceError: the row changed meanwhile or belongs to another worker.
    """
    current = JobStatus(job.status)
    if fence is not None and not fence.holds(job):
        raise StaleFenceError(f"{job.id}: {fence} holds it no longer, it is {current} in attempt {job.attempt}")
    if to not in LEGAL[current]:
        raise IllegalTransitionError(f"{job.id}: {current} -> {to}")
    if to in TERMINAL_STATUSES:
        columns = {"finished_at": now(), "lease_owner": None, "lease_until": None, "eta_seconds": None, **columns}
    guard = [Job.status == current.value, Job.version == job.version]
    _write(session, job, guard, fence, {"status": to.value, **columns})
    if current in HELD and to not in HELD:
        ledger.count_compute(session, job, job.attempt_started_at)
    _tell(session, job, current.value, data or {})


def record(
    session: Session, job: Job, event_type: str, data: dict[str, Any], *, fence: Fence | None = None, **columns: Any
) -> None:
    """Append an event that is no change of status (phase, progress, log), setting `columns` with it.

    Goes through whatever the job's status became since it was read, as long as it has not ended: a worker that reports
    while its job is being cancelled still holds it.

    Raises:
        StaleFenceError: the job has ended or belongs to another worker.
    """
    guard: list[ColumnElement[bool]] = [Job.status.not_in([status.value for status in TERMINAL_STATUSES])]
    _write(session, job, guard, fence, columns)
    _append(session, job, event_type, data)


def hold(session: Session, job_id: str, fence: Fence) -> None:
    """Keep a job that is held from changing hands before the transaction ends, for writes that are no news of the job.

    Raises:
        StaleFenceError: the job has ended or belongs to another worker.
    """
    held = Job.status.in_([JobStatus.RUNNING.value, JobStatus.CANCELLING.value])
    query = select(Job.id).where(Job.id == job_id, held, fence.condition())
    if session.scalar(query.with_for_update()) is None:
        raise StaleFenceError(f"{job_id}: {fence} holds it no longer")


def amend(session: Session, job: Job, **columns: Any) -> None:
    """Change what is the user's to change: name, labels, priority.

    A new version and an event `changed`; of an ended job a new version alone, for no event follows the one that ended
    it.

    Raises:
        StaleFenceError: the row changed since it was read.
    """
    unchanged = [Job.version == job.version]
    if JobStatus(job.status).is_terminal:
        _update(session, job, unchanged, {"version": Job.version + 1, **columns})
    else:
        _write(session, job, unchanged, None, columns)
        _append(session, job, "changed", columns)
    if "labels" in columns:
        repository.set_labels(session, job)


def create(session: Session, *jobs: Job, wake: bool = True) -> None:
    """Add new jobs: queued, with their first event and the wake-up for the sweeper, in the caller's transaction.

    Args:
        session: an open write session.
        jobs: the rows.
        wake: False for jobs that need no worker.
    """
    for job in jobs:
        job.status = JobStatus.QUEUED.value
        job.event_seq = 1
        job.queue_until = now() + timedelta(seconds=job.queue_timeout_s or QUEUE_TIMEOUT_S)
    session.add_all(jobs)
    session.flush()
    for job in jobs:
        repository.add_labels(session, job)
        ledger.count_job(session, job)
        _append_status(session, job, None, {})
        if wake:
            enqueue(session, job)
    announce(session, *jobs)


def enqueue(session: Session, job: Job) -> None:
    """Write the wake-up of a queued job to the outbox, from where publisher or sweeper take it."""
    session.add(OutboxMessage(queue=job.device_class, job_id=job.id))


def _write(
    session: Session, job: Job, guard: list[ColumnElement[bool]], fence: Fence | None, columns: dict[str, Any]
) -> None:
    counters = {"version": Job.version + 1, "event_seq": Job.event_seq + 1}
    _update(session, job, [*guard, *([fence.condition()] if fence else [])], {**counters, **columns})


def _update(session: Session, job: Job, guard: list[ColumnElement[bool]], values: dict[str, Any]) -> None:
    statement = (
        update(Job).where(Job.id == job.id, *guard).values(**values).execution_options(synchronize_session=False)
    )
    if session.connection().execute(statement).rowcount != 1:
        raise StaleFenceError(f"{job.id} is no longer {job.status} in version {job.version}, attempt {job.attempt}")
    session.refresh(job)


def _tell(session: Session, job: Job, before: str | None, data: dict[str, Any]) -> None:
    """Say that the job reached a new status: to those who watch it, and to the webhooks of its tenant."""
    _append_status(session, job, before, data)
    announce(session, job)


def _append_status(session: Session, job: Job, before: str | None, data: dict[str, Any]) -> None:
    _append(session, job, "status", {"from": before, "to": job.status, **data})


def _append(session: Session, job: Job, event_type: str, data: dict[str, Any]) -> None:
    session.add(JobEvent(job_id=job.id, seq=job.event_seq, type=event_type, data=data))


def fits(memory_bytes: int | None, job: type[Job] = Job) -> ColumnElement[bool]:
    """The WHERE clause of jobs whose planned peak fits a worker; one that does not know its memory takes all.

    Args:
        memory_bytes: of the worker.
        job: the table, or an alias of it.
    """
    return true() if memory_bytes is None else or_(job.memory_bytes.is_(None), job.memory_bytes <= memory_bytes)


def rested(job: type[Job] = Job) -> ColumnElement[bool]:
    """The WHERE clause of queued jobs that may be taken now; the moment is that of the execution.

    Args:
        job: the table, or an alias of it.
    """
    moment = bindparam("moment", callable_=now, type_=job.lease_until.type, unique=True)
    return or_(job.lease_until.is_(None), job.lease_until <= moment)


def claim(
    session: Session, job_id: str, owner: str, lease_s: float, *, memory_bytes: int | None = None
) -> Fence | None:
    """Take a job that is queued, or running with an expired lease; None when somebody else was faster.

    One conditional UPDATE, the same on SQLite and PostgreSQL: one row changed means won. It wins no job that needs more
    than `memory_bytes`, and none for a worker that is being drained.
    """
    moment = now()
    free = or_(
        and_(Job.status == JobStatus.QUEUED, rested()), and_(Job.status == JobStatus.RUNNING, Job.lease_until < moment)
    )
    job = session.get(Job, job_id)
    if job is None or job.attempt >= job.max_attempts:
        return None
    statement = (
        update(Job)
        .where(Job.id == job_id, free, Job.version == job.version, fits(memory_bytes), ~draining(owner))
        .values(
            status=JobStatus.RUNNING.value,
            version=Job.version + 1,
            event_seq=Job.event_seq + 1,
            attempt=Job.attempt + 1,
            lease_owner=owner,
            lease_until=moment + timedelta(seconds=lease_s),
            worker_id=owner,
            started_at=job.started_at or moment,
            attempt_started_at=moment,
            **AT_START,
        )
        .execution_options(synchronize_session=False)
    )
    before, lost = job.status, job.attempt_started_at if job.status in HELD else None
    if session.connection().execute(statement).rowcount != 1:
        return None
    session.refresh(job)
    ledger.count_compute(session, job, lost)
    _tell(session, job, before, {"attempt": job.attempt, "worker": owner})
    session.execute(update(Tenant).where(Tenant.id == job.tenant_id).values(last_claim_at=moment))
    return Fence(owner=owner, attempt=job.attempt)


def draining(owner: str) -> ColumnElement[bool]:
    """The condition that a worker was told to take nothing more."""
    return exists().where(Worker.id == owner, Worker.draining)


def renew(session: Session, job_id: str, fence: Fence, lease_s: float) -> bool:
    """Push the lease ahead; False when it was lost. Bumps no version: a renewal is nothing a user sees."""
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.status.in_([JobStatus.RUNNING, JobStatus.CANCELLING]), fence.condition())
        .values(lease_until=now() + timedelta(seconds=lease_s))
        .execution_options(synchronize_session=False)
    )
    return session.connection().execute(statement).rowcount == 1
