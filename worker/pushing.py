"""From the rows of a job to the orders of the child that pushes its result, and the token that it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.core.sealing import UnreadableSecretError
from app.db.tables import Artifact, Job
from app.jobs.transitions import Fence
from app.secrets.sealing import MissingSecretError, take
from app.settings import Settings
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.specs import JobSpec
from worker.failures import JobFailedError
from worker.supervisor import Stop, StoppedError


@dataclass(frozen=True)
class Push:
    """What the child is to do, JSON-ready, and the user's token, which is kept out of it and out of `repr`."""

    content: dict[str, Any]
    token: str = field(repr=False)


def read_push(session: Session, settings: Settings, job_id: str, fence: Fence) -> Push:
    """Read what is to be pushed where, and open the secret, which is noted as used.

    Raises:
        StoppedError: the result was not written, because another holds the job.
        JobFailedError: the secret is gone, or this worker can not open it.
    """
    job = session.get_one(Job, job_id)
    spec = JobSpec.model_validate(job.config)
    if job.result is None or spec.push_to_hub is None or not fence.holds(job):
        raise StoppedError(Stop.LEASE_LOST)
    wish = spec.push_to_hub
    formats = list(wish.formats or spec.formats)
    files = session.scalars(
        select(Artifact).where(Artifact.job_id == job_id, Artifact.format.in_(formats)).order_by(Artifact.path)
    )
    content = {
        "job_id": job_id,
        "repo": wish.repo,
        "revision": wish.revision,
        "private": wish.private,
        "formats": formats,
        "files": [
            {"format": file.format, "path": file.path, "size": file.size, "sha256": file.sha256} for file in files
        ],
    }
    return Push(content, _token(session, settings, job, wish.secret))


def _token(session: Session, settings: Settings, job: Job, name: str) -> str:
    try:
        return take(session, settings, job.tenant_id, name, "hub_token")
    except MissingSecretError as error:
        raise JobFailedError(
            JobErrorCode.PUSH_DENIED,
            str(error),
            hint=f"Store it again, `nupes secrets set {name}`; `nupes retry` pushes the files, which are stored.",
        ) from error
    except UnreadableSecretError as error:
        raise JobFailedError(
            JobErrorCode.PUSH_FAILED,
            f"this worker can not open the secret {name!r}",
            hint="The operator gives it the NUPES_SECRET_KEY of the API; after that key was changed, store it again.",
            retryable=True,
        ) from error
