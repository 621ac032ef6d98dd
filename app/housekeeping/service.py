"""One round of housekeeping: what concerns all machines, and what lies on the disk of this one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from app.artifacts.retention import expire_artifacts
from app.core.clock import now
from app.db.session import Database
from app.jobs import idempotency
from app.keys import links
from app.settings import Settings
from app.storage import BlobStore
from app.storage.garbage import collect
from app.uploads import repository as uploads
from app.uploads import service as upload_service


@dataclass(frozen=True)
class Swept:
    """What a round found.

    Attributes:
        uploads: that were past their time.
        jobs: whose artifacts were past theirs.
        freed_bytes: deleted from the blob store.
    """

    uploads: int
    jobs: int
    freed_bytes: int


def sweep_shared(database: Database, store: BlobStore, settings: Settings) -> Swept:
    """Forget rows that have expired and delete the bytes that no row names. One process at a time is enough."""
    with database.write() as session:
        expired = upload_service.purge_expired(session)
        idempotency.purge(session)
        links.purge(session)
    jobs = expire_artifacts(database, settings.artifact_ttl_s) if settings.artifact_ttl_s else 0
    freed = collect(database, store, timedelta(seconds=settings.garbage_grace_s))
    return Swept(expired, jobs, freed)


def sweep_local(database: Database, store: BlobStore, settings: Settings) -> None:
    """Delete what broken uploads left on this machine's disk; every machine has to do it for itself."""
    before = now() - timedelta(seconds=settings.garbage_grace_s)
    store.drop_stale_spools(before)
    names = list(store.partials.untouched_since(before))
    if names:
        with database.read() as session:
            waiting = uploads.waiting(session, names)
        for name in set(names) - waiting:
            store.partials.drop(name)
