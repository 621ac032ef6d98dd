"""Announcing, completing and forgetting uploads."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.core.clock import now
from app.core.problems import (
    ConflictError,
    DiskFullProblem,
    NotFoundError,
    ProblemError,
    TooLargeError,
    ValidationProblem,
)
from app.db.session import Database
from app.db.tables import Upload as UploadRow
from app.settings import Settings
from app.storage import BlobStore, Incoming
from app.uploads import repository
from app.usage import repository as usage_repository
from app.usage import service as usage
from nupes_client.schemas.uploads import Upload, UploadCreate, UploadStatus


class WrongContentProblem(ValidationProblem):
    """The bytes that came are not the ones that were announced."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(
            f"the bytes have sha256 {actual}; {expected} was announced",
            code="checksum_mismatch",
            hint="Nothing was kept. Send the right bytes again to the same upload, from the start.",
        )


def announce(session: Session, settings: Settings, store: BlobStore, tenant_id: str, body: UploadCreate) -> UploadRow:
    """Announce a file; one with a checksum that was announced before is the same upload, complete or to be resumed.

    Raises: as `create`.
    """
    known = repository.with_content(session, tenant_id, body.sha256, body.size) if body.sha256 else None
    if known is None:
        return create(session, settings, store, tenant_id, body)
    known.expires_at = _expiry(settings)
    return known


def create(
    session: Session,
    settings: Settings,
    store: BlobStore,
    tenant_id: str,
    body: UploadCreate,
    tus_metadata: str | None = None,
) -> UploadRow:
    """Make a new upload, which waits for its bytes.

    Raises:
        TooLargeError: larger than this service takes.
        ProblemError: more than the tenant may keep.
        DiskFullProblem: there is no room for it.
    """
    if body.size > settings.max_upload_bytes:
        raise TooLargeError(
            f"a file of {body.size} bytes was announced; at most {settings.max_upload_bytes} are taken",
            hint="Split the weights into several safetensors files.",
        )
    check_quota(session, settings, tenant_id, body.size)
    check_room(settings, store, body.size)
    upload = UploadRow(
        tenant_id=tenant_id,
        filename=body.filename,
        size=body.size,
        declared_sha256=body.sha256,
        tus_metadata=tus_metadata,
        expires_at=_expiry(settings),
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


def check_quota(session: Session, settings: Settings, tenant_id: str, size: int) -> None:
    """Refuse before the first byte what a tenant has no room left for.

    Raises:
        ProblemError: 403, the quota of stored bytes would be passed.
    """
    quota = usage.quotas(session, settings, tenant_id).stored_bytes
    if quota is None:
        return
    usage_repository.tenant(session, tenant_id, lock=True)  # one announcement after the other counts
    used = usage_repository.stored_bytes(session, tenant_id)
    if used + size > quota:
        raise ProblemError(
            403,
            "quota_exceeded",
            "Quota exceeded",
            f"the upload takes {size} bytes; {used} of the {quota} bytes you may keep are in use",
            hint="Delete uploads, models or jobs that you no longer need.",
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


def finish(database: Database, store: BlobStore, upload: UploadRow, incoming: Incoming) -> UploadRow:
    """Store the bytes that arrived and complete the upload.

    Raises:
        WrongContentProblem: they are not the ones that were announced; the upload stays pending.
        ConflictError: another request completed it with other bytes meanwhile, or deleted it.
    """
    if upload.declared_sha256 is not None and incoming.sha256 != upload.declared_sha256:
        raise WrongContentProblem(upload.declared_sha256, incoming.sha256)
    blob = store.commit(incoming)
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


def view(row: UploadRow, offset: int) -> Upload:
    """The wire model of a row, of whose bytes `offset` are safe."""
    return Upload(
        id=row.id,
        filename=row.filename,
        size=row.size,
        offset=offset,
        status=UploadStatus.COMPLETE if row.sha256 else UploadStatus.PENDING,
        sha256=row.sha256,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _expiry(settings: Settings) -> datetime:
    return now() + timedelta(seconds=settings.upload_ttl_s)
