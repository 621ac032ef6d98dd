"""Jobs whose worker is gone, and what ended jobs leave behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, JobEvent, OutboxMessage, Worker
from app.jobs.outcomes import finish_cancel
from app.jobs.service import cancel
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from tests.app.jobrows import new_job, read_job
from worker.claims import claim_next
from worker.heartbeat import SlotFacts, beat
from worker.identity import is_gone, new_worker_id
from worker.reaper import FORGET_WORKERS_S, forget_workers, reap, remove_folders
from worker.workfolder import job_folder


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.resolved_database_url)
    yield database
    database.dispose()


def _abandon(database: Database, settings: Settings, *, attempts: int = 1, **columns: object) -> str:
    """Queue a job and let workers take and lose it."""
    job_id = new_job(database, max_attempts=2, **columns)
    for _ in range(attempts):
        assert claim_next(database, settings, "elsewhere")
        _expire(database, job_id)
    return job_id


def _expire(database: Database, job_id: str) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=now() - timedelta(seconds=1)))


def _cancel(database: Database, job_id: str) -> None:
    with database.write() as session:
        cancel(session, read_job(database, job_id).tenant_id, job_id)


def _dead_worker_id() -> str:
    """The id of a slot that ran on this machine."""
    code = "from worker.identity import new_worker_id; print(new_worker_id())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_an_abandoned_job_gets_its_next_attempt_and_a_wake_up(database: Database, settings: Settings) -> None:
    job_id = _abandon(database, settings)
    with database.write() as session:
        session.execute(OutboxMessage.__table__.delete())
    assert reap(database) == [job_id]
    job = read_job(database, job_id)
    assert (job.status, job.attempt, job.lease_owner) == (JobStatus.QUEUED, 1, None)
    with database.read() as session:
        assert session.scalars(select(OutboxMessage.job_id)).all() == [job_id]
    assert reap(database) == []


def test_a_job_abandoned_in_its_last_attempt_fails_with_worker_lost(database: Database, settings: Settings) -> None:
    job_id = _abandon(database, settings, attempts=2)
    reap(database)
    job = read_job(database, job_id)
    assert job.status == JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert job.error["retryable"] is True


def test_an_abandoned_job_that_is_being_cancelled_is_cancelled(database: Database, settings: Settings) -> None:
    job_id = new_job(database)
    claim_next(database, settings, "elsewhere")
    _cancel(database, job_id)
    assert reap(database) == []
    _expire(database, job_id)
    assert reap(database) == [job_id]
    assert read_job(database, job_id).status == JobStatus.CANCELLED


def test_a_job_with_a_valid_lease_is_left_alone(database: Database, settings: Settings) -> None:
    job_id = new_job(database)
    claim_next(database, settings, new_worker_id())
    assert reap(database) == []
    assert read_job(database, job_id).status == JobStatus.RUNNING


def test_a_worker_of_this_machine_whose_process_is_gone_needs_no_waiting_for_the_lease(
    database: Database, settings: Settings
) -> None:
    job_id = new_job(database)
    claim_next(database, settings, _dead_worker_id())
    assert reap(database) == [job_id]
    assert read_job(database, job_id).status == JobStatus.QUEUED


def test_nothing_is_concluded_about_workers_of_other_places() -> None:
    mine = new_worker_id()
    host, place, _pid, slot = mine.split(":")
    assert not is_gone(mine)
    assert is_gone(f"{host}:{place}:999999999:{slot}")
    assert not is_gone(f"other:{place}:999999999:{slot}")
    assert not is_gone(f"{host}:00000000:999999999:{slot}")
    assert not is_gone("w")


def test_many_reapers_at_once_requeue_a_job_once(database: Database, settings: Settings) -> None:
    job_id = _abandon(database, settings)
    assert [reap(database), reap(database)] == [[job_id], []]
    with database.read() as session:
        events = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id)).all()
    assert [event.data["to"] for event in events] == ["queued", "running", "queued"]


def test_work_folders_of_ended_and_deleted_jobs_are_removed_and_no_others(
    database: Database, settings: Settings
) -> None:
    ended, waiting = new_job(database), new_job(database)
    _cancel(database, ended)
    for job_id in (ended, waiting, "job_deleted"):
        job_folder(settings.work_dir, job_id, 1).prepare({})
    assert remove_folders(database, settings.work_dir) == sorted([ended, "job_deleted"])
    assert [path.name for path in (settings.work_dir / "jobs").iterdir()] == [waiting]


def test_a_worker_reports_in_and_is_forgotten_after_long_silence(database: Database) -> None:
    beat(database, SlotFacts("w1", "cpu", 1 << 30), None)
    beat(database, SlotFacts("w1", "cpu", 1 << 30), "job_1")
    with database.read() as session:
        worker = session.scalars(select(Worker)).one()
        assert (worker.id, worker.job_id) == ("w1", "job_1")
        assert worker.memory_bytes
    forget_workers(database)
    with database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=now() - timedelta(seconds=FORGET_WORKERS_S + 1)))
    forget_workers(database)
    with database.read() as session:
        assert session.scalars(select(Worker)).all() == []


def test_a_zombie_worker_can_not_end_a_job_that_was_given_to_another(database: Database, settings: Settings) -> None:
    job_id = new_job(database)
    zombie = claim_next(database, settings, "zombie")
    assert zombie
    _expire(database, job_id)
    assert claim_next(database, settings, "other")
    _cancel(database, job_id)
    with pytest.raises(Exception, match="zombie"), database.write() as session:
        finish_cancel(session, session.get_one(Job, job_id), zombie.fence)
    assert read_job(database, job_id).status == JobStatus.CANCELLING
