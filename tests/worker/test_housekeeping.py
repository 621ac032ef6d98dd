"""Workers keep the disk clean, one of them for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Lease, Upload
from app.settings import Settings
from app.storage import open_store
from tests.app.jobrows import add_tenant
from tests.worker.factory import wait_for, worker_process
from worker.housekeeping import LEASE, Housekeeping


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


def expired_upload(database: Database, settings: Settings) -> str:
    blob = open_store(settings).put_stream([b"nobody needs this"])
    tenant_id, past = add_tenant(database), now() - timedelta(seconds=1)
    with database.write() as session:
        session.add(Upload(tenant_id=tenant_id, filename="f", size=blob.size, sha256=blob.sha256, expires_at=past))
    return blob.sha256


def test_one_of_several_workers_sweeps(database: Database, settings: Settings) -> None:
    hasty = settings.model_copy(update={"garbage_grace_s": -5.0})
    first, second = (Housekeeping(database, hasty, owner) for owner in ("first", "second"))
    first.round()
    sha256 = expired_upload(database, settings)
    second.round()
    with database.read() as session:
        assert session.scalars(select(Lease.owner).where(Lease.name == LEASE)).all() == ["first"]
        assert session.scalars(select(Upload.sha256)).all() == [sha256]
    first.round()
    first.round()
    assert not open_store(settings).exists(sha256)


def test_a_worker_sweeps_beside_its_jobs(make_settings: Callable[..., Settings], sqlite_url: str) -> None:
    settings = make_settings(database_url=sqlite_url, housekeep_s=0.2, garbage_grace_s=0.5)
    database = Database(settings.resolved_database_url)
    sha256 = expired_upload(database, settings)
    blobs = settings.data_dir / "blobs"
    with worker_process(settings):
        wait_for(lambda: not any(path.name == sha256 for path in blobs.rglob("*")), 120, "an empty store")
    database.dispose()
