"""`/v1/workers`."""

from __future__ import annotations

from fastapi import APIRouter

from app.core.deps import ReadSession, Settings_
from app.core.security import JobsRead
from app.workers import service
from nupes_client.schemas.base import Page
from nupes_client.schemas.operations import WorkerInfo

router = APIRouter(prefix="/v1/workers", tags=["operations"])


@router.get("")
def list_workers(who: JobsRead, session: ReadSession, settings: Settings_) -> Page[WorkerInfo]:
    """Workers that report in, those seen last first, all on one page: there are few."""
    return Page(data=service.listing(session, settings, who.tenant_id), next_cursor=None, has_more=False)
