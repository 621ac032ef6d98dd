"""`/v1/artifacts`, and the artifacts of a job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.artifacts import repository
from app.artifacts.archive import MEDIA_TYPE, archive, archive_size
from app.artifacts.content import content_response
from app.artifacts.retention import require_kept
from app.artifacts.views import ARTIFACTS_PATH, artifact_view
from app.core.deps import ReadSession, Store
from app.core.openapi import problems
from app.core.pagination import PageParams, paginate
from app.core.problems import ConflictError, NotFoundError
from app.core.security import ArtifactsRead
from app.db import tables
from app.jobs import service as jobs
from nupes_client.schemas.artifacts import Artifact
from nupes_client.schemas.base import Page

router = APIRouter(tags=["artifacts"])

Format = Annotated[str | None, Query(max_length=40, description="Only files of this format.")]


@router.get(ARTIFACTS_PATH)
def list_artifacts(
    principal: ArtifactsRead,
    session: ReadSession,
    page: PageParams,
    job_id: Annotated[str | None, Query(max_length=40)] = None,
    format: Format = None,  # noqa: A002
) -> Page[Artifact]:
    """Artifacts, newest first."""
    statement = repository.listing(principal.tenant_id, job_id, format)
    artifacts, next_cursor = paginate(session, statement, tables.Artifact.id, page)
    data = [artifact_view(artifact) for artifact in artifacts]
    return Page(data=data, next_cursor=next_cursor, has_more=next_cursor is not None)


@router.get("/v1/jobs/{job_id}/artifacts")
def list_job_artifacts(
    job_id: str,
    principal: ArtifactsRead,
    session: ReadSession,
    page: PageParams,
    format: Format = None,  # noqa: A002
) -> Page[Artifact]:
    """The files a job left; none before it has succeeded."""
    jobs.get(session, principal.tenant_id, job_id)
    return list_artifacts(principal, session, page, job_id, format)


@router.get(
    "/v1/jobs/{job_id}/artifacts.tar",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {}}}, **problems(409, 410)},
)
def download_archive(job_id: str, principal: ArtifactsRead, session: ReadSession, store: Store) -> Response:
    """All files of a job as one tar; for resumable downloads take the single files."""
    job = jobs.get(session, principal.tenant_id, job_id)
    artifacts = repository.of_job(session, principal.tenant_id, job_id)
    if not artifacts:
        raise ConflictError(
            "no_artifacts", f"{job_id} is {job.status} and has no artifacts", hint="Wait for its success."
        )
    for artifact in artifacts:
        require_kept(artifact)
        store.size(artifact.sha256)  # what is missing is an error now, not a cut stream later
    headers = {
        "Content-Length": str(archive_size(artifacts)),
        "Content-Disposition": f'attachment; filename="{job_id}.tar"',
    }
    return StreamingResponse(archive(artifacts, store), headers=headers, media_type=MEDIA_TYPE)


@router.get(ARTIFACTS_PATH + "/{artifact_id}")
def get_artifact(artifact_id: str, principal: ArtifactsRead, session: ReadSession) -> Artifact:
    """One artifact, without its bytes."""
    return artifact_view(_found(session, principal, artifact_id))


@router.get(
    ARTIFACTS_PATH + "/{artifact_id}/content",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "Partial content"},
        304: {"description": "Not modified"},
        307: {"description": "The bytes are at the blob store"},
        **problems(410, 416),
    },
)
@router.head(ARTIFACTS_PATH + "/{artifact_id}/content", include_in_schema=False)
def get_content(
    artifact_id: str, request: Request, principal: ArtifactsRead, session: ReadSession, store: Store
) -> Response:
    """The bytes. `Range` and `If-Range` resume a broken download; the ETag is the SHA-256."""
    artifact = _found(session, principal, artifact_id)
    require_kept(artifact)
    return content_response(request, artifact, store)


def _found(session: ReadSession, principal: ArtifactsRead, artifact_id: str) -> tables.Artifact:
    artifact = repository.get(session, principal.tenant_id, artifact_id)
    if artifact is None:
        raise NotFoundError("artifact", artifact_id)
    return artifact
