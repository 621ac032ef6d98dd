"""All SQL about uploads."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import ColumnElement, Select, delete, or_, select, update
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, Upload
from nupes_client.schemas.jobs import TERMINAL_STATUSES


def get(session: Session, tenant_id: str, upload_id: str) -> Upload | None:
    """One upload of the tenant that has not expired."""
    return next(iter(get_many(session, tenant_id, [upload_id]).values()), None)


def lock_many(session: Session, tenant_id: str, upload_ids: Collection[str]) -> dict[str, Upload]:
    """As `get_many`; they can not be forgotten before the transaction ends."""
    query = _alive(tenant_id).where(Upload.id.in_(upload_ids)).order_by(Upload.id).with_for_update()
    return {upload.id: upload for upload in session.scalars(query)}


def get_many(session: Session, tenant_id: str, upload_ids: Collection[str]) -> dict[str, Upload]:
    """Uploads of the tenant by id; unknown and expired ones are missing."""
    query = _alive(tenant_id).where(Upload.id.in_(upload_ids))
    return {upload.id: upload for upload in session.scalars(query)}


def with_content(session: Session, tenant_id: str, sha256: str, size: int) -> Upload | None:
    """The newest upload of the tenant that has these bytes, or else waits for them; locked."""
    whose = _alive(tenant_id).where(Upload.size == size)
    for column in (Upload.sha256, Upload.declared_sha256):
        query = whose.where(column == sha256).order_by(Upload.id.desc()).limit(1).with_for_update()
        found: Upload | None = session.scalars(query).one_or_none()
        if found is not None:
            return found
    return None


def postpone(session: Session, upload_id: str, expires_at: datetime) -> None:
    """Let an upload that makes progress wait for its next bytes."""
    waiting = (Upload.id == upload_id, Upload.sha256.is_(None))
    session.connection().execute(update(Upload).where(*waiting).values(expires_at=expires_at))


def waiting(session: Session, upload_ids: Collection[str]) -> set[str]:
    """Those of the uploads, of all tenants, that still wait for bytes."""
    return set(session.scalars(select(Upload.id).where(Upload.id.in_(upload_ids), Upload.sha256.is_(None))))


def complete(session: Session, upload_id: str, sha256: str) -> bool:
    """Note that all bytes are stored; False when the upload is complete already, or gone."""
    statement = update(Upload).where(Upload.id == upload_id, Upload.sha256.is_(None)).values(sha256=sha256)
    return session.connection().execute(statement).rowcount == 1


def jobs_that_need(session: Session, tenant_id: str, upload_id: str) -> list[str]:
    """Jobs that have not ended and evaluate or calibrate on this text."""
    names = or_(*(text_id == upload_id for text_id in _TEXT_IDS))
    query = select(Job.id).where(Job.tenant_id == tenant_id, _HAS_NOT_ENDED, names)
    return list(session.scalars(query.limit(5)))


def delete_expired(session: Session, moment: datetime) -> int:
    """Forget uploads that expired before a moment; return how many."""
    needed = [select(text_id).where(_HAS_NOT_ENDED, text_id.is_not(None)) for text_id in _TEXT_IDS]
    statement = delete(Upload).where(Upload.expires_at < moment, *(Upload.id.not_in(each) for each in needed))
    return session.connection().execute(statement).rowcount


def _alive(tenant_id: str) -> Select[Upload]:
    return select(Upload).where(*_has_not_expired(tenant_id))


def _has_not_expired(tenant_id: str) -> tuple[ColumnElement[bool], ...]:
    return Upload.tenant_id == tenant_id, or_(Upload.expires_at.is_(None), Upload.expires_at > now())


_TEXT_IDS = tuple(Job.config[purpose]["text"]["upload_id"].as_string() for purpose in ("evaluation", "calibration"))
"""Where the wish of a job names uploads."""

_HAS_NOT_ENDED = Job.status.not_in([status.value for status in TERMINAL_STATUSES])
