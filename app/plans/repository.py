"""SQL about what a job could run on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.tables import Worker


def workers_seen_since(session: Session, moment: datetime) -> Sequence[Worker]:
    """Workers that reported in after `moment`."""
    return session.scalars(select(Worker).where(Worker.heartbeat_at > moment).order_by(Worker.id)).all()
