"""`/v1/usage`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.core.deps import ReadSession, Settings_
from app.core.security import Authenticated
from app.usage import service
from nupes_client.schemas.usage import Usage

router = APIRouter(prefix="/v1/usage", tags=["keys"])


@router.get("")
def get_usage(who: Authenticated, request: Request, session: ReadSession, settings: Settings_) -> Usage:
    """What the tenant uses of what it may. Any key may ask."""
    return service.usage(session, settings, who.tenant_id, request.state.rate)
