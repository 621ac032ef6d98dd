"""Entries of the ledger of usage, written in the transaction of what they count."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, UsageEntry
from app.usage import repository


class UsageKind(StrEnum):
    """What is counted."""

    JOB = "job"
    COMPUTE = "compute"


def count_job(session: Session, job: Job) -> None:
    """Count a job that was submitted."""
    repository.add(session, _entry(job, UsageKind.JOB, 1.0))


def count_compute(session: Session, job: Job, since: datetime | None) -> None:
    """Count the seconds of an attempt that began at `since` and ends now; None: there was none."""
    if since is not None:
        repository.add(session, _entry(job, UsageKind.COMPUTE, max(0.0, (now() - since).total_seconds())))


def _entry(job: Job, kind: UsageKind, amount: float) -> UsageEntry:
    return UsageEntry(tenant_id=job.tenant_id, kind=kind.value, job_id=job.id, amount=amount)
