"""`/models`: what can be quantized."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from app.core.deps import ReadSession, Settings_
from app.core.pagination import PageParams, PageQuery
from app.core.security import ModelsRead
from app.jobs import service as jobs
from app.jobs.repository import JobFilter
from app.models import endpoints as models
from app.web.queries import without_cursor
from app.web.rendering import page
from app.web.routing import pages

router = pages()
_LAST_JOBS = PageQuery(limit=20, after=None)


@router.get("/models")
def show_models(
    request: Request, who: ModelsRead, session: ReadSession, params: PageParams, settings: Settings_
) -> Response:
    """The list, and how to add one."""
    found = models.list_models(who, session, params)
    return page(request, "models.html", models=found, hub=settings.hub, base_query=without_cursor(request.url.query))


@router.get("/models/{model_id}")
def show_model(model_id: str, request: Request, who: ModelsRead, session: ReadSession) -> Response:
    """One model: files, findings, and what was made of it."""
    model = models.get_model(model_id, who, session)
    of_it = JobFilter(model_id=model_id)
    made = jobs.listing(session, who.tenant_id, of_it, _LAST_JOBS) if who.may("jobs:read") else None
    return page(request, "model.html", model=model, made=made, names={model.id: model.name})
