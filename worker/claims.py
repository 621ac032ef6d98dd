"""Choosing and taking the next job: by priority, then age."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job
from app.jobs.transitions import Fence, claim
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus

CANDIDATES = 10
"""Looked at together: others may be faster with the first."""


@dataclass(frozen=True)
class Claim:
    """A job that is ours until the lease ends."""

    job_id: str
    fence: Fence


def claim_next(database: Database, settings: Settings, owner: str) -> Claim | None:
    """Take the most urgent job of this worker's device class; None when there is nothing to do."""
    with database.read() as session:
        candidates = _claimable(session, settings.device_class)
    for job_id in candidates:
        with database.write() as session:
            fence = claim(session, job_id, owner, settings.lease_s)
        if fence is not None:
            return Claim(job_id, fence)
    return None


def _claimable(session: Session, device_class: str) -> list[str]:
    free = or_(
        Job.status == JobStatus.QUEUED.value,
        and_(Job.status == JobStatus.RUNNING.value, Job.lease_until < now()),
    )
    statement = (
        select(Job.id)
        .where(free, Job.device_class == device_class, Job.attempt < Job.max_attempts)
        .order_by(Job.priority.desc(), Job.id)
        .limit(CANDIDATES)
    )
    return list(session.scalars(statement))
