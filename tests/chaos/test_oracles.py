"""The oracles object when something is wrong; else the soak would prove nothing."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import delete, update

from app.db.session import Database
from app.db.tables import Artifact, Job, JobEvent
from app.jobs.outcomes import fail
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobError, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from tests.app.jobrows import add_job, add_model, add_tenant, claim, new_job, read_job
from tests.chaos.oracles import (
    effects_happened_once,
    equal_jobs_wrote_equal_weights,
    events_are_gapless_and_legal,
    every_accepted_job_ended_once,
)
from tests.chaos.recorder import Recorder


@pytest.fixture
def system(make_settings: Any, sqlite_url: str) -> Iterator[SimpleNamespace]:
    settings: Settings = make_settings(database_url=sqlite_url)
    database = Database(settings.resolved_database_url)
    yield SimpleNamespace(settings=settings, database=database, accepted={}, recorder=Recorder(database))
    database.dispose()


@pytest.fixture
def job_id(system: SimpleNamespace) -> str:
    """A job that failed as jobs do whose worker was killed."""
    job_id = new_job(system.database, name="mine")
    fence = claim(system.database, job_id)
    with system.database.write() as session:
        error = JobError(code=JobErrorCode.WORKER_LOST, message="m", retryable=True)
        fail(session, session.get_one(Job, job_id), fence, error)
    system.accepted["mine"] = job_id
    return job_id


def _change(system: SimpleNamespace, *statements: Any) -> None:
    with system.database.write() as session:
        for statement in statements:
            session.execute(statement)


def test_they_are_content_with_a_job_that_ended_for_a_good_reason(system: SimpleNamespace, job_id: str) -> None:
    oracles = (every_accepted_job_ended_once, events_are_gapless_and_legal, effects_happened_once)
    assert [problem for oracle in oracles for problem in oracle(system)] == []
    assert read_job(system.database, job_id).status == JobStatus.FAILED


def test_they_miss_an_event_and_an_end(system: SimpleNamespace, job_id: str) -> None:
    _change(system, delete(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq == 2))
    assert any("gaps" in problem for problem in events_are_gapless_and_legal(system))
    _change(system, update(Job).where(Job.id == job_id).values(status=JobStatus.RUNNING))
    assert any("still running" in problem for problem in every_accepted_job_ended_once(system))
    system.accepted["lost"] = "job_lost"
    assert any("is lost" in problem for problem in every_accepted_job_ended_once(system))


def test_they_notice_a_second_job_and_a_defect(system: SimpleNamespace, job_id: str) -> None:
    new_job(system.database, name="mine")
    error = {"code": JobErrorCode.INTERNAL.value, "message": "a defect"}
    _change(system, update(Job).where(Job.id == job_id).values(error=error))
    problems = every_accepted_job_ended_once(system)
    assert any("made 2 jobs" in problem for problem in problems)
    assert any("a defect" in problem for problem in problems)


def test_they_notice_half_an_artifact_and_one_of_a_failed_job(system: SimpleNamespace, job_id: str) -> None:
    blob = open_store(system.settings).put_stream([b"weights"])
    tenant_id = read_job(system.database, job_id).tenant_id
    columns = {"path": "model.safetensors", "size": blob.size, "sha256": blob.sha256, "media_type": "x/y"}
    with system.database.write() as session:
        session.add(Artifact(tenant_id=tenant_id, job_id=job_id, format="nupes", **columns))
    assert any("has files" in problem for problem in effects_happened_once(system))
    _change(system, update(Job).where(Job.id == job_id).values(status=JobStatus.SUCCEEDED))
    assert any("no SHA256SUMS" in problem for problem in effects_happened_once(system))


def test_they_notice_that_equal_jobs_wrote_other_weights(system: SimpleNamespace) -> None:
    tenant_id = add_tenant(system.database)
    model_id = add_model(system.database, tenant_id)
    columns = {"format": "nupes", "path": "model.safetensors", "size": 1, "media_type": "x/y"}

    def wrote(digest: str) -> None:
        job_id = add_job(system.database, tenant_id, model_id)
        with system.database.write() as session:
            session.add(Artifact(tenant_id=tenant_id, job_id=job_id, sha256=digest * 64, **columns))

    wrote("a")
    wrote("a")
    assert equal_jobs_wrote_equal_weights(system) == []
    wrote("b")
    assert any("2 different files" in problem for problem in equal_jobs_wrote_equal_weights(system))


def test_the_recorder_notices_a_changed_end_and_a_rewritten_event(system: SimpleNamespace, job_id: str) -> None:
    system.recorder.look()
    _change(
        system,
        update(Job).where(Job.id == job_id).values(status=JobStatus.SUCCEEDED),
        update(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq == 1).values(type="log"),
    )
    system.recorder.look()
    assert len(system.recorder.violations) == 2
