"""Jobs that are written together: each whole, and none the worse for another that can not be written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import IntegrityError

from app.core.ids import new_id
from app.core.problems import TooManyRequestsError
from app.core.security import Principal
from app.db.session import Database
from app.db.tables import AuditEntry, IdempotencyKey, Job, JobEvent, JobLabel, OutboxMessage, UsageEntry
from app.jobs.idempotency import AnsweredError, Once
from app.jobs.writing import JobWriter, NewJob
from app.settings import Settings
from tests.app.jobrows import add_model, add_tenant

TABLES = (Job, JobEvent, JobLabel, OutboxMessage, UsageEntry, AuditEntry)


@pytest.fixture
def limits() -> dict[str, int]:
    """Quotas of the service; none."""
    return {"quota_active_jobs": 0, "quota_jobs_per_day": 0}


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database_url: str, limits: dict[str, int]) -> Settings:
    return make_settings(database_url=database_url, **limits)


@pytest.fixture
def writer(database: Database, settings: Settings) -> Iterator[JobWriter]:
    writer = JobWriter(database, settings)
    yield writer
    writer.close()


def new_job(tenant_id: str, model_id: str, key: str | None = None) -> NewJob:
    config = {"optimize": {"mode": "data_free"}}
    job = Job(
        id=new_id("job"), tenant_id=tenant_id, model_id=model_id, config=config, config_hash="0" * 64, labels={"a": "1"}
    )
    who = Principal(tenant_id, "key_1", frozenset())
    return NewJob(job, (), who, Once(tenant_id, key, dict), cached=False)


@contextmanager
def held_up(database: Database) -> Iterator[None]:
    """Let nobody write jobs for the moment, so that those who want to come together."""
    with database.write() as session:
        if database.engine.dialect.name == "postgresql":
            session.execute(text("LOCK TABLE jobs IN EXCLUSIVE MODE"))
        yield
        time.sleep(0.5)


def write_together(database: Database, writer: JobWriter, news: list[NewJob]) -> list[BaseException | None]:
    with ThreadPoolExecutor(len(news)) as pool:
        with held_up(database):
            written = [pool.submit(writer.write, new) for new in news]
        return [each.exception(60) for each in written]


def counts(database: Database) -> list[int]:
    with database.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) or 0 for table in TABLES]


@contextmanager
def counting_commits(engine: Engine) -> Iterator[list[None]]:
    commits: list[None] = []

    def note(_: object) -> None:
        commits.append(None)

    event.listen(engine, "commit", note)
    yield commits
    event.remove(engine, "commit", note)


def test_jobs_that_come_together_are_written_in_fewer_transactions_each_with_all_its_rows(
    database: Database, writer: JobWriter
) -> None:
    tenants = [add_tenant(database) for _ in range(2)]
    models = [add_model(database, tenant) for tenant in tenants]
    news = [new_job(tenants[number % 2], models[number % 2]) for number in range(12)]
    with counting_commits(database.engine) as commits:
        assert write_together(database, writer, news) == [None] * 12
    assert len(commits) < 1 + 12
    assert counts(database) == [12] * len(TABLES)
    with database.read() as session:
        assert {(job.id, job.tenant_id) for job in session.scalars(select(Job))} == {
            (new.job.id, new.job.tenant_id) for new in news
        }


def test_a_job_that_can_not_be_written_keeps_no_other_from_it(database: Database, writer: JobWriter) -> None:
    tenant = add_tenant(database)
    model = add_model(database, tenant)
    news = [new_job(tenant, model if number % 3 else "mdl_gone") for number in range(9)]
    errors = write_together(database, writer, news)
    assert [type(error) for error in errors] == [IntegrityError, type(None), type(None)] * 3
    assert counts(database) == [6] * len(TABLES)


def test_equal_requests_that_are_written_together_make_one_job(database: Database, writer: JobWriter) -> None:
    tenant = add_tenant(database)
    model = add_model(database, tenant)
    errors = write_together(database, writer, [new_job(tenant, model, key="same") for _ in range(6)])
    assert [type(error) for error in errors if error] == [AnsweredError] * 5
    assert counts(database) == [1] * len(TABLES)
    with database.read() as session:
        made = session.scalars(select(Job.id)).one()
        assert session.scalars(select(IdempotencyKey.resource_id)).one() == made
    assert {error.resource_id for error in errors if isinstance(error, AnsweredError)} == {made}


@pytest.mark.parametrize("limits", [{"quota_active_jobs": 3, "quota_jobs_per_day": 0}])
def test_a_quota_holds_for_jobs_that_are_written_together(database: Database, writer: JobWriter) -> None:
    tenant, other = add_tenant(database), add_tenant(database)
    model, others = add_model(database, tenant), add_model(database, other)
    news = [*(new_job(tenant, model) for _ in range(8)), new_job(other, others)]
    errors = write_together(database, writer, news)
    assert [error for error in errors[:8] if error is None] == [None] * 3
    assert sum(isinstance(error, TooManyRequestsError) for error in errors) == 5
    assert errors[8] is None
    assert counts(database) == [4] * len(TABLES)
