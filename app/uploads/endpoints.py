"""`/v1/uploads`: announced as JSON and sent whole, or piece by piece as tus has it (`tus_endpoints.py`)."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Request, Response, status
from starlette.concurrency import run_in_threadpool

from app.audit import service as audit
from app.core.deps import Database_, ReadSession, Settings_, Store, WriteSession, after_commit
from app.core.digests import repr_digest
from app.core.openapi import problems
from app.core.security import ModelsRead, ModelsWrite
from app.db.session import Database
from app.db.tables import Upload as UploadRow
from app.settings import Settings
from app.uploads import service
from app.uploads.appending import offset_of
from app.uploads.intake import check_headers, receive
from nupes_client.schemas.audit import AuditAction
from nupes_client.schemas.uploads import Upload, UploadCreate

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_RAW_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("", status_code=status.HTTP_201_CREATED, responses=problems(400, 412, 507))
def create_upload(
    body: UploadCreate, who: ModelsWrite, session: WriteSession, settings: Settings_, store: Store, response: Response
) -> Upload:
    """Announce a file; then send its bytes from `offset` on, unless the answer is `complete` already.

    Send them whole with `PUT /v1/uploads/{id}/content`, or piece by piece with `PATCH /v1/uploads/{id}`. A file whose
    `sha256` you announced before is the same upload. With `Tus-Resumable: 1.0.0` and no JSON this is a creation of the
    tus protocol: `Upload-Length`, `Upload-Metadata` with `filename` and `sha256`, and maybe the first bytes as
    `application/offset+octet-stream`.
    """
    upload = service.announce(session, settings, store, who.tenant_id, body)
    audit.record(session, who, AuditAction.UPLOAD_CREATED, upload.id)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return service.view(upload, offset_of(store, upload))


@router.get("/{upload_id}")
def get_upload(upload_id: str, who: ModelsRead, session: ReadSession, store: Store) -> Upload:
    """One upload and how many of its bytes have arrived."""
    upload = service.get(session, who.tenant_id, upload_id)
    return service.view(upload, offset_of(store, upload))


@router.delete("/{upload_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(409, 412))
def delete_upload(upload_id: str, who: ModelsWrite, session: WriteSession, store: Store) -> None:
    """Forget an upload, also one that is under way. Models made from it keep their files."""
    service.remove(session, who.tenant_id, upload_id)
    audit.record(session, who, AuditAction.UPLOAD_DELETED, upload_id)
    after_commit(session, lambda: store.partials.drop(upload_id))


@router.put("/{upload_id}/content", responses=problems(408, 409, 507), openapi_extra=_RAW_BODY)
async def put_content(
    upload_id: str,
    request: Request,
    response: Response,
    who: ModelsWrite,
    database: Database_,
    store: Store,
    settings: Settings_,
) -> Upload:
    """Send the file as the raw body. It is hashed on its way to disk; nothing of a broken attempt is kept."""
    upload = await run_in_threadpool(_load, database, who.tenant_id, upload_id)
    check_headers(request.headers, upload.size)
    if upload.sha256 is not None:
        await _compare(request, upload, settings)
    else:
        await run_in_threadpool(service.check_room, settings, store, upload.size)
        with store.spool() as spool:
            await receive(request.stream(), upload.size, spool.write, settings.upload_stall_s)
            upload = await run_in_threadpool(service.finish, database, store, upload, spool)
        await run_in_threadpool(store.partials.drop, upload.id)
    response.headers["Repr-Digest"] = repr_digest(str(upload.sha256))
    return service.view(upload, upload.size)


def _load(database: Database, tenant_id: str, upload_id: str) -> UploadRow:
    with database.read() as session:
        return service.get(session, tenant_id, upload_id)


async def _compare(request: Request, upload: UploadRow, settings: Settings) -> None:
    """A client that did not see the first answer sends again: look, but store nothing."""
    digest = hashlib.sha256()
    await receive(request.stream(), upload.size, digest.update, settings.upload_stall_s)
    service.check_same(upload, digest.hexdigest())
