"""Making a job: everything is checked before it is written (`writing.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.exc import IntegrityError

from app.core import tracing
from app.core.canonical import content_hash
from app.core.ids import new_id
from app.core.problems import ConflictError, NotFoundError
from app.core.security import Principal
from app.db.session import Database
from app.db.tables import Job
from app.jobs import cache, service
from app.jobs.idempotency import AnsweredError, Once
from app.jobs.writing import JobWriter, NewJob
from app.plans.datasets import pin_dataset
from app.plans.service import Prepared, prepare
from app.settings import Settings
from app.storage import BlobStore
from nupes_client.schemas.jobs import JobStatus
from nupes_client.schemas.specs import JobCreate, JobSpec

log = structlog.get_logger(__name__)

_ABOUT_THE_JOB = set(JobCreate.model_fields) - set(JobSpec.model_fields)
"""Fields that say how a job is run and found, not what it computes."""


@dataclass(frozen=True)
class Submitted:
    """A job, and whether an earlier equal request made it."""

    job: Job
    replayed: bool


@dataclass(frozen=True)
class Context:
    """What making a job needs of the service."""

    database: Database
    settings: Settings
    store: BlobStore
    writer: JobWriter


def submit(context: Context, who: Principal, body: JobCreate, idempotency_key: str | None) -> Submitted:
    """Check the wish and write the job with its first event and its wake-up.

    Raises:
        ProblemError: the model or the text is missing, the job can not fit, the key was used otherwise, the tenant has
            as many jobs as it may.
        NupesError: the core refuses the configuration or the model.
    """
    return _submit(context, who, body, idempotency_key, lambda: {"create": body.model_dump(mode="json")})


def resubmit(context: Context, who: Principal, job_id: str, idempotency_key: str | None) -> Submitted:
    """Make a new job with the wish of one that failed or was cancelled: terminal states are final.

    Raises:
        NotFoundError: no such job.
        ConflictError: the job has not ended, or has succeeded.
        ProblemError: as in `submit`.
    """
    with context.database.read() as session:
        job = service.get(session, who.tenant_id, job_id)
    service.require_ended(job, "retried")
    if job.status == JobStatus.SUCCEEDED:
        hint = 'Send its config to POST /v1/jobs; with "cache": false it is computed again.'
        raise ConflictError("job_succeeded", f"{job.id} has succeeded; there is nothing to retry", hint=hint)
    about = {field: getattr(job, field) for field in _ABOUT_THE_JOB}
    body = JobCreate.model_validate({**job.config, **about})
    return _submit(context, who, body, idempotency_key, lambda: {"retry": job_id}, retry_of=job_id)


def _submit(
    context: Context,
    who: Principal,
    body: JobCreate,
    idempotency_key: str | None,
    request: Callable[[], dict[str, Any]],
    *,
    retry_of: str | None = None,
) -> Submitted:
    once = Once(who.tenant_id, idempotency_key, request)
    try:
        with context.database.glance() as session:
            once.look(session)
        return Submitted(_make(context, who, body, once, retry_of), replayed=False)
    except AnsweredError as answered:
        with context.database.read() as session:
            return Submitted(service.get(session, who.tenant_id, answered.resource_id), replayed=True)


def _make(context: Context, who: Principal, body: JobCreate, once: Once, retry_of: str | None) -> Job:
    body = pin_dataset(context.settings, body)
    with context.database.glance() as session:
        prepared = prepare(session, context.settings, context.store, who.tenant_id, body)
        job = _row(context, who.tenant_id, body, prepared)
        job.retry_of = retry_of
        job.cache_key = cache.cache_key(session, who.tenant_id, prepared.model, body)
        cached = body.cache and cache.lasting(session, context.store, job)
    try:
        context.writer.write(NewJob(job, prepared.shards, who, once, cached=cached))
    except IntegrityError as error:  # the model was deleted between the check and now
        raise NotFoundError("model", job.model_id) from error
    log.info("job accepted", job_id=job.id)  # with the request id: where the two meet
    return job


def _row(context: Context, tenant_id: str, body: JobCreate, prepared: Prepared) -> Job:
    config = body.model_dump(mode="json")
    about = {name: config.pop(name) for name in _ABOUT_THE_JOB}
    return Job(
        id=new_id("job"),
        tenant_id=tenant_id,
        model_id=body.model.id,
        config=config,
        config_hash=content_hash(config),
        device_class=prepared.device_class,
        memory_bytes=prepared.plan.peak_memory_bytes,
        max_attempts=context.settings.max_attempts,
        traceparent=tracing.traceparent(),
        **about,
    )
