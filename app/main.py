"""The HTTP service: `uvicorn app.main:create_app --factory`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from app.artifacts.endpoints import router as artifacts
from app.core import handlers, openapi
from app.core.logging import configure_logging
from app.core.middleware import BodyLimitMiddleware, RequestContextMiddleware
from app.core.security import load_pepper
from app.db.session import Database
from app.health.endpoints import router as health
from app.jobs.endpoints import router as jobs
from app.keys.endpoints import router as keys
from app.models.endpoints import router as models
from app.plans.endpoints import router as plans
from app.settings import Settings, get_settings
from app.storage import open_store
from app.uploads.endpoints import router as uploads
from app.workers.endpoints import router as workers
from nupes_core import __version__

_ROUTERS = (health, keys, uploads, models, plans, jobs, artifacts, workers)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the service; it opens database and blob store when it starts and closes them when it stops."""
    settings = settings or get_settings()
    configure_logging(settings)
    app = FastAPI(version=__version__, lifespan=_lifespan(settings), docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(RequestContextMiddleware)
    for router in _ROUTERS:
        app.include_router(router)
    handlers.install(app)
    openapi.install(app)
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings = settings
        app.state.pepper = load_pepper(settings)
        app.state.database = Database(settings.resolved_database_url)
        app.state.store = open_store(settings)
        try:
            yield
        finally:
            app.state.database.dispose()

    return lifespan
