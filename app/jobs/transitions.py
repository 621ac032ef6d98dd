"""The one writer of `jobs.status`: a table of legal moves, fencing, and the event in the same transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, JobEvent, OutboxMessage
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobStatus

LEGAL: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.FAILED, JobStatus.SUCCEEDED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


AT_START: dict[str, Any] = {
    "phase": None,
    "progress_fraction": 0.0,
    "progress_current": 0,
    "progress_total": 0,
    "eta_seconds": None,
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
    """Move `job` to status `to`, append the event, bump the version; all in the caller's transaction.

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
    _append(session, job, "status", {"from": current.value, "to": to.value, **(data or {})})


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
    """Change what is the user's to change (name, labels, priority), also of an ended job: new version, no event.

    Raises:
        StaleFenceError: the row changed since it was read.
    """
    _update(session, job, [Job.version == job.version], {"version": Job.version + 1, **columns})


def create(session: Session, job: Job) -> None:
    """Add a new job: queued, with its first event and the wake-up for the sweeper, in the caller's transaction."""
    job.status = JobStatus.QUEUED.value
    job.event_seq = 1
    session.add(job)
    session.flush()
    _append(session, job, "status", {"from": None, "to": job.status})
    enqueue(session, job)


def enqueue(session: Session, job: Job) -> None:
    """Write the wake-up of a queued job to the outbox, from where publisher or sweeper take it."""
    session.add(OutboxMessage(queue=job.device_class, job_id=job.id))
    session.flush()


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


def _append(session: Session, job: Job, event_type: str, data: dict[str, Any]) -> None:
    session.add(JobEvent(job_id=job.id, seq=job.event_seq, type=event_type, data=data))
    session.flush()


def claim(session: Session, job_id: str, owner: str, lease_s: float) -> Fence | None:
    """Take a job that is queued, or running with an expired lease; None when somebody else was faster.

    One conditional UPDATE, the same on SQLite and PostgreSQL: one row changed means won.
    """
    moment = now()
    free = or_(Job.status == JobStatus.QUEUED, and_(Job.status == JobStatus.RUNNING, Job.lease_until < moment))
    job = session.get(Job, job_id)
    if job is None or job.attempt >= job.max_attempts:
        return None
    statement = (
        update(Job)
        .where(Job.id == job_id, free, Job.version == job.version)
        .values(
            status=JobStatus.RUNNING.value,
            version=Job.version + 1,
            event_seq=Job.event_seq + 1,
            attempt=Job.attempt + 1,
            lease_owner=owner,
            lease_until=moment + timedelta(seconds=lease_s),
            worker_id=owner,
            started_at=job.started_at or moment,
            **AT_START,
        )
        .execution_options(synchronize_session=False)
    )
    before = job.status
    if session.connection().execute(statement).rowcount != 1:
        return None
    session.refresh(job)
    _append(session, job, "status", {"from": before, "to": job.status, "attempt": job.attempt, "worker": owner})
    return Fence(owner=owner, attempt=job.attempt)


def renew(session: Session, job_id: str, fence: Fence, lease_s: float) -> bool:
    """Push the lease ahead; False when it was lost. Bumps no version: a renewal is nothing a user sees."""
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.status.in_([JobStatus.RUNNING, JobStatus.CANCELLING]), fence.condition())
        .values(lease_until=now() + timedelta(seconds=lease_s))
        .execution_options(synchronize_session=False)
    )
    return session.connection().execute(statement).rowcount == 1
