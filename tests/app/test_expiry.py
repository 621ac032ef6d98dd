"""Jobs that no worker ever takes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job
from app.jobs import outcomes
from app.jobs.expiry import expire_waiting
from app.settings import Settings
from tests.app.api import open_api
from tests.app.jobrows import claim, new_job, read_job
from tests.worker.factory import wait_for


@pytest.fixture
def database(settings: Any) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


def make_overdue(database: Database, job_id: str) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(queue_until=now() - timedelta(seconds=1)))


def test_a_job_that_waited_too_long_fails_with_a_reason_and_others_go_on_waiting(database: Database) -> None:
    overdue, waiting = new_job(database, queue_timeout_s=90), new_job(database)
    make_overdue(database, overdue)
    assert expire_waiting(database) == [overdue]
    job = read_job(database, overdue)
    assert (job.status, job.finished_at is not None) == ("failed", True)
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("timeout", True)
    assert "queue_timeout_s of 90" in job.error["message"]
    assert read_job(database, waiting).status == "queued"
    assert expire_waiting(database) == []


def test_the_limit_counts_from_the_submission(database: Database) -> None:
    job = read_job(database, new_job(database, queue_timeout_s=90))
    assert job.queue_until is not None
    assert abs((job.queue_until - job.created_at).total_seconds() - 90) < 5


@pytest.mark.parametrize("now_is", ["running", "queued"])
def test_a_job_that_a_worker_has_taken_once_has_no_limit_of_waiting(database: Database, now_is: str) -> None:
    job_id = new_job(database)
    fence = claim(database, job_id)
    if now_is == "queued":
        with database.write() as session:
            outcomes.requeue(session, session.get_one(Job, job_id), fence, reason="worker_stopping")
    make_overdue(database, job_id)
    assert expire_waiting(database) == []
    assert read_job(database, job_id).status == now_is


def test_the_service_itself_ends_them_where_no_worker_runs(make_settings: Any, sqlite_url: str) -> None:
    settings: Settings = make_settings(database_url=sqlite_url, sweep_s=0.05)
    with open_api(settings) as api:
        job = api.post("/v1/jobs", json=api.body(queue_timeout_s=1)).json()
        assert job["queue_timeout_s"] == 1
        wait_for(lambda: api.get(f"/v1/jobs/{job['id']}").json()["status"] == "failed", 20, "end of the waiting")
