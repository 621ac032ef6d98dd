"""The report of a job as data."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.artifacts import repository as artifacts
from app.artifacts.views import artifact_view
from app.jobs import repository, service
from app.jobs.views import job_view, layer_view
from nupes_client.schemas.reports import JobReport


def report(session: Session, tenant_id: str, job_id: str) -> JobReport:
    """Gather all that is known of an ended job.

    Raises:
        NotFoundError: no such job.
        ConflictError: it has not ended.
    """
    job = service.get(session, tenant_id, job_id)
    service.require_ended(job, "reported on")
    began, ended = job.started_at, job.finished_at
    return JobReport(
        job=job_view(job),
        seconds=(ended - began).total_seconds() if began and ended else None,
        layers=[layer_view(layer) for layer in repository.layers(session, job_id, -1, None)],
        artifacts=[artifact_view(file) for file in artifacts.of_job(session, tenant_id, job_id)],
    )
