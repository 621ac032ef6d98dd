"""`/v1/uploads` in the words of tus 1.0.0. The upload is the one of `endpoints.py`: same ids, either way to send it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response, status
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from app.audit import service as audit
from app.core.deps import Database_, Settings_, Store
from app.core.openapi import problems
from app.core.security import ModelsRead, ModelsWrite
from app.db.tables import Upload
from app.uploads import service, tus
from app.uploads.appending import Shelf, append, complete_if_whole, offset_of
from app.uploads.intake import check_identity
from nupes_client.schemas.audit import AuditAction


class TusRoute(APIRoute):
    """A route for requests that say `Tus-Resumable`; others of the same method go on to the JSON route."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match by path, method and header."""
        match, child = super().matches(scope)
        if match is Match.FULL and "tus-resumable" not in Headers(scope=scope):
            return Match.NONE, {}
        return match, child


creation = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=TusRoute)
router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


def _header(name: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": schema}


_VERSION = _header("Tus-Resumable", {"type": "string", "enum": [tus.VERSION]}, required=True)
_OFFSET = _header("Upload-Offset", {"type": "integer", "minimum": 0}, required=True)
_CHECKSUM = _header(
    "Upload-Checksum", {"type": "string", "pattern": "^(sha1 [A-Za-z0-9+/]{27}=|sha256 [A-Za-z0-9+/]{43}=)$"}
)
_CHUNK = {"required": True, "content": {tus.CHUNK_TYPE: {"schema": {"type": "string", "format": "binary"}}}}


@creation.post("", status_code=status.HTTP_201_CREATED, include_in_schema=False)
async def create_by_tus(
    request: Request, who: ModelsWrite, database: Database_, store: Store, settings: Settings_
) -> Response:
    """Announce a file by headers; with a body of the chunk type its first bytes come along."""
    tus.check_version(request.headers)
    body = tus.read_creation(request.headers)
    metadata = request.headers.get("upload-metadata")
    shelf = Shelf(database, store, settings)

    def create() -> Upload:
        with database.write() as session:
            upload = service.create(session, settings, store, who.tenant_id, body, metadata)
            audit.record(session, who, AuditAction.UPLOAD_CREATED, upload.id)
            return upload

    upload = await run_in_threadpool(create)
    if first := _first_chunk(request.headers, body.size):
        upload = await append(shelf, who.tenant_id, upload.id, first, request.stream())
    headers = {"Location": f"/v1/uploads/{upload.id}", **await _progress(shelf, upload)}
    return Response(status_code=status.HTTP_201_CREATED, headers=headers)


@router.options("", status_code=status.HTTP_204_NO_CONTENT)
def describe_uploads(_: ModelsRead, settings: Settings_) -> Response:
    """What of tus this service speaks."""
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers=tus.capabilities(settings))


@router.head(
    "/{upload_id}",
    responses={200: {"description": "`Upload-Offset` says how far it is"}, **problems(412, 423)},
    openapi_extra={"parameters": [_VERSION]},
    response_class=Response,
)
def head_upload(
    upload_id: str, request: Request, who: ModelsRead, database: Database_, store: Store, settings: Settings_
) -> Response:
    """How many bytes of an upload are safe: go on from there."""
    tus.check_version(request.headers)
    shelf = Shelf(database, store, settings)
    with database.read() as session:
        upload = service.get(session, who.tenant_id, upload_id)
    upload = complete_if_whole(shelf, upload, offset_of(store, upload))
    headers = {
        "Cache-Control": "no-store",
        "Upload-Length": str(upload.size),
        **tus.progress_headers(offset_of(store, upload), upload.expires_at),
    }
    if upload.tus_metadata is not None:
        headers["Upload-Metadata"] = upload.tus_metadata
    return Response(headers=headers)


@router.patch(
    "/{upload_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(408, 409, 412, 423, 460, 507),
    openapi_extra={"parameters": [_VERSION, _OFFSET, _CHECKSUM], "requestBody": _CHUNK},
)
async def append_to_upload(
    upload_id: str, request: Request, who: ModelsWrite, database: Database_, store: Store, settings: Settings_
) -> Response:
    """Send further bytes. They are safe once this is answered; what came of a broken request is mostly kept too."""
    tus.check_version(request.headers)
    check_identity(request.headers)
    chunk = tus.read_chunk(request.headers)
    shelf = Shelf(database, store, settings)
    upload = await append(shelf, who.tenant_id, upload_id, chunk, request.stream())
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers=await _progress(shelf, upload))


async def _progress(shelf: Shelf, upload: Upload) -> dict[str, str]:
    offset = await run_in_threadpool(offset_of, shelf.store, upload)
    return tus.progress_headers(offset, upload.expires_at)


def _first_chunk(headers: Headers, size: int) -> tus.Chunk | None:
    """The chunk that comes with a creation; an empty file is complete without one."""
    if "content-type" in headers and tus.body_length(headers) != 0:
        return tus.read_chunk(Headers({**headers, "upload-offset": "0"}))
    return tus.Chunk(0, 0, None) if size == 0 else None
