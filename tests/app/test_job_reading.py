"""Reading what several tenants ask for in one query: each finds its own jobs and no other's."""

from __future__ import annotations

import asyncio

import pytest

from app.core.problems import NotFoundError
from app.jobs import repository
from app.jobs.reading import JobReader
from tests.app.api import Api


def test_tenants_that_ask_together_find_their_own_jobs_alone(api: Api) -> None:
    other = api.another_tenant()
    own, others = api.add_job(), other.add_job()
    asked = [(tenant, job) for tenant in (api.tenant_id, other.tenant_id) for job in (own, others, "job_unknown")]
    readable = {(api.tenant_id, own), (other.tenant_id, others)}
    with api.database.glance() as session:
        assert set(repository.states_of_tenants(session, asked)) == readable
    with api.database.glance() as session:
        assert set(repository.of_tenants(session, asked)) == readable


def test_many_readers_at_once_each_get_their_job_or_none(api: Api) -> None:
    jobs = [api.add_job(name=f"job {number}") for number in range(30)]
    stranger = api.another_tenant().tenant_id
    reader = JobReader(api.database)

    async def read(job_id: str) -> str | None:
        state, job = await asyncio.gather(reader.state(api.tenant_id, job_id), reader.job(api.tenant_id, job_id))
        assert (state.version, state.status) == (job.version, job.status)
        with pytest.raises(NotFoundError):
            await reader.job(stranger, job_id)
        return job.name

    async def read_all() -> list[str | None]:
        return await asyncio.gather(*(read(job_id) for job_id in jobs))

    assert asyncio.run(read_all()) == [f"job {number}" for number in range(30)]
    reader.close()


def test_an_id_that_can_not_be_asked_for_spoils_no_other_answer(api: Api) -> None:
    job_id, reader = api.add_job(), JobReader(api.database)

    async def read_both() -> list[object]:
        asked = [reader.state(api.tenant_id, each) for each in ("a\0b", job_id, "\ud800")]
        return await asyncio.gather(*asked, return_exceptions=True)

    spoilt, found, unspellable = asyncio.run(read_both())
    assert isinstance(spoilt, Exception)
    assert isinstance(unspellable, Exception)
    assert isinstance(found, repository.JobState)
    reader.close()
