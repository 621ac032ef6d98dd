"""`/v1/workers`, `/v1/queues`: to look at. Workers belong to the service: who drains one does so on the server."""

from __future__ import annotations

from fastapi import APIRouter

from app.core.deps import ReadSession, Settings_
from app.core.security import JobsRead
from app.workers import service
from nupes_client.schemas.base import Page
from nupes_client.schemas.operations import QueueInfo, WorkerInfo

router = APIRouter(prefix="/v1", tags=["operations"])


@router.get("/workers")
def list_workers(who: JobsRead, session: ReadSession, settings: Settings_) -> Page[WorkerInfo]:
    """Workers that report in, those seen last first, all on one page: there are few."""
    return Page(data=service.listing(session, settings, who.tenant_id), next_cursor=None, has_more=False)


@router.get("/queues")
def list_queues(_who: JobsRead, session: ReadSession) -> Page[QueueInfo]:
    """How many jobs wait, by device class, and how long the oldest of them has; figures span tenants."""
    return Page(data=service.queues(session), next_cursor=None, has_more=False)
