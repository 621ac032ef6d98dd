"""What a tenant may use: refused beyond it, shown at any time, changed by the operator alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from app.audit.retention import forget_old_records
from app.core.clock import now
from app.db.tables import AuditEntry, Job, Tenant, UsageEntry
from app.jobs import outcomes
from app.jobs.transitions import Fence, claim
from app.settings import Settings
from tests.app import jobrows
from tests.app.api import Api
from tests.app.test_problems import problem
from tests.stack import as_environment


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str) -> Settings:
    return make_settings(database_url=database_url, quota_active_jobs=3, quota_jobs_per_day=5)


def submit(api: Api) -> int:
    return int(api.post("/v1/jobs", json=api.body()).status_code)


def test_as_many_jobs_as_allowed_wait_or_run_and_an_end_makes_room(api: Api) -> None:
    jobs = [api.post("/v1/jobs", json=api.body()).json()["id"] for _ in range(3)]
    jobrows.claim(api.database, jobs[0])
    response = api.post("/v1/jobs", json=api.body())
    assert problem(response, 429, "quota_active_jobs").retryable
    assert int(response.headers["Retry-After"]) > 0
    assert submit(api.another_tenant()) == 202
    assert api.post(f"/v1/jobs/{jobs[1]}/cancel").json()["status"] == "cancelled"
    assert submit(api) == 202


def test_deleting_jobs_gives_no_more_jobs_a_day(api: Api) -> None:
    for _ in range(5):
        job = api.post("/v1/jobs", json=api.body()).json()["id"]
        api.post(f"/v1/jobs/{job}/cancel")
        api("DELETE", f"/v1/jobs/{job}")
    response = api.post("/v1/jobs", json=api.body())
    problem(response, 429, "quota_jobs_per_day")
    assert 0 < int(response.headers["Retry-After"]) <= 24 * 3600
    with api.database.write() as session:
        session.execute(update(UsageEntry).values(created_at=now() - timedelta(days=1)))
    assert submit(api) == 202


def test_a_limit_holds_against_requests_at_once(api: Api) -> None:
    bodies = [api.body() for _ in range(8)]
    answers: list[int] = []
    start = threading.Barrier(len(bodies))

    def post(body: dict[str, object]) -> None:
        start.wait()
        answers.append(api.post("/v1/jobs", json=body).status_code)

    threads = [threading.Thread(target=post, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [202] * 3 + [429] * 5


def test_usage_shows_limits_and_figures(api: Api) -> None:
    job = api.post("/v1/jobs", json=api.body()).json()["id"]
    fence = jobrows.claim(api.database, job)
    with api.database.write() as session:
        session.execute(update(Job).values(attempt_started_at=now() - timedelta(seconds=100)))
    with api.database.write() as session:
        row = session.get_one(Job, job)
        files = [jobrows.make_file(size=1000), jobrows.make_file("copy", size=1000)]
        outcomes.succeed(session, row, fence, jobrows.make_result(), [], files)
    api.post("/v1/uploads", json={"filename": "a", "size": 500})
    used = api.another_tenant(["jobs:read"]).get("/v1/usage").json()
    assert (used["stored_bytes"]["used"], used["compute_seconds_this_month"]) == (0, 0)
    used = api.get("/v1/usage").json()
    assert used["active_jobs"] == {"used": 0, "limit": 3, "resets_at": None}
    assert (used["jobs_per_day"]["used"], used["jobs_per_day"]["limit"]) == (1, 5)
    assert used["jobs_per_day"]["resets_at"]
    assert used["stored_bytes"] == {"used": 1500, "limit": None, "resets_at": None}
    assert used["compute_seconds_this_month"] == pytest.approx(100, abs=30)
    assert (used["requests_per_minute"]["limit"], used["requests_per_minute"]["used"] > 0) == (12_000, True)


def test_every_attempt_is_counted_also_one_whose_worker_was_lost(api: Api) -> None:
    job = api.add_job()
    jobrows.claim(api.database, job, lease_s=-1)
    for seconds in (50, 70):
        with api.database.write() as session:
            session.execute(update(Job).values(attempt_started_at=now() - timedelta(seconds=seconds)))
        if seconds == 50:
            with api.database.write() as session:
                assert claim(session, job, "worker-2", 60) == Fence("worker-2", 2)
    with api.database.write() as session:
        outcomes.finish_cancel(session, cancelling(session, job), Fence("worker-2", 2))
    assert api.get("/v1/usage").json()["compute_seconds_this_month"] == pytest.approx(120, abs=30)


def cancelling(session: object, job_id: str) -> Job:
    from app.jobs.transitions import transition
    from nupes_client.schemas.jobs import JobStatus

    job = session.get_one(Job, job_id)  # type: ignore[attr-defined]
    transition(session, job, JobStatus.CANCELLING)  # type: ignore[arg-type]
    return job


def test_the_operator_changes_limits_of_one_tenant_and_it_is_noted(api: Api, settings: Settings) -> None:
    with api.database.read() as session:
        name = session.scalars(select(Tenant.name).where(Tenant.id == api.tenant_id)).one()

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "app.usage", *arguments]
        return subprocess.run(line, env={**os.environ, **as_environment(settings)}, capture_output=True, text=True)

    shown = command(name, "--set", "active_jobs=1", "--set", "jobs_per_day=none").stdout
    assert "active_jobs=1*" in shown
    assert "jobs_per_day=none*" in shown
    assert [submit(api), submit(api)] == [202, 429]
    assert submit(api.another_tenant()) == 202
    used = api.get("/v1/usage").json()
    assert (used["active_jobs"]["limit"], used["jobs_per_day"]["limit"]) == (1, None)
    assert "active_jobs=3 " in command(name, "--reset", "active_jobs").stdout
    assert submit(api) == 202
    assert name in command().stdout
    for wrong in ([name, "--set", "active_jobs=-1"], [name, "--set", "colour=1"], ["nobody"]):
        failed = command(*wrong)
        assert failed.returncode == 1, wrong
        assert failed.stderr
    with api.database.read() as session:
        noted = session.scalars(select(AuditEntry.action).where(AuditEntry.resource_id == api.tenant_id)).all()
    assert noted == ["quotas.changed"] * 2


def test_old_usage_is_forgotten(api: Api, settings: Settings) -> None:
    api.add_job()
    assert forget_old_records(api.database, settings) == (0, 0)
    with api.database.write() as session:
        session.execute(update(UsageEntry).values(created_at=now() - timedelta(days=401)))
    assert forget_old_records(api.database, settings) == (0, 1)
