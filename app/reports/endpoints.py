"""`/v1/jobs/{job_id}/report`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.core.deps import ReadSession
from app.core.negotiation import negotiate
from app.core.openapi import problems
from app.core.security import JobsRead
from app.jobs.views import JOBS_PATH
from app.reports import service
from app.reports.rendering import KINDS
from nupes_client.schemas.reports import JobReport, ReportFormat

router = APIRouter(tags=["jobs"])

_OFFERS = {name: kind.media_type for name, kind in KINDS.items()}
_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "Vary": "Accept, Authorization",
    "X-Content-Type-Options": "nosniff",
}


@router.get(
    f"{JOBS_PATH}/{{job_id}}/report",
    response_model=JobReport,
    responses={200: {"content": {kind.media_type: {} for kind in KINDS.values()}}, **problems(409)},
)
def get_report(
    job_id: str,
    request: Request,
    principal: JobsRead,
    session: ReadSession,
    format: Annotated[ReportFormat | None, Query(description="Wins over `Accept`.")] = None,  # noqa: A002
) -> Response:
    """What an ended job came to. JUnit XML has a test case for each gate."""
    report = service.report(session, principal.tenant_id, job_id)
    kind = KINDS[format or negotiate(request, _OFFERS)]
    headers = {**_HEADERS, "Content-Disposition": f'inline; filename="{report.job.id}.{kind.suffix}"'}
    return Response(kind.render(report), media_type=kind.media_type, headers=headers)
