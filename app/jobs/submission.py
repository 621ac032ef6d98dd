"""Making a job: everything is checked before it is written, and it is written in one transaction."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from app.core.problems import NotFoundError
from app.db.session import Database
from app.db.tables import Job
from app.jobs import service, transitions
from app.jobs.idempotency import Once, once
from app.plans.datasets import pin_dataset
from app.plans.service import Prepared, prepare
from app.settings import Settings
from app.storage import BlobStore
from nupes_client.schemas.jobs import JobCreate, JobSpec

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


def submit(context: Context, tenant_id: str, body: JobCreate, idempotency_key: str | None) -> Submitted:
    """Check the wish and write the job with its first event and its wake-up.

    Raises:
        ProblemError: the model or the text is missing, the job can not fit, the key was used otherwise.
        NupesError: the core refuses the configuration or the model.
    """
    return _submit(context, tenant_id, body, idempotency_key, content_hash({"create": body.model_dump(mode="json")}))


def resubmit(context: Context, tenant_id: str, job_id: str, idempotency_key: str | None) -> Submitted:
    """Make a new job with the wish of an ended one: terminal states are final.

    Raises:
        NotFoundError: no such job.
        ConflictError: the job has not ended.
        ProblemError: as in `submit`.
    """
    with context.database.read() as session:
        job = service.get(session, tenant_id, job_id)
    service.require_ended(job, "retried")
    about = {field: getattr(job, field) for field in _ABOUT_THE_JOB}
    body = JobCreate.model_validate({**job.config, **about})
    return _submit(context, tenant_id, body, idempotency_key, content_hash({"retry": job_id}))


def content_hash(content: dict[str, Any]) -> str:
    """Return the sha256 of the canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _submit(
    context: Context, tenant_id: str, body: JobCreate, idempotency_key: str | None, request_hash: str
) -> Submitted:
    with once(context.database, tenant_id, idempotency_key, request_hash) as attempt:
        if attempt.resource_id is not None:
            with context.database.read() as session:
                return Submitted(service.get(session, tenant_id, attempt.resource_id), replayed=True)
        body = pin_dataset(context.settings, body)
        with context.database.read() as session:
            prepared = prepare(session, context.settings, context.store, tenant_id, body)
        return Submitted(_write(context, tenant_id, body, prepared, attempt), replayed=False)


def _write(context: Context, tenant_id: str, body: JobCreate, prepared: Prepared, attempt: Once) -> Job:
    config = body.model_dump(mode="json", exclude=_ABOUT_THE_JOB)
    about = body.model_dump(mode="json", include=_ABOUT_THE_JOB)
    job = Job(
        tenant_id=tenant_id,
        model_id=body.model.id,
        config=config,
        config_hash=content_hash(config),
        device_class=prepared.device_class,
        max_attempts=context.settings.max_attempts,
        **about,
    )
    try:
        with context.database.write() as session:
            transitions.create(session, job)
            attempt.answer(session, job.id)
    except IntegrityError as error:  # the model was deleted between the check and now
        raise NotFoundError("model", body.model.id) from error
    return job
