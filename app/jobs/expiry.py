"""Jobs that no worker ever takes end too: `queue_timeout_s` is the time a job may wait for its first worker.

Every worker looks, and so does the service itself: where no worker runs, there is nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from sqlalchemy.exc import DBAPIError

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Job
from app.jobs import repository
from app.jobs.outcomes import fail
from app.jobs.transitions import IllegalTransitionError, StaleFenceError
from nupes_client.schemas.jobs import JobError, JobStatus
from nupes_client.schemas.problems import JobErrorCode

BATCH = 100

logger = logging.getLogger(__name__)


def expire_waiting(database: Database) -> list[str]:
    """Fail jobs that waited too long, some at a time; return their ids. Any number of processes may do it at once."""
    with database.read() as session:
        overdue = repository.overdue(session, now(), BATCH)
    return [job_id for job_id in overdue if _expire(database, job_id)]


@asynccontextmanager
async def watching_the_queue(database: Database, every_s: float) -> AsyncIterator[None]:
    """Call `expire_waiting` now and then, until left."""
    task = asyncio.get_running_loop().create_task(_watch(database, every_s))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(database: Database, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await anyio.to_thread.run_sync(expire_waiting, database)
        except DBAPIError as error:
            logger.warning("waiting jobs could not be looked at: %s", type(error).__name__)


def _expire(database: Database, job_id: str) -> bool:
    """Decide again on the row as it is now; False when a worker was faster."""
    try:
        with database.write() as session:
            job = session.get(Job, job_id, with_for_update=True)
            if job is None or job.status != JobStatus.QUEUED or job.started_at is not None:
                return False
            fail(session, job, None, _too_long(job))
    except (StaleFenceError, IllegalTransitionError):
        return False
    logger.warning("%s waited for %d s and no worker took it", job_id, job.queue_timeout_s)
    return True


def _too_long(job: Job) -> JobError:
    return JobError(
        code=JobErrorCode.TIMEOUT,
        message=f"no worker took the job within its queue_timeout_s of {job.queue_timeout_s}",
        retryable=True,
        hint=f"See GET /v1/workers: is one of class {job.device_class} alive? Retry the job, or raise queue_timeout_s.",
    )
