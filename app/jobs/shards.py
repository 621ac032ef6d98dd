"""Files of a sharded checkpoint that workers claim one by one: claim, lease and fence as jobs have them.

The job itself stays with one worker, which waits for the others and puts the artifact together (docs/decisions/011).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, JobShard, JobShardFile, OutboxMessage
from app.jobs.transitions import StaleFenceError, draining
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobError, JobStatus, ShardStatus
from nupes_core.plan import ShardPlan

_UNHELD: dict[str, Any] = {"lease_owner": None, "lease_until": None}


@dataclass(frozen=True)
class ShardFence:
    """Proof of holding one file of a job; `job_attempt`, in which the file was claimed, is for logs."""

    job_id: str
    position: int
    owner: str
    attempt: int
    job_attempt: int = field(default=0, compare=False)

    def condition(self) -> ColumnElement[bool]:
        """The WHERE clause that holds only for the current holder."""
        return and_(
            JobShard.job_id == self.job_id,
            JobShard.position == self.position,
            JobShard.status == ShardStatus.RUNNING.value,
            JobShard.lease_owner == self.owner,
            JobShard.attempt == self.attempt,
        )


@dataclass(frozen=True)
class ShardFile:
    """One file of a finished shard, stored as blob `sha256`; `path` is its place in the folder of the shard."""

    path: str
    size: int
    sha256: str


def add(session: Session, job: Job, plans: Iterable[ShardPlan]) -> None:
    """Write the rows of a new job."""
    for position, plan in enumerate(plans):
        session.add(
            JobShard(
                job_id=job.id,
                position=position,
                name=plan.name,
                params=plan.params,
                memory_bytes=plan.peak_memory_bytes,
                status=ShardStatus.QUEUED.value,
            )
        )


def of_job(session: Session, job_id: str) -> Sequence[JobShard]:
    """Return the files of a job in order; none for a job that one worker does. The caller has checked the tenant."""
    return session.scalars(select(JobShard).where(JobShard.job_id == job_id).order_by(JobShard.position)).all()


def reopen(session: Session, job: Job) -> int:
    """Give files that failed in an earlier attempt another chance, and wake a worker for each that waits."""
    failed = (JobShard.job_id == job.id, JobShard.status == ShardStatus.FAILED.value)
    session.execute(update(JobShard).where(*failed).values(status=ShardStatus.QUEUED.value, attempt=0, error=None))
    waiting = [each for each in of_job(session, job.id) if each.status == ShardStatus.QUEUED]
    session.add_all(OutboxMessage(queue=job.device_class, job_id=job.id) for _ in waiting)
    session.flush()
    return len(waiting)


def candidates(
    session: Session, device_class: str, memory_bytes: int, job_id: str | None, limit: int
) -> list[JobShard]:
    """Return waiting files of running jobs that fit a worker: of one job, or of all, the most urgent first."""
    statement = select(JobShard).join(Job, Job.id == JobShard.job_id)
    statement = statement.where(_claimable(), JobShard.memory_bytes <= memory_bytes, Job.device_class == device_class)
    statement = statement.where(Job.status == JobStatus.RUNNING.value)
    if job_id is not None:
        statement = statement.where(JobShard.job_id == job_id)
    return list(session.scalars(statement.order_by(Job.priority.desc(), Job.id, JobShard.position).limit(limit)))


def claim(session: Session, shard: JobShard, owner: str, lease_s: float) -> ShardFence | None:
    """Take a waiting file of a running job; None when somebody else was faster. One conditional UPDATE, as for jobs."""
    moment = now()
    allowed = or_(~draining(owner), Job.lease_owner == owner)  # who holds the job finishes it
    runs = exists().where(Job.id == JobShard.job_id, Job.status == JobStatus.RUNNING.value, allowed)
    statement = (
        update(JobShard)
        .where(JobShard.job_id == shard.job_id, JobShard.position == shard.position, JobShard.attempt == shard.attempt)
        .where(_claimable(), runs)
        .values(
            status=ShardStatus.RUNNING.value,
            attempt=JobShard.attempt + 1,
            lease_owner=owner,
            lease_until=moment + timedelta(seconds=lease_s),
            worker_id=owner,
            params_done=0,
            started_at=moment,
        )
        .execution_options(synchronize_session=False)
    )
    if session.connection().execute(statement).rowcount != 1:
        return None
    job_attempt = session.scalar(select(Job.attempt).where(Job.id == shard.job_id)) or 0
    return ShardFence(shard.job_id, shard.position, owner, shard.attempt + 1, job_attempt)


def renew(session: Session, fence: ShardFence, lease_s: float) -> bool:
    """Push the lease ahead; False when it was lost."""
    return _set(session, fence, lease_until=now() + timedelta(seconds=lease_s))


def report(session: Session, fence: ShardFence, params_done: int) -> bool:
    """Say how far the work is; False when the file is no longer held."""
    return _set(session, fence, params_done=params_done)


def finish(session: Session, fence: ShardFence, files: Iterable[ShardFile]) -> None:
    """Write that the work is done and where its files are.

    Raises:
        StaleFenceError: somebody else holds it.
    """
    done = {"status": ShardStatus.DONE.value, "params_done": JobShard.params, "finished_at": now(), **_UNHELD}
    _end(session, fence, **done)
    key = {"job_id": fence.job_id, "position": fence.position}
    session.add_all(JobShardFile(**key, **vars(file)) for file in files)
    session.flush()


def give_back(session: Session, fence: ShardFence) -> None:
    """Let another worker take it, without using up an attempt.

    Raises:
        StaleFenceError: somebody else holds it.
    """
    _end(session, fence, status=ShardStatus.QUEUED.value, attempt=JobShard.attempt - 1, params_done=0, **_UNHELD)


def fail(session: Session, fence: ShardFence, error: JobError, *, again: bool, pause_s: float = 0.0) -> None:
    """End the attempt.

    Args:
        session: a transaction.
        fence: of who held it.
        error: why.
        again: another attempt may follow; else the job fails of this one.
        pause_s: nobody begins that before. Workers look at the table, so it needs no wake-up.

    Raises:
        StaleFenceError: somebody else holds it.
    """
    status = ShardStatus.QUEUED if again else ShardStatus.FAILED
    content = error.model_dump(mode="json")
    columns = {"status": status.value, "error": content, "params_done": 0, "finished_at": now(), **_UNHELD}
    if again and pause_s > 0:
        columns["lease_until"] = now() + timedelta(seconds=pause_s)
    _end(session, fence, **columns)


def held(session: Session) -> Sequence[JobShard]:
    """Return files that some worker holds."""
    return session.scalars(select(JobShard).where(JobShard.status == ShardStatus.RUNNING.value)).all()


def fence_of(shard: JobShard) -> ShardFence:
    """Return the fence of whoever holds a file, for acting in its place."""
    return ShardFence(shard.job_id, shard.position, shard.lease_owner or "", shard.attempt)


def files_of(session: Session, job_id: str) -> Sequence[JobShardFile]:
    """Return the files that the finished shards of a job left."""
    query = select(JobShardFile).where(JobShardFile.job_id == job_id)
    return session.scalars(query.order_by(JobShardFile.position, JobShardFile.path)).all()


def params_done(session: Session, job_id: str) -> tuple[int, int]:
    """Return how many parameters are done, and how many there are."""
    sums = select(func.sum(JobShard.params_done), func.sum(JobShard.params)).where(JobShard.job_id == job_id)
    done, total = session.execute(sums).one()
    return int(done or 0), int(total or 0)


def has_files_to_forget(session: Session) -> bool:
    """Whether `forget_files` would do anything."""
    return session.scalar(select(JobShardFile.job_id).where(JobShardFile.job_id.in_(_ended())).limit(1)) is not None


def forget_files(session: Session) -> None:
    """Let go of what finished shards of ended jobs left: the artifact has its own rows."""
    session.execute(delete(JobShardFile).where(JobShardFile.job_id.in_(_ended())))


def _ended() -> Select[str]:
    return select(Job.id).where(Job.status.in_([status.value for status in TERMINAL_STATUSES]))


def _claimable() -> ColumnElement[bool]:
    """Waits, and for nothing but a worker: `lease_until` of a file that nobody holds is the end of its pause."""
    ready = or_(JobShard.lease_until.is_(None), JobShard.lease_until <= now())
    return and_(JobShard.status == ShardStatus.QUEUED.value, ready)


def _end(session: Session, fence: ShardFence, **values: Any) -> None:
    if not _set(session, fence, **values):
        raise StaleFenceError(f"{fence} holds it no longer")


def _set(session: Session, fence: ShardFence, **values: Any) -> bool:
    statement = update(JobShard).where(fence.condition()).values(**values)
    return session.connection().execute(statement.execution_options(synchronize_session=False)).rowcount == 1
