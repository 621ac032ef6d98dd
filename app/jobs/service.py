"""What can be done with jobs that exist, in the caller's transaction. Other tenants' jobs do not exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from app.core.conditional import etag
from app.core.pagination import PageQuery, paginate
from app.core.problems import ConflictError, NotFoundError
from app.db.tables import Job
from app.jobs import repository
from app.jobs.repository import JobFilter
from app.jobs.transitions import amend, transition
from app.jobs.views import job_view
from nupes_client.schemas.base import Page
from nupes_client.schemas.jobs import Job as JobView
from nupes_client.schemas.jobs import JobPatch, JobStatus


def get(session: Session, tenant_id: str, job_id: str) -> Job:
    """Return one job of the tenant.

    Raises:
        NotFoundError: there is none.
    """
    return _found(repository.get(session, tenant_id, job_id), job_id)


def get_in_order(session: Session, tenant_id: str, job_ids: Sequence[str]) -> list[Job]:
    """Return these jobs of the tenant, in one query.

    Raises:
        NotFoundError: one of them is not there.
    """
    found = {job.id: job for job in repository.get_many(session, tenant_id, job_ids)}
    return [_found(found.get(job_id), job_id) for job_id in job_ids]


def listing(session: Session, tenant_id: str, narrow: JobFilter, page: PageQuery) -> Page[JobView]:
    """One page of the tenant's jobs, newest first."""
    rows, cursor = paginate(session, *repository.listing(tenant_id, narrow), page)
    return Page[JobView](data=[job_view(row) for row in rows], next_cursor=cursor, has_more=cursor is not None)


def version_tag(job: Job) -> str:
    """The ETag of a job."""
    return etag(job.version)


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a job: at once when it waits, by asking its worker when it runs, not at all when it has ended."""
    job = _found(repository.get(session, tenant_id, job_id, lock=True), job_id)
    _CANCEL.get(JobStatus(job.status), _leave)(session, job)
    return job


def _cancel_waiting(session: Session, job: Job) -> None:
    transition(session, job, JobStatus.CANCELLED, data={"by": "user"})


def _ask_worker(session: Session, job: Job) -> None:
    transition(session, job, JobStatus.CANCELLING, data={"by": "user"})


def _leave(session: Session, job: Job) -> None:
    """Nothing to do: asked already, or over."""


_CANCEL: dict[JobStatus, Callable[[Session, Job], None]] = {
    JobStatus.QUEUED: _cancel_waiting,
    JobStatus.RUNNING: _ask_worker,
}


def change(session: Session, tenant_id: str, job_id: str, patch: JobPatch, check_version: Callable[[str], None]) -> Job:
    """Change name, labels or priority; fields that are not in the patch stay.

    Args:
        session: an open write session.
        tenant_id: whose job.
        job_id: which.
        patch: the fields to set.
        check_version: called with the current ETag; raises when the client has seen another version.
    """
    job = _found(repository.get(session, tenant_id, job_id, lock=True), job_id)
    check_version(version_tag(job))
    fields = patch.model_dump(exclude_unset=True)
    if fields:
        amend(session, job, **fields)
    return job


def remove(session: Session, tenant_id: str, job_id: str) -> None:
    """Delete an ended job with its events, layers and artifacts.

    Raises:
        ConflictError: it has not ended.
    """
    job = _found(repository.get(session, tenant_id, job_id, lock=True), job_id)
    require_ended(job, "deleted")
    repository.remove(session, job)


def require_ended(job: Job, action: str) -> None:
    """Refuse what only an ended job allows.

    Raises:
        ConflictError: the job has not ended.
    """
    if not JobStatus(job.status).is_terminal:
        raise ConflictError(
            "job_not_terminal",
            f"{job.id} is {job.status}; only an ended job can be {action}",
            hint="Cancel it first, or wait for its end.",
        )


def _found(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise NotFoundError("job", job_id)
    return job
