"""`/`: what runs, what waits, who works."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from app.core.deps import ReadSession, Settings_
from app.core.pagination import PageQuery
from app.core.security import JobsRead
from app.health.readiness import readiness
from app.jobs import service as jobs
from app.jobs.repository import JobFilter
from app.usage import service as usage
from app.web.rendering import page
from app.web.routing import pages
from app.web.titles import names_of_models
from app.workers import endpoints as workers
from nupes_client.schemas.jobs import TERMINAL_STATUSES, JobStatus

router = pages()
_UNFINISHED = tuple(status for status in JobStatus if not status.is_terminal)
_SHOWN = PageQuery(limit=15, after=None)


@router.get("/")
def show_overview(request: Request, who: JobsRead, session: ReadSession, settings: Settings_) -> Response:
    """The first page."""
    state = request.app.state
    unfinished = jobs.listing(session, who.tenant_id, JobFilter(statuses=_UNFINISHED), _SHOWN)
    ended = jobs.listing(session, who.tenant_id, JobFilter(statuses=tuple(TERMINAL_STATUSES)), _SHOWN)
    return page(
        request,
        "overview.html",
        health=readiness(settings, state.database, state.store),
        queues=workers.list_queues(who, session).data,
        workers=workers.list_workers(who, session, settings).data,
        usage=usage.usage(session, settings, who.tenant_id, request.state.rate),
        unfinished=unfinished,
        ended=ended,
        names=names_of_models(session, who, [*unfinished.data, *ended.data]),
    )
