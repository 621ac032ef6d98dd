"""SQL about what a job needs: its model, its text, and workers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Model, Upload, Worker


def workers_seen_since(session: Session, moment: datetime) -> Sequence[Worker]:
    """Workers that reported in after `moment`."""
    return session.scalars(select(Worker).where(Worker.heartbeat_at > moment).order_by(Worker.id)).all()


def model(session: Session, tenant_id: str, model_id: str) -> Model | None:
    """One model of the tenant."""
    return session.scalars(select(Model).where(Model.tenant_id == tenant_id, Model.id == model_id)).one_or_none()


def upload(session: Session, tenant_id: str, upload_id: str) -> Upload | None:
    """One upload of the tenant."""
    return session.scalars(select(Upload).where(Upload.tenant_id == tenant_id, Upload.id == upload_id)).one_or_none()
