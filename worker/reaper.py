"""Looking after jobs whose worker is gone, and after what ended jobs leave on the disk. Safe to run in every worker."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, JobShard, Worker
from app.jobs import shards
from app.jobs.outcomes import fail, finish_cancel, requeue
from app.jobs.shards import ShardFence
from app.jobs.transitions import IllegalTransitionError, StaleFenceError
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobError, JobPhase, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from worker.identity import is_gone
from worker.workfolder import jobs_dir

logger = logging.getLogger(__name__)

FORGET_WORKERS_S = 600.0
"""Workers that have not reported for this long are no longer listed."""

_HELD = (JobStatus.RUNNING.value, JobStatus.CANCELLING.value)


def reap(database: Database) -> list[str]:
    """Give abandoned jobs their next attempt or their end; return their ids.

    A job is abandoned when its lease has expired, or when its worker ran on this machine and is no more.
    """
    with database.read() as session:
        abandoned = [job.id for job in _held(session) if _is_abandoned(job)]
    return [job_id for job_id in abandoned if _resolve(database, job_id)]


def reap_shards(database: Database) -> list[ShardFence]:
    """Let other workers take files of sharded jobs whose worker is gone, or fail them for good; return which.

    Files that others left in ended jobs need nobody any more.
    """
    with database.read() as session:
        lost = [shards.fence_of(shard) for shard in shards.held(session) if _is_abandoned(shard)]
        forgettable = shards.has_files_to_forget(session)
    if forgettable:
        with database.write() as session:
            shards.forget_files(session)
    return [fence for fence in lost if _release(database, fence)]


def _release(database: Database, fence: ShardFence) -> bool:
    """A lease that was renewed meanwhile stays; a fence that was passed on fits no more."""
    try:
        with database.write() as session:
            shard = session.get(JobShard, (fence.job_id, fence.position), with_for_update=True)
            job = session.get(Job, fence.job_id)
            if shard is None or job is None or not _is_abandoned(shard):
                return False
            shards.fail(session, fence, _lost(fence.attempt, job.max_attempts), again=fence.attempt < job.max_attempts)
    except StaleFenceError:
        return False
    logger.warning("file %d of %s was abandoned by %s", fence.position, fence.job_id, fence.owner)
    return True


def remove_folders(database: Database, work_dir: Path) -> list[str]:
    """Remove the work folders of jobs that have ended or were deleted; return their ids."""
    folders = {folder.name: folder for folder in jobs_dir(work_dir).glob("*") if folder.is_dir()}
    if not folders:
        return []
    alive = select(Job.id).where(Job.id.in_(folders), Job.status.not_in([each.value for each in TERMINAL_STATUSES]))
    with database.read() as session:
        kept = set(session.scalars(alive))
    for job_id in folders.keys() - kept:
        shutil.rmtree(folders[job_id], ignore_errors=True)
    return sorted(folders.keys() - kept)


def forget_workers(database: Database) -> None:
    """Drop rows of workers that have been silent for long."""
    limit = now() - timedelta(seconds=FORGET_WORKERS_S)
    with database.read() as session:
        silent = list(session.scalars(select(Worker.id).where(Worker.heartbeat_at < limit)))
    if silent:
        with database.write() as session:
            session.execute(delete(Worker).where(Worker.id.in_(silent), Worker.heartbeat_at < limit))


def _held(session: Session) -> list[Job]:
    return list(session.scalars(select(Job).where(Job.status.in_(_HELD))))


def _is_abandoned(held: Job | JobShard) -> bool:
    expired = held.lease_until is None or held.lease_until < now()
    return expired or (held.lease_owner is not None and is_gone(held.lease_owner))


def _resolve(database: Database, job_id: str) -> bool:
    """Decide again on the row as it is now, and write; False when somebody else was faster."""
    try:
        with database.write() as session:
            job = session.get(Job, job_id, with_for_update=True)
            if job is None or job.status not in _HELD or not _is_abandoned(job):
                return False
            owner = job.lease_owner
            _ENDINGS.get(JobStatus(job.status), _continue)(session, job)
    except (StaleFenceError, IllegalTransitionError):
        return False
    logger.warning("%s was abandoned by %s, now %s", job_id, owner, job.status)
    return True


def _continue(session: Session, job: Job) -> None:
    if job.attempt < job.max_attempts:
        requeue(session, job, None, reason=JobErrorCode.WORKER_LOST.value)
        return
    error = _lost(job.attempt, job.max_attempts, JobPhase(job.phase) if job.phase else None)
    fail(session, job, None, error)


def _lost(attempt: int, attempts: int, phase: JobPhase | None = None) -> JobError:
    return JobError(
        code=JobErrorCode.WORKER_LOST,
        message=f"the worker was lost in attempt {attempt} of {attempts}",
        phase=phase,
        retryable=True,
        hint="Retry the job; if it happens again, look at the worker's log and memory.",
    )


def _finish_cancel(session: Session, job: Job) -> None:
    finish_cancel(session, job, None)


_ENDINGS: dict[JobStatus, Callable[[Session, Job], None]] = {JobStatus.CANCELLING: _finish_cancel}
