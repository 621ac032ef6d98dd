"""What a worker writes about the job it holds: phases, progress and the end. Every write repeats the fence.

All write in the caller's transaction (`Database.write()`) and raise `StaleFenceError` when the job is no longer
held; the caller then rolls back and ends its work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Artifact, Job, JobLayer
from app.jobs.gates import evaluate_gates
from app.jobs.transitions import AT_START, Fence, enqueue, record, transition
from nupes_client.schemas.jobs import JobError, JobPhase, JobResult, JobStatus, Layer, ProgressInfo, Pushed
from nupes_client.schemas.problems import JobErrorCode
from nupes_client.schemas.specs import JobSpec
from nupes_core.codeversion import code_version

_UNHELD: dict[str, Any] = {"lease_owner": None, "lease_until": None, "worker_id": None}


@dataclass(frozen=True)
class PublishedFile:
    """One file of a result, stored as blob `sha256`; `path` is its place inside the folder of the format."""

    format: str
    path: str
    size: int
    sha256: str
    media_type: str


def enter_phase(session: Session, job: Job, fence: Fence, phase: JobPhase, *, fraction: float = 0.0) -> None:
    """Say what the job is doing now, and that nothing of it is counted yet.

    `fraction` is what the whole job has done by then; a job never goes back, so a smaller one than is known is ignored.
    """
    columns = {
        "phase": phase.value,
        "progress_fraction": max(fraction, job.progress_fraction),
        "progress_current": 0,
        "progress_total": 0,
    }
    record(session, job, "phase", {"phase": phase.value}, fence=fence, **columns)


def report_progress(
    session: Session, job: Job, fence: Fence, progress: ProgressInfo, *, eta_seconds: float | None = None
) -> None:
    """Say how far the job is. Call it a few times a second at most: each call is an event that watchers get."""
    data = {**_json(progress), "phase": job.phase, "eta_seconds": eta_seconds}
    columns = {f"progress_{name}": value for name, value in _json(progress).items()}
    record(session, job, "progress", data, fence=fence, eta_seconds=eta_seconds, **columns)


def succeed(
    session: Session,
    job: Job,
    fence: Fence | None,
    result: JobResult,
    layers: Sequence[Layer],
    artifacts: Sequence[PublishedFile],
    *,
    cached_from: str | None = None,
) -> None:
    """Finish the job: gates and verdict, layers, artifact rows and the status, all in this one transaction.

    A job that is being cancelled when its result is ready succeeds: the work is done. One that has to push its result
    goes through `publish` and `conclude` instead.

    Args:
        session: an open write session.
        job: the row.
        fence: what the worker holds; None for the service, which answers a queued job from the result cache.
        result: what came out.
        layers: of the model, in checkpoint order.
        artifacts: files, stored already.
        cached_from: the job that computed all this, if it was another.
    """
    _lock(session, job)
    data, columns = _outcome(job, result, artifacts, cached_from)
    transition(session, job, JobStatus.SUCCEEDED, fence=fence, data=data, **columns, progress_fraction=1.0)
    _add_rows(session, job, layers, artifacts)


def publish(
    session: Session,
    job: Job,
    fence: Fence | None,
    result: JobResult,
    layers: Sequence[Layer],
    artifacts: Sequence[PublishedFile],
    *,
    cached_from: str | None = None,
) -> None:
    """Write the result of a job that still has to push it: from now on nothing of it is lost, however the push ends.

    The arguments are those of `succeed`; the status stays as it is.
    """
    _lock(session, job)
    data, columns = _outcome(job, result, artifacts, cached_from)
    record(session, job, "published", data, fence=fence, **columns)
    _add_rows(session, job, layers, artifacts)


def conclude(session: Session, job: Job, fence: Fence, pushed: Pushed) -> None:
    """Finish a job that has published its result and pushed it."""
    _lock(session, job)
    data = {"verdict": job.verdict, "pushed": pushed.commit_url}
    transition(session, job, JobStatus.SUCCEEDED, fence=fence, data=data, pushed=_json(pushed), progress_fraction=1.0)


def fail(session: Session, job: Job, fence: Fence | None, error: JobError) -> None:
    """End the job with an error. A failure whose reason is the cancellation itself ends it as cancelled.

    Args:
        session: an open write session.
        job: the row.
        fence: what the worker holds; None for the reaper, which acts for a worker that is gone.
        error: why.
    """
    _lock(session, job)
    if error.code == JobErrorCode.CANCELLED:
        finish_cancel(session, job, fence)
        return
    content = _json(error)
    transition(session, job, JobStatus.FAILED, fence=fence, data={"error": content}, error=content)


def finish_cancel(session: Session, job: Job, fence: Fence | None) -> None:
    """End a job in `cancelling` as cancelled; with fence None for the reaper."""
    _lock(session, job)
    transition(session, job, JobStatus.CANCELLED, fence=fence)


def requeue(session: Session, job: Job, fence: Fence | None, *, reason: str, pause_s: float = 0.0) -> None:
    """Give a running job back for its next attempt, and wake somebody for it.

    Args:
        session: an open write session.
        job: the row.
        fence: None for the reaper; a worker that shuts down gives its own.
        reason: why.
        pause_s: nobody takes it before; workers look at the table, so it needs no second wake-up.
    """
    _lock(session, job)
    columns, data = {**AT_START, **_UNHELD}, {"reason": reason}
    if pause_s > 0:
        columns["lease_until"] = until = now() + timedelta(seconds=pause_s)
        data["not_before"] = until.isoformat()
    transition(session, job, JobStatus.QUEUED, fence=fence, data=data, **columns)
    enqueue(session, job)


def _lock(session: Session, job: Job) -> None:
    """Read the row as it is now and keep others from changing it until the end of the transaction."""
    session.refresh(job, with_for_update=True)


def _json(model: BaseModel) -> dict[str, Any]:
    """Return what the JSON columns take: NaN and infinities, which PostgreSQL refuses, become null."""
    content: dict[str, Any] = json.loads(model.model_dump_json())
    return content


def _outcome(
    job: Job, result: JobResult, artifacts: Sequence[PublishedFile], cached_from: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the event says of a result, and the columns that hold it."""
    gates, verdict = evaluate_gates(JobSpec.model_validate(job.config).gates, result)
    data = {
        "verdict": verdict,
        "files": len(artifacts),
        "bytes_after": result.bytes_after,
        **({"cached_from": cached_from} if cached_from else {}),
    }
    columns = {
        "result": _json(result),
        "gates": [_json(gate) for gate in gates],
        "verdict": verdict,
        "cache_hit": cached_from is not None,
        "code_version": code_version(),
    }
    return data, columns


def _add_rows(session: Session, job: Job, layers: Sequence[Layer], artifacts: Sequence[PublishedFile]) -> None:
    session.add_all(_layer_rows(job, layers))
    session.add_all(_artifact_rows(job, artifacts))
    session.flush()


def _layer_rows(job: Job, layers: Sequence[Layer]) -> Iterable[JobLayer]:
    for position, layer in enumerate(layers):
        data = _json(layer)
        histogram = data.pop("histogram")
        yield JobLayer(job_id=job.id, position=position, name=layer.name, data=data, histogram=histogram)


def _artifact_rows(job: Job, files: Sequence[PublishedFile]) -> Iterable[Artifact]:
    # Lists are newest first, so the last one written comes first.
    for file in sorted(files, key=lambda file: (file.format, file.path), reverse=True):
        yield Artifact(
            tenant_id=job.tenant_id,
            job_id=job.id,
            format=file.format,
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            media_type=file.media_type,
        )
