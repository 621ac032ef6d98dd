"""The part of `nupes doctor` that looks at the parts of the service as this machine's settings name them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from pydantic import ValidationError

from app.db.session import Database
from app.health.readiness import readiness
from app.settings import Settings
from app.storage import StorageError, open_store
from nupes_client.findings import Finding, FindingStatus

_STATUS: dict[str, FindingStatus] = {"ok": "ok", "degraded": "warning", "down": "problem"}
_HINTS = {
    "database": "Check NUPES_DATABASE_URL; `python -m app.db.migrate` brings a database to this release.",
    "storage": "Check NUPES_STORAGE_URL, or free some space.",
    "broker": "Check NUPES_BROKER_URL; jobs start later without it, but they start.",
    "workers": "Start one: `python -m worker`, or `nupes up` for all at once.",
}


def findings() -> Iterator[Finding]:
    """Yield disk, database, storage, broker and workers; of a service that never ran here, the disk alone."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "NUPES_" + "_".join(map(str, first["loc"])).upper()
        yield Finding("settings", "problem", f"{name}: {first['msg']}", "app/settings.py has all settings.")
        return
    yield _disk(settings)
    if not settings.database_url and not (settings.data_dir / "nupes.db").is_file():
        yield Finding("database", "ok", f"no service was started in {settings.data_dir} yet: `nupes up` makes one")
        return
    yield from _parts(settings)


def _disk(settings: Settings) -> Finding:
    folder = next(each for each in (settings.data_dir, *settings.data_dir.absolute().parents) if each.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free for {settings.data_dir}"
    if free < settings.min_free_disk_bytes:
        return Finding("disk", "problem", detail, "Free some space, or set NUPES_DATA_DIR to another disk.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", "problem", f"{folder} is not writable", "Set NUPES_DATA_DIR to a folder of yours.")
    return Finding("disk", "ok", detail)


def _parts(settings: Settings) -> Iterator[Finding]:
    database = Database(settings.resolved_database_url)
    try:
        ready = readiness(settings, database, open_store(settings))
    except StorageError as error:
        yield Finding("storage", "problem", str(error), _HINTS["storage"])
        return
    finally:
        database.dispose()
    for check in ready.checks:
        status = _STATUS[check.status]
        yield Finding(check.name, status, check.detail or "", _HINTS[check.name] if status != "ok" else "")
