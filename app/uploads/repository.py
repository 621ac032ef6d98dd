"""All SQL about uploads."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Job, Upload
from nupes_client.schemas.jobs import TERMINAL_STATUSES


def get(session: Session, tenant_id: str, upload_id: str) -> Upload | None:
    """One upload of the tenant that has not expired."""
    return next(iter(get_many(session, tenant_id, [upload_id]).values()), None)


def get_many(session: Session, tenant_id: str, upload_ids: Collection[str]) -> dict[str, Upload]:
    """Uploads of the tenant by id; unknown and expired ones are missing."""
    query = select(Upload).where(
        Upload.tenant_id == tenant_id,
        Upload.id.in_(upload_ids),
        or_(Upload.expires_at.is_(None), Upload.expires_at > now()),
    )
    return {upload.id: upload for upload in session.scalars(query)}


def with_content(session: Session, tenant_id: str, sha256: str, size: int) -> Upload | None:
    """The newest upload of the tenant that has these bytes and has not expired."""
    query = select(Upload).where(
        Upload.tenant_id == tenant_id,
        Upload.sha256 == sha256,
        Upload.size == size,
        or_(Upload.expires_at.is_(None), Upload.expires_at > now()),
    )
    return session.scalars(query.order_by(Upload.id.desc()).limit(1)).one_or_none()


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


_TEXT_IDS = tuple(Job.config[purpose]["text"]["upload_id"].as_string() for purpose in ("evaluation", "calibration"))
"""Where the wish of a job names uploads."""

_HAS_NOT_ENDED = Job.status.not_in([status.value for status in TERMINAL_STATUSES])
