"""`/v1/plans`."""

from __future__ import annotations

from fastapi import APIRouter

from app.core.deps import ReadSession, Settings_, Store
from app.core.openapi import problems
from app.core.security import JobsRead
from app.plans import service
from app.plans.datasets import pin_dataset
from nupes_client.schemas.plans import Plan
from nupes_client.schemas.specs import JobCreate

router = APIRouter(prefix="/v1/plans", tags=["plans"])


@router.post("", responses=problems(404, 502, 507))
def create_plan(body: JobCreate, principal: JobsRead, session: ReadSession, settings: Settings_, store: Store) -> Plan:
    """Say what a job would do and cost, from headers alone. Refuses what `POST /v1/jobs` would refuse."""
    body = pin_dataset(settings, body)
    return service.predict(service.prepare(session, settings, store, principal.tenant_id, body), body)
