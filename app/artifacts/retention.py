"""Artifacts past their time: the bytes go, the rows stay and say so, and the job tells it too."""

from __future__ import annotations

from datetime import timedelta

from app.artifacts import repository
from app.core.clock import now
from app.core.problems import ProblemError
from app.db.session import Database
from app.db.tables import Artifact
from app.jobs.transitions import amend


def expire_artifacts(database: Database, ttl_s: float) -> int:
    """Give up artifacts older than `ttl_s`, all of a job in one transaction; return of how many jobs."""
    moment = now()
    with database.read() as session:
        job_ids = repository.jobs_with_artifacts_from_before(session, moment - timedelta(seconds=ttl_s))
    return sum(_expire(database, job_id) for job_id in job_ids)


def require_kept(artifact: Artifact) -> None:
    """Refuse the bytes of an artifact past its time.

    Raises:
        ProblemError: 410.
    """
    if artifact.expired_at is None:
        return
    raise ProblemError(
        410,
        "artifact_expired",
        "Gone",
        f"{artifact.path} of {artifact.job_id} was past its time and deleted at {artifact.expired_at:%Y-%m-%dT%H:%MZ}",
        hint=f"Make it again with POST /v1/jobs/{artifact.job_id}/retry.",
    )


def _expire(database: Database, job_id: str) -> bool:
    with database.write() as session:
        job = repository.lock_job(session, job_id)
        if job is None or not repository.expire(session, job_id, now()):
            return False
        amend(session, job, artifacts_expired_at=now())
        return True
