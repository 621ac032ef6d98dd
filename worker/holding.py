"""What a worker holds by a lease: a whole job, or one file of a sharded job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Job, JobShard
from app.jobs import shards, transitions
from app.jobs.shards import ShardFence
from app.jobs.transitions import Fence
from nupes_client.schemas.jobs import JobStatus
from worker.supervisor import Stop


class Holding(Protocol):
    """Something with a lease."""

    @property
    def name(self) -> str:
        """For logs."""

    def renew(self, session: Session, lease_s: float) -> bool:
        """Push the lease ahead; False when it was lost."""

    def reason_to_stop(self, session: Session) -> Stop | None:
        """Return why the work has to end, as the database has it."""


@dataclass(frozen=True)
class HeldJob:
    """A job."""

    job_id: str
    fence: Fence

    @property
    def name(self) -> str:
        """The job's id."""
        return self.job_id

    def renew(self, session: Session, lease_s: float) -> bool:
        """Push the lease ahead; False when it was lost."""
        return transitions.renew(session, self.job_id, self.fence, lease_s)

    def reason_to_stop(self, session: Session) -> Stop | None:
        """Return why the work has to end: it was cancelled, or another has it."""
        status = session.scalar(select(Job.status).where(Job.id == self.job_id, self.fence.condition()))
        return _OF_THE_JOB.get(status)


@dataclass(frozen=True)
class HeldShard:
    """One file of a job."""

    fence: ShardFence

    @property
    def name(self) -> str:
        """The job's id and the position of the file."""
        return f"{self.fence.job_id}/{self.fence.position}"

    def renew(self, session: Session, lease_s: float) -> bool:
        """Push the lease ahead; False when it was lost."""
        return shards.renew(session, self.fence, lease_s)

    def reason_to_stop(self, session: Session) -> Stop | None:
        """Return why the work has to end: the job has ended or ends, or another has the file.

        A job that waits for its next attempt still needs the file.
        """
        query = select(Job.status).join(JobShard, JobShard.job_id == Job.id).where(self.fence.condition())
        return _OF_THE_SHARDS_JOB.get(session.scalar(query), Stop.LEASE_LOST)


_OF_THE_JOB: dict[str | None, Stop] = {
    None: Stop.LEASE_LOST,
    JobStatus.QUEUED.value: Stop.LEASE_LOST,
    JobStatus.CANCELLING.value: Stop.CANCELLED,
}

_OF_THE_SHARDS_JOB: dict[str | None, Stop | None] = {
    JobStatus.RUNNING.value: None,
    JobStatus.QUEUED.value: None,
    JobStatus.CANCELLING.value: Stop.CANCELLED,
}
