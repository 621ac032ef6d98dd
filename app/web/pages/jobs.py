"""`/jobs`: the list, one job, several side by side."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request
from starlette.responses import Response

from app.artifacts.endpoints import list_job_artifacts
from app.core.clock import now
from app.core.deps import ReadSession
from app.core.pagination import MAX_LIMIT, PageParams, PageQuery
from app.core.problems import ValidationProblem
from app.core.security import JobsRead
from app.jobs import repository, service
from app.jobs.compare import side_by_side
from app.jobs.deps import MOST_COMPARED, Filter, compared
from app.jobs.logs import TYPES as LOG_TYPES
from app.jobs.logs import log_content
from app.jobs.metrics import MIN_POINTS, read_metrics
from app.jobs.views import event_view, job_view, layer_view
from app.models import endpoints as models
from app.web.queries import without_cursor
from app.web.rendering import page
from app.web.routing import pages
from app.web.timeline import EVENT_TYPES, stages
from app.web.titles import names_of_models
from nupes_client.schemas.jobs import JobStatus


async def _chosen(ids: Annotated[list[str] | None, Query()] = None) -> list[str]:
    try:
        return await compared(ids or [])
    except ValidationProblem as problem:
        hint = "In the list of jobs, tick those to compare and press Compare."
        wanted = f"Choose 2 to {MOST_COMPARED} different jobs"
        raise ValidationProblem(wanted, code=problem.code, hint=hint) from problem


Chosen = Annotated[list[str], Depends(_chosen)]
router = pages()
_LOG_LINES = 200
_AT_MOST = PageQuery(limit=MAX_LIMIT, after=None)


@router.get("/jobs")
def show_jobs(request: Request, who: JobsRead, session: ReadSession, params: PageParams, narrow: Filter) -> Response:
    """The list, with the filters of the API."""
    found = service.listing(session, who.tenant_id, narrow, params)
    known = models.list_models(who, session, _AT_MOST).data if who.may("models:read") else []
    first_label = next((f"{name}={value}" for name, value in narrow.labels.items()), "")
    return page(
        request,
        "jobs.html",
        jobs=found,
        names=names_of_models(session, who, found.data),
        models=known,
        narrow=narrow,
        statuses=list(JobStatus),
        first_label=first_label,
        more_filters=any((narrow.name, narrow.model_id, narrow.labels, narrow.created_after, narrow.created_before)),
        base_query=without_cursor(request.url.query),
    )


@router.get("/jobs/compare")
def show_comparison(request: Request, who: JobsRead, session: ReadSession, ids: Chosen) -> Response:
    """Jobs side by side."""
    found = service.get_in_order(session, who.tenant_id, ids)
    views = [job_view(job) for job in found]
    return page(
        request,
        "compare.html",
        comparison=side_by_side(session, found),
        jobs=views,
        names=names_of_models(session, who, views),
    )


@router.get("/jobs/{job_id}")
def show_job(job_id: str, request: Request, who: JobsRead, session: ReadSession) -> Response:
    """One job: how far it is, what came out, what its layers became."""
    job = job_view(service.get(session, who.tenant_id, job_id))
    events = [event_view(event) for event in repository.events_of_types(session, job_id, EVENT_TYPES)]
    log = repository.events_of_types(session, job_id, LOG_TYPES)
    may_fetch = who.may("artifacts:read")
    return page(
        request,
        "job.html",
        job=job,
        names=names_of_models(session, who, [job]),
        stages=stages(job, events, now()),
        log=log_content(log, "text", _LOG_LINES).decode(),
        log_bytes=len(log_content(log, "text", None)),
        layers=[layer_view(layer) for layer in repository.layers(session, job_id, -1, None)],
        curves=read_metrics(session, job_id, [], MIN_POINTS).data,
        files=list_job_artifacts(job_id, who, session, _AT_MOST).data if may_fetch else [],
        last_event=max((event.seq for event in events), default=0),
        url=str(request.base_url).rstrip("/"),
    )
