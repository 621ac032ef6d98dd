"""What a worker is doing, and whether it still lives."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Worker
from app.settings import Settings
from app.workers import repository
from nupes_client.schemas.operations import WorkerInfo

MISSED_BEATS = 10


def status_of(worker: Worker, settings: Settings, moment: datetime) -> Literal["idle", "busy", "lost"]:
    """`lost` after ten missed heartbeats: a machine under load may miss a few."""
    if (moment - worker.heartbeat_at).total_seconds() > MISSED_BEATS * settings.heartbeat_s:
        return "lost"
    return "busy" if worker.job_id else "idle"


def listing(session: Session, settings: Settings, tenant_id: str) -> list[WorkerInfo]:
    """All workers; the job a worker is at is shown to its owner only."""
    workers = repository.all_workers(session)
    own = repository.own_jobs(session, tenant_id, [worker.job_id for worker in workers if worker.job_id])
    moment = now()
    return [
        WorkerInfo(
            id=worker.id,
            device_class=worker.device_class,
            hostname=worker.hostname,
            status=status_of(worker, settings, moment),
            job_id=worker.job_id if worker.job_id in own else None,
            memory_bytes=worker.memory_bytes,
            heartbeat_at=worker.heartbeat_at,
        )
        for worker in workers
    ]
