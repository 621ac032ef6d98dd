"""The HTTP service: `uvicorn app.main:create_app --factory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from app.artifacts.endpoints import router as artifacts
from app.audit.endpoints import router as audit
from app.core import handlers, methods, openapi, tracing
from app.core.logging import configure_logging
from app.core.middleware import BodyLimitMiddleware, RequestContextMiddleware
from app.core.ratelimit import RateGuard
from app.core.secret_key import load_pepper
from app.core.security import known_keys
from app.db.session import Database
from app.health.endpoints import router as health
from app.housekeeping.service import sweep_local
from app.jobs.endpoints import router as jobs
from app.jobs.expiry import watching_the_queue
from app.jobs.reading import JobReader
from app.jobs.writing import JobWriter
from app.keys.endpoints import router as keys
from app.models.endpoints import router as models
from app.plans.endpoints import router as plans
from app.queue.outbox import WakeUps
from app.reports.endpoints import router as reports
from app.secrets.endpoints import router as secrets
from app.settings import Settings, get_settings
from app.storage import BlobStore, StorageError, open_store
from app.uploads.endpoints import router as uploads
from app.uploads.protocol import TusMiddleware
from app.uploads.tus_endpoints import creation as tus_creation
from app.uploads.tus_endpoints import router as tus
from app.usage.endpoints import router as usage
from app.web import errors, static_files
from app.web.pages import ROUTERS as _PAGES
from app.webhooks.endpoints import router as webhooks
from app.workers.endpoints import router as workers
from nupes_core import __version__

_ROUTERS = (
    *(health, keys, tus_creation, uploads, tus, models, plans, jobs, reports, artifacts),
    *(webhooks, secrets, workers, usage, audit),
)

_WITH_THREADS = ("rate_guard", "keys", "job_reader", "job_writer", "wake_ups")

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the service; it opens database and blob store when it starts and closes them when it stops."""
    settings = settings or get_settings()
    configure_logging(settings)
    app = FastAPI(
        version=__version__,
        lifespan=_lifespan(settings),
        docs_url=None,
        redoc_url=None,
        # The framework would measure every request, exporter or none; `app.core.tracing` does that here.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes)
    app.add_middleware(TusMiddleware)
    app.add_middleware(RequestContextMiddleware)
    for router in (*_ROUTERS, *_PAGES):
        app.include_router(router)
    app.mount(static_files.PATH, static_files.Static(), name="static")
    handlers.install(app)
    errors.install(app)
    methods.install(app, (*_ROUTERS, *_PAGES))
    openapi.install(app)
    return app


async def _sweep_own_disk(database: Database, store: BlobStore, settings: Settings) -> None:
    """Delete what broken uploads left here: workers may be on other machines."""
    while True:
        await asyncio.sleep(settings.housekeep_s)
        try:
            await run_in_threadpool(sweep_local, database, store, settings)
        except (DBAPIError, StorageError, OSError) as error:
            log.warning("the disk could not be swept", error=str(error))


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.settings = settings
        app.state.pepper = load_pepper(settings)
        app.state.database = Database(settings.resolved_database_url)
        app.state.store = open_store(settings)
        app.state.rate_guard = RateGuard(settings)
        app.state.keys = known_keys(app.state.database)
        app.state.job_reader = JobReader(app.state.database)
        app.state.job_writer = JobWriter(app.state.database, settings)
        app.state.wake_ups = WakeUps(app.state.database, settings)
        tracing.start(settings, "nupes-api")
        sweeper = asyncio.create_task(_sweep_own_disk(app.state.database, app.state.store, settings))
        try:
            async with watching_the_queue(app.state.database, settings.sweep_s):
                yield
        finally:
            sweeper.cancel()
            for name in _WITH_THREADS:
                getattr(app.state, name).close()
            app.state.database.dispose()
            tracing.stop()

    return lifespan
