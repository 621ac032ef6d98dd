"""The parts of the service, each looked at. A dead broker or no worker costs time, never jobs: that is `degraded`."""

from __future__ import annotations

import os
from textwrap import shorten

from sqlalchemy.exc import SQLAlchemyError

from app.core.clock import now
from app.db.session import Database
from app.health import repository
from app.queue.broker import is_folder
from app.queue.publisher import BrokerUnavailableError, check
from app.settings import Settings
from app.storage import BlobStore, StorageError
from app.workers.service import status_of
from migrations import HEAD
from nupes_client.schemas.operations import Check, Readiness
from nupes_core import __version__

_LONGEST_REASON = 120
"""Redis explains at length how it might be set up to let us in."""


def readiness(settings: Settings, database: Database, store: BlobStore) -> Readiness:
    """Look at every part; the worst decides."""
    checks = [_check_database(database), _check_storage(settings, store), _check_broker(settings)]
    if checks[0].status == "ok":
        checks.append(_check_workers(settings, database))
    found = {check.status for check in checks}
    status = "down" if "down" in found else "degraded" if "degraded" in found else "ok"
    return Readiness(status=status, version=__version__, checks=checks)


def _check_database(database: Database) -> Check:
    try:
        with database.read() as session:
            version = repository.schema_version(session)
    except SQLAlchemyError:
        return Check(name="database", status="down", detail="does not answer, or was never migrated")
    if version != HEAD:
        return Check(name="database", status="down", detail=f"is at migration {version}; this release needs {HEAD}")
    return Check(name="database", status="ok")


def _check_storage(settings: Settings, store: BlobStore) -> Check:
    try:
        store.check()
        free = store.free_bytes()
    except (StorageError, OSError) as error:
        return Check(name="storage", status="down", detail=str(error))
    if free < settings.min_free_disk_bytes:
        return Check(name="storage", status="degraded", detail=f"{free} bytes free: uploads and jobs are refused")
    return Check(name="storage", status="ok")


def _check_broker(settings: Settings) -> Check:
    try:
        probe = _check_folder if is_folder(settings) else check
        probe(settings)
    except (BrokerUnavailableError, OSError) as error:
        reason = shorten(str(error), _LONGEST_REASON, placeholder=" …").rstrip(".")
        detail = f"{reason}; workers look into the database meanwhile"
        return Check(name="broker", status="degraded", detail=detail)
    return Check(name="broker", status="ok")


def _check_folder(settings: Settings) -> None:
    """The filesystem transport makes its folder on first use."""
    folder = settings.queue_dir if settings.queue_dir.exists() else settings.data_dir
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise OSError(f"the folder {folder} is missing or not writable")


def _check_workers(settings: Settings, database: Database) -> Check:
    with database.read() as session:
        workers = repository.workers(session)
    moment = now()
    alive = sum(status_of(worker, settings, moment) != "lost" for worker in workers)
    if not alive:
        return Check(name="workers", status="degraded", detail="no worker reports in: jobs wait")
    return Check(name="workers", status="ok", detail=f"{alive} alive")
