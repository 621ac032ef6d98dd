"""`/v1/audit`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from app.audit import repository, service
from app.audit.repository import AuditFilter
from app.core.deps import ReadSession
from app.core.pagination import PageParams, paginate
from app.core.security import Admin
from app.db import tables
from nupes_client.schemas.audit import AuditAction, AuditEntry
from nupes_client.schemas.base import Instant, Page

router = APIRouter(prefix="/v1/audit", tags=["keys"])

Id = Annotated[str | None, Query(max_length=100)]
Moment = Annotated[Instant | None, Query(description="RFC 3339, with its zone.")]


async def _filter(
    action: AuditAction | None = None,
    resource_id: Id = None,
    key_id: Id = None,
    created_after: Moment = None,
    created_before: Moment = None,
) -> AuditFilter:
    return AuditFilter(action, resource_id, key_id, created_after, created_before)


@router.get("")
def list_audit(
    who: Admin, session: ReadSession, params: PageParams, narrow: Annotated[AuditFilter, Depends(_filter)]
) -> Page[AuditEntry]:
    """Changes in the tenant, newest first; all filters must hold."""
    statement = repository.listing(who.tenant_id, narrow)
    rows, cursor = paginate(session, statement, tables.AuditEntry.id, params)
    return Page(data=[service.view(row) for row in rows], next_cursor=cursor, has_more=cursor is not None)
