from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, Model, OutboxMessage, Tenant, Webhook, WebhookDelivery, Worker
from app.main import create_app
from app.settings import Settings
from tests.app.jobrows import add_tenant
from tests.app.test_problems import problem
from tests.servers import free_port, throwaway_redis
from tests.stack import as_environment


def add_worker(
    database: Database,
    name: str = "w1",
    age_s: float = 0,
    job_id: str | None = None,
    device_class: str = "cpu",
) -> None:
    with database.write() as session:
        beat = now() - timedelta(seconds=age_s)
        session.add(Worker(id=name, device_class=device_class, hostname="host", job_id=job_id, heartbeat_at=beat))


def add_job(database: Database, tenant: str, status: str, **columns: object) -> str:
    with database.write() as session:
        owner = Tenant(name=tenant)
        session.add(owner)
        session.flush()
        model = Model(tenant_id=owner.id, name="m", source={}, config={}, headers={}, params=0, bytes=0, findings=[])
        session.add(model)
        session.flush()
        job = Job(
            tenant_id=owner.id,
            model_id=model.id,
            config={},
            config_hash="x",
            labels={},
            status=status,
            gates=[],
            **columns,
        )
        session.add(job)
        session.flush()
        return job.id


def checks(client: TestClient) -> tuple[int, str, dict[str, str]]:
    response = client.get("/readyz")
    body = response.json()
    return response.status_code, body["status"], {check["name"]: check["status"] for check in body["checks"]}


def test_alive_needs_no_key_and_no_database(anonymous: TestClient) -> None:
    assert anonymous.get("/livez").json() == {"status": "ok"}


def test_ready_when_all_parts_answer(anonymous: TestClient, database: Database) -> None:
    add_worker(database)
    parts = {"database": "ok", "storage": "ok", "broker": "ok", "workers": "ok"}
    assert checks(anonymous) == (200, "ok", parts)


def test_without_a_worker_work_is_taken_and_waits(anonymous: TestClient, database: Database) -> None:
    add_worker(database, age_s=3600)
    status, state, parts = checks(anonymous)
    assert (status, state, parts["workers"]) == (200, "degraded", "degraded")


def test_a_dead_broker_is_degraded(settings: Settings, database: Database) -> None:
    add_worker(database)
    broken = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{free_port()}/0"})
    with TestClient(create_app(broken)) as client:
        status, state, parts = checks(client)
    assert (status, state, parts["broker"]) == (200, "degraded", "degraded")


def test_a_living_redis_is_ok(settings: Settings, database: Database, redis_url: str) -> None:
    add_worker(database)
    with TestClient(create_app(settings.model_copy(update={"broker_url": redis_url}))) as client:
        assert checks(client)[2]["broker"] == "ok"


def test_a_redis_that_refuses_us_is_degraded(settings: Settings, database: Database) -> None:
    import redis

    add_worker(database)
    with throwaway_redis() as url, redis.Redis.from_url(url, single_connection_client=True) as server:
        server.config_set("requirepass", "not-what-we-know")
        try:
            with TestClient(create_app(settings.model_copy(update={"broker_url": url}))) as client:
                body = client.get("/readyz").json()
        finally:
            server.config_set("requirepass", "")
    broker = next(check for check in body["checks"] if check["name"] == "broker")
    assert broker["status"] == "degraded"
    assert broker["detail"].startswith("Authentication required; ")


def test_who_asks_for_heads_alone_gets_them(settings: Settings) -> None:
    with TestClient(create_app(settings)) as client:
        for path in ("/livez", "/readyz"):
            answer = client.head(path)
            assert (answer.status_code, answer.content) == (client.get(path).status_code, b"")


def test_a_dead_database_is_down(make_settings: Callable[..., Settings]) -> None:
    with TestClient(create_app(make_settings(database_url="postgresql://nobody@127.0.0.1:1/none"))) as client:
        status, state, parts = checks(client)
    assert (status, state, parts["database"]) == (503, "down", "down")


def test_an_old_schema_is_down(anonymous: TestClient, database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    status, _, parts = checks(anonymous)
    assert (status, parts["database"]) == (503, "down")


def test_a_lost_store_is_down(anonymous: TestClient, settings: Settings) -> None:
    shutil.rmtree(settings.data_dir / "blobs")
    status, _, parts = checks(anonymous)
    assert (status, parts["storage"]) == (503, "down")


def test_a_disk_that_is_nearly_full_is_degraded_until_there_is_room(anonymous: TestClient, database: Database) -> None:
    add_worker(database)
    service = anonymous.app
    assert isinstance(service, FastAPI)
    enough = service.state.settings
    service.state.settings = enough.model_copy(update={"min_free_disk_bytes": service.state.store.free_bytes() * 2})
    status, state, parts = checks(anonymous)
    assert (status, state, parts["storage"]) == (200, "degraded", "degraded")
    service.state.settings = enough
    assert checks(anonymous)[1] == "ok"


def read_samples(anonymous: TestClient) -> dict[tuple[str, ...], float]:
    """The figures at `/metrics` by name and labels."""
    response = anonymous.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_a_queue_that_is_empty_is_said_to_be_so(anonymous: TestClient, database: Database) -> None:
    add_worker(database, "w1", device_class="gpu")
    samples = read_samples(anonymous)
    for device_class in ("cpu", "gpu"):
        assert samples["nupes_queue_depth", device_class] == 0
        assert samples["nupes_queue_oldest_seconds", device_class] == 0


def test_metrics_are_computed_from_the_database(anonymous: TestClient, database: Database) -> None:
    add_worker(database, "w1", job_id="job_x")
    add_worker(database, "w2", age_s=3600)
    waiting = add_job(database, "a", "queued", created_at=now() - timedelta(seconds=100))
    add_job(database, "b", "running", lease_until=now() - timedelta(seconds=5))
    with database.write() as session:
        session.add(OutboxMessage(queue="cpu", job_id=waiting, created_at=now() - timedelta(seconds=50)))
    samples = read_samples(anonymous)
    assert samples["nupes_jobs", "queued"] == 1
    assert samples["nupes_jobs", "running"] == 1
    assert samples["nupes_jobs", "failed"] == 0
    assert samples["nupes_queue_depth", "cpu"] == 1
    assert samples["nupes_queue_oldest_seconds", "cpu"] == pytest.approx(100, abs=20)
    assert samples["nupes_outbox_messages",] == 1
    assert samples["nupes_outbox_oldest_seconds",] == pytest.approx(50, abs=20)
    assert samples["nupes_expired_leases",] == 1
    assert samples["nupes_workers", "cpu", "busy"] == 1
    assert samples["nupes_workers", "cpu", "lost"] == 1
    assert samples["nupes_models",] == 2
    assert samples["nupes_storage_free_bytes",] > 0


def test_metrics_tell_of_messages_to_webhooks_and_of_receivers_that_were_switched_off(
    anonymous: TestClient, database: Database
) -> None:
    late, earlier = (now() - timedelta(seconds=seconds) for seconds in (100, 500))
    tenant_id = add_tenant(database)
    with database.write() as session:
        reached, paused, dead = (
            Webhook(tenant_id=tenant_id, url="https://ci.example.org", events=[], labels={}, secret="x", **state)
            for state in (
                {},
                {"paused_until": now() + timedelta(hours=1)},
                {"enabled": False, "disabled_reason": "gone", "disabled_at": now()},
            )
        )
        session.add_all([reached, paused, dead])
        session.flush()
        for hook, since, status in (
            (reached, late, "pending"),
            (reached, earlier, "succeeded"),
            (paused, earlier, "pending"),
            (dead, earlier, "pending"),
        ):
            message = {"type": "test", "body": "{}", "status": status, "next_attempt_at": since}
            session.add(WebhookDelivery(tenant_id=tenant_id, webhook_id=hook.id, **message))
    samples = read_samples(anonymous)
    assert samples["nupes_webhook_deliveries", "pending"] == 3
    assert samples["nupes_webhook_deliveries", "succeeded"] == 1
    assert samples["nupes_webhook_deliveries", "failed"] == 0
    assert samples["nupes_webhook_overdue_seconds",] == pytest.approx(100, abs=30)
    assert samples["nupes_webhooks_disabled",] == 1


def test_metrics_of_an_empty_service_parse(anonymous: TestClient) -> None:
    assert list(text_string_to_metric_families(anonymous.get("/metrics").text))


def test_capabilities_are_those_of_the_wire_models(client: TestClient, anonymous: TestClient) -> None:
    told = client.get("/v1/capabilities").json()
    assert told["bits"] == [2, 3, 4, 5, 6, 7, 8]
    assert told["methods"] == ["nupes"]
    assert "data_free" in told["optimize"]
    assert {"nupes", "dense"} <= set(told["formats"])
    problem(anonymous.get("/v1/capabilities"), 401, "unauthorized")


def test_workers_show_what_they_do_to_owners_only(client: TestClient, stranger: TestClient, database: Database) -> None:
    job_id = add_job(database, "third", "running")
    with database.write() as session:
        job = session.get_one(Job, job_id)
        from sqlalchemy import select

        job.tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == "first")).one()
    add_worker(database, "busy", job_id=job_id)
    add_worker(database, "idle")
    add_worker(database, "lost", age_s=3600)
    shown = {worker["id"]: worker for worker in client.get("/v1/workers").json()["data"]}
    assert {name: worker["status"] for name, worker in shown.items()} == {name: name for name in shown}
    assert shown["busy"]["job_id"] == job_id
    assert job_id not in stranger.get("/v1/workers").text


def run_workers_command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.workers", *arguments],
        env={**os.environ, **as_environment(settings)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_workers_are_drained_by_a_command_on_the_server_and_by_no_key(
    client: TestClient, database: Database, settings: Settings
) -> None:
    add_worker(database, "host:1:2:abc", age_s=-3600)  # not lost while commands start
    add_worker(database, "other", age_s=-3600, job_id=add_job(database, "someone", "running"))

    def shown() -> dict[str, str]:
        return {worker["id"]: worker["status"] for worker in client.get("/v1/workers").json()["data"]}

    assert run_workers_command(settings, "drain", "host:1:2:abc").returncode == 0
    assert "other cpu draining\n" in run_workers_command(settings, "drain", "other").stdout
    assert shown() == {"host:1:2:abc": "drained", "other": "draining"}
    assert client.get("/v1/queues").json()["data"] == []
    assert run_workers_command(settings, "undrain", "host:1:2:abc").returncode == 0
    assert shown() == {"host:1:2:abc": "idle", "other": "draining"}
    unknown = run_workers_command(settings, "drain", "nobody")
    assert unknown.returncode == 1
    assert "'nobody'" in unknown.stderr
    assert client.post("/v1/workers/other/drain").status_code == 404


def test_queues_show_what_waits_and_who_could_take_it(client: TestClient, database: Database) -> None:
    add_worker(database)
    add_job(database, "t", "queued", device_class="gpu", created_at=now() - timedelta(seconds=90))
    cpu, gpu = client.get("/v1/queues").json()["data"]
    assert cpu == {"device_class": "cpu", "depth": 0, "oldest_seconds": None, "workers": 1}
    assert (gpu["device_class"], gpu["depth"], gpu["workers"]) == ("gpu", 1, 0)
    assert 90 <= gpu["oldest_seconds"] < 120
