"""What every log line and every span of one attempt carries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import select

from app.core import tracing
from app.db.session import Database
from app.db.tables import Job
from app.jobs.shards import ShardFence


@contextmanager
def attempt_context(database: Database, job_id: str, attempt: int) -> Iterator[None]:
    """Bind job and attempt to the log lines of this thread, and go on with the trace of the request behind the job."""
    with structlog.contextvars.bound_contextvars(job_id=job_id, attempt=attempt):
        parent = _traceparent(database, job_id) if tracing.is_on() else None
        names: dict[str, str | int] = {"nupes.job_id": job_id, "nupes.attempt": attempt}
        with tracing.span("job attempt", parent=parent, kind="consumer", **names):
            yield


@contextmanager
def shard_context(fence: ShardFence) -> Iterator[None]:
    """Bind job, attempt and file to the log lines of the work on one file, whoever holds the job."""
    names = {"job_id": fence.job_id, "attempt": fence.job_attempt, "file": fence.position}
    with structlog.contextvars.bound_contextvars(**names, file_attempt=fence.attempt):
        yield


def _traceparent(database: Database, job_id: str) -> str | None:
    with database.read() as session:
        return session.scalar(select(Job.traceparent).where(Job.id == job_id))
