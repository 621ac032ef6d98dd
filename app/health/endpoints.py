"""`/livez`, `/readyz`, `/metrics`, `/v1/capabilities`."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.core.deps import Database_, ReadSession, Settings_, Store
from app.core.security import Authenticated
from app.health import metrics
from app.health.readiness import readiness
from app.settings import Settings
from nupes_client.schemas.operations import Capabilities, Readiness
from nupes_client.schemas.specs import Format, JobSpec, OptimizeSpec
from nupes_core import __version__
from nupes_core.config import MAX_BITS, MIN_BITS

router = APIRouter(tags=["operations"])


# Some that watch whether a service lives ask for heads alone.
@router.head("/livez", include_in_schema=False)
@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers; nothing else is looked at."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness, "description": "Down."}})
def readyz(settings: Settings_, database: Database_, store: Store, response: Response) -> Readiness:
    """Whether work can be taken. `degraded` is 200: jobs are taken and wait."""
    state = readiness(settings, database, store)
    if state.status == "down":
        response.status_code = 503
    return state


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def prometheus(session: ReadSession, settings: Settings_, store: Store) -> Response:
    """Figures for Prometheus; they span tenants and name none."""
    return Response(metrics.render(session, settings, store), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/v1/capabilities")
def capabilities(_who: Authenticated, settings: Settings_) -> Capabilities:
    """What this service can be asked for."""
    return describe(settings)


def describe(settings: Settings) -> Capabilities:
    """The capabilities of this release under these settings."""
    return Capabilities(
        version=__version__,
        methods=list(get_args(JobSpec.model_fields["method"].annotation)),
        optimize=list(get_args(OptimizeSpec.model_fields["mode"].annotation)),
        bits=list(range(MIN_BITS, MAX_BITS + 1)),
        formats=list(get_args(Format)),
        max_upload_bytes=settings.max_upload_bytes,
        hub=settings.hub,
    )
