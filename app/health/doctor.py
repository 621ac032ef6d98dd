"""The part of `nupes doctor` that looks at the parts of the service as this machine's settings name them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches

from pydantic import ValidationError
from sqlalchemy import make_url

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


_PLACES: dict[str, Callable[[Settings], str]] = {
    "database": lambda settings: settings.resolved_database_url,
    "storage": lambda settings: settings.resolved_storage_url,
    "broker": lambda settings: settings.broker_url or f"file://{settings.data_dir}",
}
"""Where a part of the service is."""

_PREFIX = "NUPES_"
_ALIKE = 0.8
"""Of difflib: a letter or two wrong in a name of usual length."""


def findings() -> Iterator[Finding]:
    """Yield misspelt settings, disk, database, storage, broker and workers; where no service ever ran, no parts."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "NUPES_" + "_".join(map(str, first["loc"])).upper()
        yield Finding("settings", "problem", f"{name}: {first['msg']}", "app/settings.py has all settings.")
        return
    yield from _misspelt(os.environ)
    yield _disk(settings)
    if not settings.database_url and not (settings.data_dir / "nupes.db").is_file():
        yield Finding("database", "ok", f"no service was started in {settings.data_dir} yet: `nupes up` makes one")
        return
    yield from _parts(settings)


def _misspelt(names: Iterable[str]) -> Iterator[Finding]:
    """Variables that are no setting but look like one: they would be ignored without a word."""
    for name in sorted(names):
        setting = name.removeprefix(_PREFIX).lower()
        if not name.startswith(_PREFIX) or setting in Settings.model_fields:
            continue
        for meant in get_close_matches(setting, Settings.model_fields, 1, _ALIKE):
            hint = f"Rename it to {_PREFIX}{meant.upper()}."
            yield Finding("settings", "warning", f"{name} is not known, so it does nothing", hint)


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
        detail = check.detail or make_url(_PLACES[check.name](settings)).render_as_string()
        yield Finding(check.name, status, detail, _HINTS[check.name] if status != "ok" else "")
