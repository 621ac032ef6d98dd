"""Which job a worker takes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from tests.app.jobrows import new_job, read_job
from worker.claims import claim_next


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


def _expire(database: Database, job_id: str) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=now() - timedelta(seconds=1)))


def test_the_most_urgent_job_comes_first_and_the_oldest_among_equals(database: Database, settings: Settings) -> None:
    first, second = new_job(database), new_job(database)
    urgent, lazy = new_job(database, priority=5), new_job(database, priority=-5)
    taken = [claim_next(database, settings, "w") for _ in range(5)]
    assert [claim.job_id if claim else None for claim in taken] == [urgent, first, second, lazy, None]
    assert read_job(database, urgent).status == JobStatus.RUNNING


def test_a_worker_takes_jobs_of_its_device_class_only(database: Database, settings: Settings) -> None:
    new_job(database, device_class="gpu")
    assert claim_next(database, settings, "w") is None
    assert claim_next(database, settings.model_copy(update={"device_class": "gpu"}), "w") is not None


def test_a_running_job_is_taken_again_once_its_lease_has_expired_while_attempts_are_left(
    database: Database, settings: Settings
) -> None:
    job_id = new_job(database, max_attempts=2)
    assert claim_next(database, settings, "first") is not None
    assert claim_next(database, settings, "second") is None
    _expire(database, job_id)
    claim = claim_next(database, settings, "second")
    assert claim is not None
    assert (claim.job_id, claim.fence.attempt) == (job_id, 2)
    _expire(database, job_id)
    assert claim_next(database, settings, "third") is None


def test_of_many_workers_that_reach_for_the_same_jobs_each_job_goes_to_one(
    database: Database, settings: Settings
) -> None:
    job_ids = {new_job(database) for _ in range(6)}

    def take(number: int) -> list[str]:
        taken = []
        while claim := claim_next(database, settings, f"worker-{number}"):
            taken.append(claim.job_id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for mine in pool.map(take, range(6)) for job_id in mine]
    assert sorted(taken) == sorted(job_ids)
    assert {read_job(database, job_id).attempt for job_id in job_ids} == {1}
