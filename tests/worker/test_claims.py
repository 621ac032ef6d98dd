"""Which job a worker takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import insert, text, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, Tenant
from app.jobs.transitions import claim, transition
from app.settings import Settings
from app.workers.repository import set_draining
from nupes_client.schemas.jobs import JobStatus
from tests.app.jobrows import add_job, add_model, add_tenant, new_job, read_job
from worker.claims import claim_next
from worker.heartbeat import SlotFacts, beat
from worker.turns import PATIENCE_S, first_jobs


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


def test_a_job_is_claimed_only_where_its_planned_peak_fits(database: Database, settings: Settings) -> None:
    large, small, unplanned = (new_job(database, memory_bytes=size) for size in (2 << 30, 1 << 30, None))
    modest = settings.model_copy(update={"memory_bytes": 1 << 30})
    taken = [claim_next(database, modest, "modest") for _ in range(3)]
    assert [claim.job_id if claim else None for claim in taken] == [small, unplanned, None]
    with database.write() as session:  # the UPDATE itself refuses it, whoever chose the candidate
        assert claim(session, large, "modest", 60, memory_bytes=(2 << 30) - 1) is None
    roomy = settings.model_copy(update={"memory_bytes": 2 << 30})
    assert claim_next(database, roomy, "roomy") is not None
    assert read_job(database, large).lease_owner == "roomy"


def test_a_worker_that_is_drained_wins_no_claim(database: Database, settings: Settings) -> None:
    job_id = new_job(database)
    facts = SlotFacts("w", "cpu", 1 << 40)
    assert beat(database, facts, None) is False
    _set_draining(database, "w", draining=True)
    assert beat(database, facts, None) is True
    assert claim_next(database, settings, "w") is None
    _set_draining(database, "w", draining=False)
    assert claim_next(database, settings, "w") is not None
    assert read_job(database, job_id).lease_owner == "w"


def _set_draining(database: Database, worker_id: str, *, draining: bool) -> None:
    with database.write() as session:
        assert set_draining(session, worker_id, draining=draining)


def _tenant_jobs(database: Database, count: int, **columns: object) -> list[str]:
    tenant_id = add_tenant(database)
    model_id = add_model(database, tenant_id)
    return [add_job(database, tenant_id, model_id, **columns) for _ in range(count)]


def _take(database: Database, settings: Settings, count: int) -> list[str]:
    return [claim.job_id for _ in range(count) if (claim := claim_next(database, settings, "w"))]


def _end(database: Database, job_id: str) -> None:
    with database.write() as session:
        job = session.get_one(Job, job_id)
        transition(session, job, JobStatus.FAILED, error={"code": "internal", "message": "x"})


def _back_in_time(database: Database, seconds: float, job_ids: list[str]) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id.in_(job_ids)).values(created_at=now() - timedelta(seconds=seconds)))


def test_a_tenant_that_floods_the_queue_does_not_keep_another_waiting(database: Database, settings: Settings) -> None:
    flood = _tenant_jobs(database, 20)
    late = _tenant_jobs(database, 3)
    taken = _take(database, settings, 6)
    assert taken == [flood[0], late[0], flood[1], late[1], flood[2], late[2]]


def test_the_tenant_with_fewer_running_jobs_is_next_whoever_was_served_last(
    database: Database, settings: Settings
) -> None:
    many, few = _tenant_jobs(database, 6), _tenant_jobs(database, 6)
    assert _take(database, settings, 4) == [many[0], few[0], many[1], few[1]]
    for job_id in few[:2]:
        _end(database, job_id)
    assert _take(database, settings, 3) == [few[2], few[3], many[2]]


def test_tenants_that_hold_equally_many_take_turns(database: Database, settings: Settings) -> None:
    one, other = _tenant_jobs(database, 3), _tenant_jobs(database, 3)
    served = []
    for _ in range(6):
        (job_id,) = _take(database, settings, 1)
        _end(database, job_id)
        served.append(job_id)
    assert served == [one[0], other[0], one[1], other[1], one[2], other[2]]


def test_no_priority_keeps_another_tenant_waiting_for_ever(database: Database, settings: Settings) -> None:
    urgent = _tenant_jobs(database, 20, priority=10)
    modest = _tenant_jobs(database, 2, priority=-10)
    assert _take(database, settings, 3) == urgent[:3]
    _back_in_time(database, PATIENCE_S + 1, modest)
    assert _take(database, settings, 3) == [modest[0], *urgent[3:5]]
    with database.write() as session:
        moment = now() - timedelta(seconds=PATIENCE_S + 1)
        tenant_id = session.get_one(Job, modest[0]).tenant_id
        session.execute(update(Tenant).where(Tenant.id == tenant_id).values(last_claim_at=moment))
    assert _take(database, settings, 2) == [modest[1], urgent[5]]


def test_an_abandoned_job_goes_on_before_others_begin(database: Database, settings: Settings) -> None:
    begun = new_job(database, max_attempts=2)
    _take(database, settings, 1)
    new_job(database, priority=10)
    _expire(database, begun)
    assert _take(database, settings, 1) == [begun]


def test_the_choice_jumps_from_tenant_to_tenant_and_reads_no_queue(database: Database, settings: Settings) -> None:
    tenants = [add_tenant(database) for _ in range(3)]
    owners = [(tenant_id, add_model(database, tenant_id)) for tenant_id in tenants]
    _copy(database, add_job(database, *owners[0]), owners, 10_000)
    with database.read() as session:
        statement = first_jobs("cpu", 1 << 30).compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        explain = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}[session.get_bind().dialect.name]
        plan = "\n".join(map(str, session.connection().exec_driver_sql(f"{explain} {statement}")))
    assert plan.count("ix_jobs_turn") >= 3, plan  # the first tenant, its highest priority, its oldest job
    assert not re.search(r"Seq Scan on jobs|SCAN jobs", plan), plan


def _copy(database: Database, job_id: str, owners: list[tuple[str, str]], count: int) -> None:
    job = read_job(database, job_id)
    row = {column.key: getattr(job, column.key) for column in Job.__table__.columns}
    with database.write() as session:
        session.execute(insert(Job), [{**row, **_place(number, owners)} for number in range(count)])
        session.execute(text("ANALYZE jobs"))


def _place(number: int, owners: list[tuple[str, str]]) -> dict[str, object]:
    tenant_id, model_id = owners[number % len(owners)]
    return {"id": f"job_{number:026}", "tenant_id": tenant_id, "model_id": model_id, "priority": number % 5}
