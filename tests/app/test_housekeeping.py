"""Disk comes back: what has expired, what was deleted, what broken uploads left. And nothing that is needed goes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import delete, select, update

from app.core.clock import now
from app.db.leases import take
from app.db.session import Database
from app.db.tables import Artifact, IdempotencyKey, Tenant, Upload
from app.housekeeping.service import sweep_local, sweep_shared
from app.jobs import idempotency, outcomes
from app.settings import Settings
from app.storage import BlobStore
from app.storage.garbage import collect
from tests.app.conftest import Sender
from tests.app.jobrows import add_job, add_tenant, claim, make_file, make_result, read_job
from tests.app.test_problems import problem
from tests.safetensors_files import folder
from tests.stack import as_environment

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def hasty(settings: Settings) -> Settings:
    """Settings by which everything is old."""
    return settings.model_copy(update={"garbage_grace_s": -5.0})


def stored_bytes(settings: Settings) -> int:
    return sum(path.stat().st_size for path in (settings.data_dir / "blobs").rglob("*") if path.is_file())


def sweep_twice(database: Database, store: BlobStore, settings: Settings) -> int:
    """Two rounds: what nobody needs is doomed, then deleted."""
    freed = 0
    for _ in range(2):
        sweep_local(database, store, settings)
        freed += sweep_shared(database, store, settings).freed_bytes
    return freed


def finished_job(database: Database, store: BlobStore, model_id: str, tenant_id: str, content: bytes) -> str:
    job_id = add_job(database, tenant_id, model_id)
    fence = claim(database, job_id)
    blob = store.put_stream([content])
    with database.write() as session:
        job = session.get_one(outcomes.Job, job_id)
        files = [make_file(sha256=blob.sha256, size=blob.size)]
        outcomes.succeed(session, job, fence, make_result(), [], files)
    return job_id


def test_what_users_delete_frees_the_disk_to_the_last_byte(
    client: TestClient, send: Sender, database: Database, store: BlobStore, hasty: Settings
) -> None:
    baseline = stored_bytes(hasty)
    model = send.model(folder()).json()
    with database.read() as session:
        tenant_id = session.scalars(select(Upload.tenant_id)).first()
    job_id = finished_job(database, store, model["id"], str(tenant_id), os.urandom(50_000))
    lone = send.upload(os.urandom(10_000))
    part = send.announce(b"x" * 100)
    chunk = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    assert client.patch(f"/v1/uploads/{part['id']}", content=b"x" * 60, headers=chunk).status_code == 204
    assert sweep_twice(database, store, hasty) == 0
    before = stored_bytes(hasty)
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert sweep_twice(database, store, hasty) == 50_000
    assert client.delete(f"/v1/models/{model['id']}").status_code == 204
    assert sweep_twice(database, store, hasty) == 0, "the uploads still name the files of the model"
    assert stored_bytes(hasty) == before - 50_000
    assert client.delete(f"/v1/uploads/{lone['id']}").status_code == 204
    with database.write() as session:
        session.execute(update(Upload).values(expires_at=now() - timedelta(seconds=1)))
    sweep_twice(database, store, hasty)
    assert stored_bytes(hasty) == baseline


def test_only_pieces_that_nobody_waits_for_are_swept(
    client: TestClient, send: Sender, database: Database, store: BlobStore, settings: Settings, hasty: Settings
) -> None:
    upload = send.announce(b"12345678")
    for name in (upload["id"], "upl_gone"):
        with store.partials.open(name) as partial:
            partial.write(b"1234")
    sweep_local(database, store, settings)
    assert store.partials.size("upl_gone") == 4
    sweep_local(database, store, hasty)
    assert store.partials.size("upl_gone") == 0
    assert client.get(f"/v1/uploads/{upload['id']}").json()["offset"] == 4


def test_artifacts_past_their_time_are_gone_and_everything_says_so(
    client: TestClient, send: Sender, database: Database, store: BlobStore, hasty: Settings
) -> None:
    model = send.model(folder()).json()
    with database.read() as session:
        tenant_id = str(session.scalars(select(Upload.tenant_id)).first())
    old, young = (
        finished_job(database, store, model["id"], tenant_id, content) for content in (b"old" * 100, b"young" * 100)
    )
    with database.write() as session:
        past = now() - timedelta(days=2)
        session.execute(update(Artifact).where(Artifact.job_id == old).values(created_at=past))
    daily = hasty.model_copy(update={"artifact_ttl_s": 24 * 3600})
    tag = client.get(f"/v1/jobs/{old}").headers["ETag"]
    assert sweep_shared(database, store, daily).jobs == 1
    assert sweep_shared(database, store, daily).jobs == 0
    assert not store.exists(hashlib.sha256(b"old" * 100).hexdigest())
    job = client.get(f"/v1/jobs/{old}")
    assert job.json()["artifacts_expired_at"] is not None
    assert (job.json()["status"], job.headers["ETag"] != tag) == ("succeeded", True)
    listed = client.get(f"/v1/jobs/{old}/artifacts").json()["data"][0]
    assert listed["expired_at"] is not None
    gone = problem(client.get(listed["content_url"]), 410, "artifact_expired")
    assert f"/v1/jobs/{old}/retry" in str(gone.hint)
    assert client.head(listed["content_url"]).status_code == 410
    problem(client.get(f"/v1/jobs/{old}/artifacts.tar"), 410, "artifact_expired")
    assert client.get(f"/v1/jobs/{young}/artifacts.tar").status_code == 200
    assert read_job(database, young).artifacts_expired_at is None


def test_without_a_retention_setting_artifacts_stay(
    send: Sender, database: Database, store: BlobStore, hasty: Settings
) -> None:
    model = send.model(folder()).json()
    with database.read() as session:
        tenant_id = str(session.scalars(select(Upload.tenant_id)).first())
    finished_job(database, store, model["id"], tenant_id, b"kept")
    assert sweep_twice(database, store, hasty) == 0


def test_uploads_and_collection_at_the_same_time_lose_nothing(database: Database, store: BlobStore) -> None:
    """The same few contents are stored, named, read, and forgotten by several threads while others collect."""
    grace = timedelta(seconds=1.0)
    contents = [bytes([number]) * 20_000 for number in range(4)]
    with database.write() as session:
        tenant = Tenant(name="racing")
        session.add(tenant)
    deadline = time.monotonic() + 6
    failures: list[str] = []
    collected: list[int] = []

    def use(seed: int) -> None:
        choose = random.Random(seed)
        while time.monotonic() < deadline and not failures:
            content = choose.choice(contents)
            blob = store.put_stream([content])
            with database.write() as session:
                upload = Upload(tenant_id=tenant.id, filename="f", size=blob.size, sha256=blob.sha256)
                session.add(upload)
            time.sleep(choose.random() * 0.1)
            try:
                if b"".join(store.open(blob.sha256)) != content:
                    failures.append("other bytes")
            except Exception as error:
                failures.append(repr(error))
            with database.write() as session:
                session.execute(delete(Upload).where(Upload.id == upload.id))
            time.sleep(choose.random() * 3)

    def sweep() -> None:
        while time.monotonic() < deadline and not failures:
            collected.append(collect(database, store, grace))
            time.sleep(0.01)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(3)]
    threads += [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    collect(database, store, timedelta(seconds=-5))
    collect(database, store, timedelta(seconds=-5))
    assert [*store.list(), *store.doomed()] == []


def test_a_lease_has_one_holder_until_it_ends(database: Database) -> None:
    winners: list[str] = []

    def contend(owner: str) -> None:
        if take(database, "work", owner, 60):
            winners.append(owner)

    threads = [threading.Thread(target=contend, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert take(database, "work", winners[0], -1)
    assert take(database, "work", "next", 60)
    assert not take(database, "work", winners[0], 60)


def test_one_round_can_be_asked_for(app: FastAPI, store: BlobStore, hasty: Settings) -> None:
    store.put_stream([b"nobody needs this"])
    run = {"env": {**os.environ, **as_environment(hasty)}, "cwd": REPOSITORY, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "app.housekeeping"]
    said = [subprocess.run(command, check=True, **run).stdout for _ in range(2)]  # type: ignore[call-overload]
    assert said[0].endswith(" 0 bytes freed\n")
    assert said[1].endswith(" 17 bytes freed\n")


def test_idempotency_keys_past_their_day_are_deleted_and_no_others(
    database: Database, store: BlobStore, settings: Settings
) -> None:
    tenant_id = add_tenant(database)
    ages = {"old": idempotency.KEPT_S + 60, "young": idempotency.KEPT_S - 60}
    with database.write() as session:
        for key, age in ages.items():
            moment = now() - timedelta(seconds=age)
            session.add(IdempotencyKey(tenant_id=tenant_id, key=key, request_hash="0" * 64, created_at=moment))
    sweep_shared(database, store, settings)
    with database.read() as session:
        assert session.scalars(select(IdempotencyKey.key)).all() == ["young"]
