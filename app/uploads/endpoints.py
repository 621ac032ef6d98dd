"""`/v1/uploads`."""

from __future__ import annotations

import hashlib

from fastapi import APIRouter, Request, Response, status
from starlette.concurrency import run_in_threadpool

from app.core.deps import Database_, ReadSession, Settings_, Store, WriteSession
from app.core.digests import repr_digest
from app.core.openapi import problems
from app.core.security import ModelsRead, ModelsWrite
from app.db.session import Database
from app.db.tables import Upload as UploadRow
from app.uploads import service
from app.uploads.intake import check_headers, receive
from nupes_client.schemas.uploads import Upload, UploadCreate

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_RAW_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("", status_code=status.HTTP_201_CREATED)
def create_upload(
    body: UploadCreate, who: ModelsWrite, session: WriteSession, settings: Settings_, response: Response
) -> Upload:
    """Announce a file; then send its bytes to `/v1/uploads/{id}/content`, unless the answer is `complete` already."""
    upload = service.create(session, settings, who.tenant_id, body)
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return service.view(upload)


@router.get("/{upload_id}")
def get_upload(upload_id: str, who: ModelsRead, session: ReadSession) -> Upload:
    """One upload and whether its bytes have arrived."""
    return service.view(service.get(session, who.tenant_id, upload_id))


@router.delete("/{upload_id}", status_code=status.HTTP_204_NO_CONTENT, responses=problems(409))
def delete_upload(upload_id: str, who: ModelsWrite, session: WriteSession) -> None:
    """Forget an upload. Models made from it keep their files."""
    service.remove(session, who.tenant_id, upload_id)


@router.put("/{upload_id}/content", responses=problems(409, 507), openapi_extra=_RAW_BODY)
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
        await _compare(request, upload)
    else:
        await run_in_threadpool(service.check_room, settings, store, upload.size)
        with store.spool() as spool:
            await receive(request.stream(), upload.size, spool.write)
            upload = await run_in_threadpool(service.finish, database, store, upload, spool)
    response.headers["Repr-Digest"] = repr_digest(str(upload.sha256))
    return service.view(upload)


def _load(database: Database, tenant_id: str, upload_id: str) -> UploadRow:
    with database.read() as session:
        return service.get(session, tenant_id, upload_id)


async def _compare(request: Request, upload: UploadRow) -> None:
    """A client that did not see the first answer sends again: look, but store nothing."""
    digest = hashlib.sha256()
    await receive(request.stream(), upload.size, digest.update)
    service.check_same(upload, digest.hexdigest())
