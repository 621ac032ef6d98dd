"""Files of a sharded job: who may take them, and who may write about them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job, JobShard, JobShardFile, OutboxMessage
from app.jobs import shards
from app.jobs.outcomes import finish_cancel, requeue
from app.jobs.service import cancel
from app.jobs.shards import ShardFence, ShardFile
from app.jobs.transitions import Fence, StaleFenceError
from app.models.headers import to_json
from app.settings import Settings
from nupes_client.schemas.jobs import JobError, JobStatus, ShardStatus
from nupes_client.schemas.problems import JobErrorCode
from nupes_core.modelfolder import open_folder
from nupes_core.plan import ShardPlan
from tests.app.api import Api, open_api
from tests.app.jobrows import claim, new_job, read_job
from tests.worker.factory import write_sharded_llama
from worker.claims import claim_shard
from worker.heartbeat import SlotFacts, beat
from worker.reaper import reap_shards

ERROR = JobError(code=JobErrorCode.NUMERICS_NAN, message="not a number")
PLANS = [ShardPlan(f"model-{index}.safetensors", 10 * (index + 1), 1 << 20) for index in range(3)]


def sharded_job(database: Database, *, held_by: str | None = "holder", **columns: Any) -> str:
    """A running job of three files."""
    job_id = new_job(database, **columns)
    with database.write() as session:
        shards.add(session, session.get_one(Job, job_id), PLANS)
    if held_by:
        claim(database, job_id, held_by)
    return job_id


def rows(database: Database, job_id: str) -> list[JobShard]:
    with database.read() as session:
        return list(shards.of_job(session, job_id))


def take(database: Database, settings: Settings, owner: str = "w") -> ShardFence:
    fence = claim_shard(database, settings, owner)
    assert fence is not None
    return fence


def test_each_file_goes_to_one_worker_however_many_reach_for_it(database: Database, settings: Settings) -> None:
    job_ids = {sharded_job(database) for _ in range(3)}

    def work(number: int) -> list[tuple[str, int]]:
        taken = []
        while fence := claim_shard(database, settings, f"w{number}"):
            taken.append((fence.job_id, fence.position))
        return taken

    with ThreadPoolExecutor(5) as pool:
        taken = [each for mine in pool.map(work, range(5)) for each in mine]
    assert sorted(taken) == sorted((job_id, position) for job_id in job_ids for position in range(3))


def test_files_of_a_job_are_taken_only_while_it_runs_and_where_they_fit(database: Database, settings: Settings) -> None:
    job_id = sharded_job(database, held_by=None)
    assert claim_shard(database, settings, "w") is None
    fence = claim(database, job_id, "holder")
    assert claim_shard(database, settings.model_copy(update={"memory_bytes": (1 << 20) - 1}), "w") is None
    assert claim_shard(database, settings.model_copy(update={"device_class": "gpu"}), "w") is None
    assert take(database, settings).position == 0
    with database.write() as session:
        requeue(session, session.get_one(Job, job_id), fence, reason="test")
    assert claim_shard(database, settings, "w") is None


def test_a_drained_worker_takes_files_of_the_job_it_holds_only(database: Database, settings: Settings) -> None:
    sharded_job(database, held_by="holder")
    for name in ("holder", "helper"):
        beat(database, SlotFacts(name, "cpu", 1 << 40), None, draining=True)
    assert claim_shard(database, settings, "helper") is None
    assert claim_shard(database, settings, "holder") is not None


def test_whoever_lost_a_file_can_write_nothing_about_it(database: Database, settings: Settings) -> None:
    job_id = sharded_job(database)
    lost = take(database, settings, "first")
    with database.write() as session:
        shards.give_back(session, lost)
    again = take(database, settings, "second")
    assert (again.position, again.attempt) == (lost.position, 1)
    with database.write() as session:
        assert not shards.renew(session, lost, 60)
        assert not shards.report(session, lost, 5)
        for write in (
            lambda: shards.finish(session, lost, []),
            lambda: shards.give_back(session, lost),
            lambda: shards.fail(session, lost, ERROR, again=True),
        ):
            with pytest.raises(StaleFenceError):
                write()
        assert shards.renew(session, again, 60)
        shards.finish(session, again, [ShardFile("shard.json", 3, "a" * 64)])
    assert [row.status for row in rows(database, job_id)] == ["done", "queued", "queued"]


def test_a_lost_worker_costs_an_attempt_and_after_the_last_the_file_has_failed(
    database: Database, settings: Settings
) -> None:
    job_id = sharded_job(database, max_attempts=2)
    for expected in (ShardStatus.QUEUED, ShardStatus.FAILED):
        fence = take(database, settings)
        assert reap_shards(database) == []
        with database.write() as session:
            session.execute(update(JobShard).values(lease_until=now() - timedelta(seconds=1)))
        assert reap_shards(database) == [fence]
        assert rows(database, job_id)[0].status == expected
    error = rows(database, job_id)[0].error
    assert error is not None
    assert error["code"] == "worker_lost"


def test_the_next_attempt_of_the_job_opens_what_failed_keeps_what_is_done_and_wakes_for_the_rest(
    database: Database, settings: Settings
) -> None:
    job_id = sharded_job(database)
    with database.write() as session:
        session.execute(OutboxMessage.__table__.delete())
        shards.finish(session, take_in(session, settings), [])
    with database.write() as session:
        shards.fail(session, take_in(session, settings), ERROR, again=False)
    with database.write() as session:
        assert shards.reopen(session, session.get_one(Job, job_id)) == 2
    assert [row.status for row in rows(database, job_id)] == ["done", "queued", "queued"]
    assert [row.attempt for row in rows(database, job_id)] == [1, 0, 0]
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(OutboxMessage)) == 2
        assert shards.params_done(session, job_id) == (10, 60)


def test_a_file_that_failed_is_left_alone_until_its_pause_is_over(database: Database, settings: Settings) -> None:
    job_id = sharded_job(database)
    with database.write() as session:
        failed = take_in(session, settings)
        shards.fail(session, failed, ERROR, again=True, pause_s=60)
    with database.write() as session:
        waiting = shards.candidates(session, settings.device_class, 1 << 40, job_id, 9)
        assert [shard.position for shard in waiting] == [1, 2]
        paused = session.get_one(JobShard, (job_id, failed.position))
        assert shards.claim(session, paused, "w", 60) is None
        paused.lease_until = now()
    with database.write() as session:
        assert take_in(session, settings).position == failed.position


def take_in(session: Any, settings: Settings) -> ShardFence:
    (shard,) = shards.candidates(session, settings.device_class, 1 << 40, None, 1)
    fence = shards.claim(session, shard, "w", 60)
    assert fence is not None
    return fence


def test_what_finished_files_left_is_let_go_when_the_job_has_ended(database: Database, settings: Settings) -> None:
    job_id = sharded_job(database)
    with database.write() as session:
        shards.finish(session, take_in(session, settings), [ShardFile("shard.json", 3, "a" * 64)])
    reap_shards(database)
    with database.read() as session:
        assert len(session.scalars(select(JobShardFile)).all()) == 1
    with database.write() as session:
        job = cancel(session, read_job(database, job_id).tenant_id, job_id)
        finish_cancel(session, job, Fence("holder", 1))
    assert read_job(database, job_id).status == JobStatus.CANCELLED
    reap_shards(database)
    with database.read() as session:
        assert session.scalars(select(JobShardFile)).all() == []


def test_sharded_jobs_without_data_are_split_and_show_their_files(
    make_settings: Any, sqlite_url: str, tmp_path: Path
) -> None:
    folder = open_folder(write_sharded_llama(tmp_path / "model", layers=2))

    def names(api: Api, **wish: Any) -> list[str]:
        model_id = api.add_model(config=dict(folder.config), headers=to_json(folder.headers))
        job = api.post("/v1/jobs", json=api.body(model_id, **wish)).json()
        page = api.get(f"/v1/jobs/{job['id']}/shards?limit=2").json()
        found = page["data"]
        while page["has_more"]:
            page = api.get(f"/v1/jobs/{job['id']}/shards?limit=2&cursor={page['next_cursor']}").json()
            found += page["data"]
        return [each["name"] for each in found]

    with open_api(make_settings(database_url=sqlite_url, fan_out_bytes=0)) as api:
        assert names(api) == sorted(folder.headers)
        assert names(api, optimize={"mode": "data_driven"}) == []
        assert names(api, weights={"exponent": {"scope": "global"}}) == []
        assert names(api, activations={"scaling": "static"}, calibration={}) == []
    with open_api(make_settings(database_url=sqlite_url)) as api:
        assert names(api) == [], "too small to be worth it"
