"""Announcing, completing and forgetting uploads."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.problems import ConflictError, DiskFullProblem, NotFoundError, TooLargeError, ValidationProblem
from app.db.session import Database
from app.db.tables import Upload as UploadRow
from app.settings import Settings
from app.storage import BlobStore, Spool
from app.uploads import repository
from nupes_client.schemas.uploads import Upload, UploadCreate, UploadStatus


def create(session: Session, settings: Settings, tenant_id: str, body: UploadCreate) -> UploadRow:
    """Announce a file; one whose checksum the tenant has sent before is complete at once, under the id it has.

    Raises:
        TooLargeError: larger than this service takes.
    """
    if body.size > settings.max_upload_bytes:
        raise TooLargeError(f"a file of {body.size} bytes was announced; at most {settings.max_upload_bytes} are taken")
    expires_at = now() + timedelta(seconds=settings.upload_ttl_s)
    known = repository.with_content(session, tenant_id, body.sha256, body.size) if body.sha256 else None
    if known is not None:
        known.expires_at = expires_at
        return known
    upload = UploadRow(
        tenant_id=tenant_id,
        filename=body.filename,
        size=body.size,
        declared_sha256=body.sha256,
        expires_at=expires_at,
    )
    session.add(upload)
    session.flush()
    return upload


def get(session: Session, tenant_id: str, upload_id: str) -> UploadRow:
    """Return one upload.

    Raises:
        NotFoundError: no such upload in this tenant, or expired.
    """
    upload = repository.get(session, tenant_id, upload_id)
    if upload is None:
        raise NotFoundError("upload", upload_id)
    return upload


def get_complete(session: Session, tenant_id: str, upload_id: str, pointer: str | None = None) -> UploadRow:
    """Return an upload that has its bytes; `pointer` is the place in the request that names it.

    Raises:
        NotFoundError: as in `get`.
        ValidationProblem: its bytes have not arrived.
    """
    upload = get(session, tenant_id, upload_id)
    if upload.sha256 is None:
        raise pending_problem(upload_id, pointer)
    return upload


def pending_problem(upload_id: str, pointer: str | None = None) -> ValidationProblem:
    """The refusal to use an upload without bytes."""
    return ValidationProblem(
        f"the upload {upload_id!r} has no content yet",
        code="upload_pending",
        pointer=pointer,
        hint=f"Send its bytes with PUT /v1/uploads/{upload_id}/content first.",
    )


def check_room(settings: Settings, store: BlobStore, size: int) -> None:
    """Refuse before the first byte what would fill the disk.

    Raises:
        DiskFullProblem: less than `min_free_disk_bytes` would be left.
    """
    free = store.free_bytes()
    if free - size < settings.min_free_disk_bytes:
        raise DiskFullProblem(
            f"the upload takes {size} bytes; {free} are free and {settings.min_free_disk_bytes} must stay so"
        )


def finish(database: Database, store: BlobStore, upload: UploadRow, spool: Spool) -> UploadRow:
    """Store the bytes that arrived and complete the upload.

    Raises:
        ValidationProblem: they are not the ones that were announced; the upload stays pending.
        ConflictError: another request completed it with other bytes meanwhile, or deleted it.
    """
    if upload.declared_sha256 is not None and spool.sha256 != upload.declared_sha256:
        raise _checksum_problem(upload.declared_sha256, spool.sha256)
    blob = store.commit(spool)
    with database.write() as session:
        repository.complete(session, upload.id, blob.sha256)
        stored = get(session, upload.tenant_id, upload.id)
    check_same(stored, blob.sha256)
    return stored


def check_same(upload: UploadRow, sha256: str) -> None:
    """Let the bytes of a complete upload be sent again, but no other bytes.

    Raises:
        ConflictError: these are others.
    """
    if upload.sha256 != sha256:
        raise ConflictError(
            "upload_complete",
            f"the upload {upload.id!r} already has other content, with sha256 {upload.sha256}",
            hint="Announce a new upload for this content.",
        )


def remove(session: Session, tenant_id: str, upload_id: str) -> None:
    """Forget an upload. Models made from it keep their files; bytes nobody needs are collected later.

    Raises:
        ConflictError: a job that has not ended needs it.
    """
    upload = get(session, tenant_id, upload_id)
    jobs = repository.jobs_that_need(session, tenant_id, upload_id)
    if jobs:
        raise ConflictError(
            "upload_in_use", f"the upload is the text of {', '.join(jobs)}", hint="Cancel these jobs, or let them end."
        )
    session.delete(upload)


def purge_expired(session: Session, moment: datetime | None = None) -> int:
    """Forget uploads past their time that no waiting or running job needs; return how many."""
    return repository.delete_expired(session, moment or now())


def view(row: UploadRow) -> Upload:
    """The wire model of a row."""
    return Upload(
        id=row.id,
        filename=row.filename,
        size=row.size,
        status=UploadStatus.COMPLETE if row.sha256 else UploadStatus.PENDING,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _checksum_problem(expected: str, actual: str) -> ValidationProblem:
    return ValidationProblem(
        f"the bytes have sha256 {actual}; {expected} was announced",
        code="checksum_mismatch",
        hint="Nothing was kept. Send the right bytes again to the same upload.",
    )
