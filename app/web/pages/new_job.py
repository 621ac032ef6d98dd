"""`/jobs/new`: a form made from the schema of the request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from app.core.deps import ReadSession
from app.core.pagination import MAX_LIMIT, PageQuery
from app.core.security import JobsRead, JobsWrite
from app.jobs import service
from app.jobs.views import job_view
from app.models import endpoints as models
from app.secrets import endpoints as secrets
from app.web.commands import commands
from app.web.presets import PRESETS
from app.web.rendering import page
from app.web.routing import pages
from app.web.schema_form import job_form
from nupes_client.schemas.specs import JobCreate, JobSpec

router = pages()
_ABOUT_THE_JOB = tuple(name for name in JobCreate.model_fields if name not in JobSpec.model_fields)
_NEWEST = PageQuery(limit=MAX_LIMIT, after=None)


@router.get("/jobs/new")
def show_new_job(
    request: Request,
    who: JobsWrite,
    session: ReadSession,
    source: Annotated[str | None, Query(alias="from", max_length=40)] = None,
    model_id: Annotated[str | None, Query(max_length=40)] = None,
) -> Response:
    """The form: empty, or with the wish of the job `from`."""
    wish = None
    if source is not None:
        job = job_view(service.get(session, who.tenant_id, source))
        wish = {**job.config.model_dump(mode="json"), **{name: getattr(job, name) for name in _ABOUT_THE_JOB}}
        model_id = job.config.model.id
    known = models.list_models(who, session, _NEWEST).data if who.may("models:read") else []
    stored = secrets.list_secrets(who, session, _NEWEST).data if who.may("secrets:manage") else None
    return page(
        request,
        "new_job.html",
        form=job_form(wish, None if stored is None else sorted(secret.name for secret in stored)),
        models=known,
        model_id=model_id or "",
        presets=PRESETS,
        source=source,
        may_send=who.may("models:write"),
        hub=request.app.state.settings.hub,
    )


@router.post("/jobs/new/commands")
def show_commands(body: JobCreate, request: Request, _who: JobsRead) -> Response:
    """The wish as curl, command line and pipeline step; a part of a page."""
    return page(request, "commands.html", commands=commands(body, str(request.base_url).rstrip("/")))
