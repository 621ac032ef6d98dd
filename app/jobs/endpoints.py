"""`/v1/jobs`."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from pydantic import StringConstraints
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.audit import service as audit
from app.core.conditional import check_match, etag, not_modified
from app.core.deps import ReadSession, WriteSession
from app.core.negotiation import negotiate
from app.core.openapi import problems
from app.core.pagination import MAX_LIMIT, PageParams
from app.core.partial import partial_response
from app.core.problems import ProblemError
from app.core.security import JobsRead, JobsWrite
from app.jobs import repository, service, shards, submission
from app.jobs.compare import side_by_side
from app.jobs.deps import ComparedIds, Filter, Reader, SubmissionContext, Wakes, Watcher
from app.jobs.layers import layers_csv
from app.jobs.logs import MEDIA_TYPES as LOG_MEDIA_TYPES
from app.jobs.logs import TYPES as LOG_TYPES
from app.jobs.logs import log_content
from app.jobs.metrics import MAX_NAME, MIN_POINTS, read_metrics
from app.jobs.prefer import preferred_wait, while_connected
from app.jobs.repository import JobState
from app.jobs.stream import event_stream, resume_point
from app.jobs.views import JOBS_PATH, counted_layer_view, event_view, job_view, layer_view, shard_view
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.base import Page
from nupes_client.schemas.jobs import Job, JobEvent, JobMetrics, JobPatch, JobStatus, Layer, Shard
from nupes_client.schemas.reports import JobComparison, LogFormat
from nupes_client.schemas.specs import JobCreate

router = APIRouter(prefix=JOBS_PATH, tags=["jobs"])

POLL_AFTER_S = 2
"""What `Retry-After` tells a client that polls."""

_LAYER_FORMATS = {"json": "application/json", "csv": "text/csv"}

IdempotencyKey = Annotated[str | None, Header(description="The same key and body twice make one job.")]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Rows per page.")]
Position = Annotated[int, Query(ge=0, lt=1 << 63)]
LayerName = Annotated[str, StringConstraints(min_length=1, max_length=500)]
SeriesName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)]
Cursor = Annotated[int | None, Query(ge=0, lt=1 << 63, description="`next_cursor` of the page before.")]


@router.post("", status_code=202, response_model=Job, responses=problems(404, 409, 502, 507))
def create_job(
    body: JobCreate,
    principal: JobsWrite,
    context: SubmissionContext,
    wakes: Wakes,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Check a wish and queue it. The answer does not wait for a worker, nor for the broker."""
    return _accepted(submission.submit(context, principal, body, idempotency_key), wakes)


@router.post("/{job_id}/retry", status_code=202, response_model=Job, responses=problems(409, 502, 507))
def retry_job(
    job_id: str,
    principal: JobsWrite,
    context: SubmissionContext,
    wakes: Wakes,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a new job with the wish of one that failed or was cancelled; `retry_of` names that one."""
    return _accepted(submission.resubmit(context, principal, job_id, idempotency_key), wakes)


@router.get("", response_model=Page[Job])
def list_jobs(principal: JobsRead, session: ReadSession, page: PageParams, narrow: Filter) -> Response:
    """Jobs, newest first. `label.NAME=VALUE` narrows to jobs with that label; all filters must hold."""
    found = service.listing(session, principal.tenant_id, narrow, page)
    return Response(found.model_dump_json(), media_type="application/json")


@router.get("/compare", responses=problems(404))
def compare_jobs(principal: JobsRead, session: ReadSession, ids: ComparedIds) -> JobComparison:
    """Jobs side by side: settings that differ, sizes, measured quality, and each layer's figures."""
    return side_by_side(session, service.get_in_order(session, principal.tenant_id, ids))


@router.get("/{job_id}", response_model=Job, responses={304: {"description": "Not modified"}})
async def get_job(job_id: str, request: Request, principal: JobsRead, reader: Reader, watcher: Watcher) -> Response:
    """One job. Its ETag is its version.

    With `Prefer: wait=N` the answer comes when the version differs from `If-None-Match` or, without that header, when
    the job has ended; after N seconds at the latest.
    """
    wait_s = preferred_wait(request)
    headers = {"Cache-Control": "private, no-cache", "Vary": "Authorization, Prefer"}
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s}"
        await _wait_for_news(request, await reader.state(principal.tenant_id, job_id), watcher, job_id, wait_s)
    if "if-none-match" in request.headers:
        tag = etag((await reader.state(principal.tenant_id, job_id)).version)
        if not_modified(request, tag):
            return Response(status_code=304, headers={"ETag": tag, **headers})
    job = await reader.job(principal.tenant_id, job_id)
    headers["ETag"] = service.version_tag(job)
    return Response(job_view(job).model_dump_json(), media_type="application/json", headers=headers)


@router.patch("/{job_id}", responses=problems(412, 428))
def change_job(
    job_id: str, body: JobPatch, request: Request, response: Response, principal: JobsWrite, session: WriteSession
) -> Job:
    """Change name, labels or priority. `If-Match` must name the version that the client has seen."""
    if "if-match" not in request.headers:
        raise _precondition_required()
    job = service.change(session, principal.tenant_id, job_id, body, lambda current: check_match(request, current))
    audit.record(session, principal, AuditAction.JOB_CHANGED, job_id)
    response.headers["ETag"] = service.version_tag(job)
    return job_view(job)


@router.delete("/{job_id}", status_code=204, responses=problems(409))
def delete_job(job_id: str, principal: JobsWrite, session: WriteSession) -> None:
    """Delete an ended job with its events, layers and artifacts."""
    service.remove(session, principal.tenant_id, job_id)
    audit.record(session, principal, AuditAction.JOB_DELETED, job_id)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, response: Response, principal: JobsWrite, session: WriteSession) -> Job:
    """Cancel a job; asking twice is the same as asking once, and an ended job stays as it is."""
    job = service.cancel(session, principal.tenant_id, job_id)
    audit.record(session, principal, AuditAction.JOB_CANCELLED, job_id)
    response.headers["ETag"] = service.version_tag(job)
    return job_view(job)


@router.get("/{job_id}/events")
def list_events(
    job_id: str,
    principal: JobsRead,
    session: ReadSession,
    after: Position = 0,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[JobEvent]:
    """What happened to a job, oldest first, from event number `after` + 1."""
    service.get(session, principal.tenant_id, job_id)
    found = repository.events(session, job_id, after if cursor is None else cursor, limit + 1)
    events = [event_view(event) for event in found[:limit]]
    return _page(events, len(found) > limit, events[-1].seq if events else 0)


@router.get("/{job_id}/events/stream", response_class=StreamingResponse, responses={204: {"description": "Ended"}})
async def stream_events(
    job_id: str,
    principal: JobsRead,
    reader: Reader,
    watcher: Watcher,
    after: Position = 0,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The same as `text/event-stream`, as it happens; closed after the event that ends the job."""
    seen = resume_point(last_event_id, after)
    job = await reader.job(principal.tenant_id, job_id)
    return event_stream(watcher, job, seen, reconnects=bool(last_event_id))


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {}, "application/x-ndjson": {}}},
        206: {"description": "Partial content"},
        304: {"description": "Not modified"},
        **problems(416),
    },
)
def read_logs(
    job_id: str,
    request: Request,
    principal: JobsRead,
    session: ReadSession,
    tail: Annotated[int | None, Query(ge=1, le=100_000, description="Only so many lines, the last.")] = None,
    format: Annotated[LogFormat, Query()] = "text",  # noqa: A002
) -> Response:
    """What happened to a job, a line each, progress left out. It only grows: `Range: bytes=N-` reads what is new."""
    service.get(session, principal.tenant_id, job_id)
    events = repository.events_of_types(session, job_id, LOG_TYPES)
    return partial_response(request, log_content(events, format, tail), LOG_MEDIA_TYPES[format])


@router.get("/{job_id}/layers", response_model=Page[Layer])
def list_layers(
    job_id: str,
    request: Request,
    principal: JobsRead,
    session: ReadSession,
    limit: Limit = MAX_LIMIT,
    cursor: Cursor = None,
    name: Annotated[list[LayerName], Query(max_length=8, description="Only these; repeat the parameter.")] = [],  # noqa: B006
    include: Annotated[list[Literal["histogram"]], Query(description="What else to tell, not in CSV.")] = [],  # noqa: B006
    format: Annotated[Literal["json", "csv"] | None, Query(description="Wins over `Accept`.")] = None,  # noqa: A002
) -> Response | Page[Layer]:
    """What was done to each weight, in checkpoint order. CSV has all rows at once."""
    service.get(session, principal.tenant_id, job_id)
    if (format or negotiate(request, _LAYER_FORMATS)) == "csv":
        lines = layers_csv(repository.layers(session, job_id, -1, None, names=name))
        headers = {"Content-Disposition": f'attachment; filename="{job_id}-layers.csv"', "Vary": "Accept"}
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)
    after, counted = -1 if cursor is None else cursor, "histogram" in include
    found = repository.layers(session, job_id, after, limit + 1, names=name, histograms=counted)
    layers, view = found[:limit], counted_layer_view if counted else layer_view
    return _page([view(layer) for layer in layers], len(found) > limit, layers[-1].position if layers else 0)


@router.get("/{job_id}/shards")
def list_shards(
    job_id: str, principal: JobsRead, session: ReadSession, limit: Limit = MAX_LIMIT, cursor: Cursor = None
) -> Page[Shard]:
    """The files of a sharded model that workers do one by one, and who did them; empty for a job of one worker."""
    service.get(session, principal.tenant_id, job_id)
    rows = [row for row in shards.of_job(session, job_id) if cursor is None or row.position > cursor]
    found = rows[:limit]
    return _page([shard_view(row) for row in found], len(rows) > limit, found[-1].position if found else 0)


@router.get("/{job_id}/metrics", response_model=JobMetrics, responses={304: {"description": "Not modified"}})
def list_metrics(
    job_id: str,
    request: Request,
    principal: JobsRead,
    session: ReadSession,
    series: Annotated[list[SeriesName], Query(description="Only these; repeat the parameter.")] = [],  # noqa: B006
    max_points: Annotated[int, Query(ge=MIN_POINTS, le=10_000, description="Of each series.")] = 200,
) -> Response:
    """The curves of a job, such as losses of training, while it runs and afterwards.

    Longer series are thinned out; first, last and extremes stay. The ETag changes with the content.
    """
    service.get(session, principal.tenant_id, job_id)
    content = read_metrics(session, job_id, series, max_points).model_dump_json().encode()
    tag = etag(hashlib.sha256(content).hexdigest()[:32])
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if not_modified(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


def _accepted(submitted: submission.Submitted, wakes: Wakes) -> Response:
    """Answer 202; the wake-up is published behind the answer, so that a broker that is down holds nobody up."""
    job = submitted.job
    headers = {
        "Location": f"{JOBS_PATH}/{job.id}",
        "Retry-After": str(POLL_AFTER_S),
        "ETag": service.version_tag(job),
    }
    waits = not submitted.replayed and not JobStatus(job.status).is_terminal
    if submitted.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Response(
        job_view(job).model_dump_json(),
        status_code=202,
        media_type="application/json",
        headers=headers,
        background=BackgroundTask(wakes.deliver, job.id) if waits else None,
    )


async def _wait_for_news(request: Request, state: JobState, watcher: Watcher, job_id: str, wait_s: int) -> None:
    """Return once the job has another state than the client knows, or the one without any knows: its end."""
    conditional = "if-none-match" in request.headers
    if state.status.is_terminal or (conditional and not not_modified(request, etag(state.version))):
        return
    known = state.version if conditional else None
    await while_connected(request, watcher.wait(job_id, lambda now: _is_news(now, known), wait_s))


def _is_news(state: JobState, known: int | None) -> bool:
    return state.status.is_terminal or (known is not None and state.version != known)


def _page(data: list[Any], has_more: bool, last: int) -> Page[Any]:
    return Page(data=data, next_cursor=str(last) if has_more else None, has_more=has_more)


def _precondition_required() -> ProblemError:
    return ProblemError(
        428,
        "precondition_required",
        "Precondition required",
        "a change of a job must say in If-Match which version it changes",
        hint="Send the ETag of the job as you read it.",
    )
