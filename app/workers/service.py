"""What a worker is doing, and whether it still lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from app.core.clock import now
from app.db.tables import Worker
from app.settings import Settings
from app.workers import repository
from app.workers.capacity import SEEN
from nupes_client.schemas.operations import QueueInfo, WorkerInfo, WorkerStatus

MISSED_BEATS = 10

_STATUS: dict[tuple[bool, bool], WorkerStatus] = {
    (False, False): "idle",
    (False, True): "busy",
    (True, True): "draining",
    (True, False): "drained",
}
"""By whether it takes no more jobs, and whether it has one."""


def status_of(worker: Worker, settings: Settings, moment: datetime) -> WorkerStatus:
    """`lost` after ten missed heartbeats: a machine under load may miss a few."""
    if (moment - worker.heartbeat_at).total_seconds() > MISSED_BEATS * settings.heartbeat_s:
        return "lost"
    return _STATUS[worker.draining, worker.job_id is not None]


def listing(session: Session, settings: Settings, tenant_id: str) -> list[WorkerInfo]:
    """All workers; the job a worker is at is shown to its owner only."""
    return _views(session, settings, tenant_id, repository.all_workers(session))


def queues(session: Session) -> list[QueueInfo]:
    """What waits for each device class that has workers or waiting jobs."""
    moment = now()
    waiting = {row[0]: (row[1], row[2]) for row in repository.queues(session)}
    workers = Counter(each.device_class for each in repository.taking_since(session, moment - SEEN))
    return [
        QueueInfo(
            device_class=name,
            depth=waiting[name][0] if name in waiting else 0,
            oldest_seconds=(moment - waiting[name][1]).total_seconds() if name in waiting else None,
            workers=workers[name],
        )
        for name in sorted({*waiting, *workers})
    ]


def _views(session: Session, settings: Settings, tenant_id: str, workers: Sequence[Worker]) -> list[WorkerInfo]:
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
            isolation=worker.isolation,
            heartbeat_at=worker.heartbeat_at,
        )
        for worker in workers
    ]
