"""One attempt at a job: its stages one after the other, each a child process, and the end of it in the database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import Job
from app.jobs.outcomes import fail, finish_cancel, requeue, succeed
from app.jobs.transitions import Fence, IllegalTransitionError, StaleFenceError, record
from app.settings import Settings
from nupes_client.schemas.jobs import JobPhase, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from worker import environment
from worker.child import Command
from worker.failures import JobFailedError, exit_failure, internal_failure, timeout_failure
from worker.lease import Lease, Watch
from worker.orders import read_orders
from worker.relay import Relay
from worker.supervisor import Stop, StoppedError, supervise
from worker.workfolder import JobFolder, job_folder

logger = logging.getLogger(__name__)

WRITE_PAUSE_S = 0.5

End = Callable[[Session, Job], None]


class Execution:
    """Runs a claimed job. Leaves the job ended, waiting for its next attempt, or in the hands of somebody else."""

    def __init__(
        self, database: Database, settings: Settings, job_id: str, fence: Fence, stopping: threading.Event
    ) -> None:
        self._database = database
        self._settings = settings
        self._job_id = job_id
        self._fence = fence
        self._stopping = stopping
        self._folder: JobFolder = job_folder(settings.work_dir, job_id)
        self._relay = Relay(database, job_id, fence)
        self._lease = Lease(database, settings, job_id, fence)

    def run(self) -> None:
        """Work on the job until it is done, has failed or has to stop."""
        with self._lease:
            try:
                self._stages()
                end: End = self._succeed
            except StoppedError as stopped:
                end = self._ends[stopped.reason]
            except JobFailedError as failed:
                end = self._ending_failed(failed)
            except Exception:  # a defect of ours must end the job, not the worker
                logger.exception("%s: the worker failed", self._job_id)
                end = self._ending_failed(internal_failure())
            except SystemExit:  # TERM reached the pool process itself
                self._write(self._give_back)
                raise
            self._write(end)

    def _stages(self) -> None:
        with self._database.read() as session:
            orders = read_orders(session, self._settings, self._job_id)
        self._folder.prepare(orders.content)
        self._relay.timeline = orders.timeline
        watch = Watch(self._lease, self._database, self._stopping, orders.timeout_s)
        self._stage(watch, "worker.fetcher", online=True)
        self._stage(watch, "worker.runner")
        self._relay.enter(JobPhase.VERIFYING)
        self._stage(watch, "worker.runner_check")
        self._relay.enter(JobPhase.PUBLISHING)
        self._stage(watch, "worker.uploader", online=True)
        if self._relay.result is None:
            raise JobFailedError(JobErrorCode.INTERNAL, "the work ended without a result")

    def _stage(self, watch: Watch, module: str, *, online: bool = False) -> None:
        status = self._child(watch, module, online=online)
        if self._relay.failure is not None:
            raise self._relay.failure
        if status != 0:
            raise exit_failure(status)

    def _child(self, watch: Watch, module: str, *, online: bool) -> int:
        make_env = environment.online if online else environment.offline
        env = make_env(self._settings, self._folder)
        command = Command(module, [str(self._folder.path)], env, self._folder.path, self._folder.log)
        started = time.monotonic()
        status = supervise(command, self._relay, watch, self._settings.cancel_grace_s)
        logger.info("%s: %s ended with %d after %.1f s", self._job_id, module, status, time.monotonic() - started)
        if status not in {0, 1}:
            logger.warning("%s: %s said: %s", self._job_id, module, _tail(self._folder))
        return status

    def _succeed(self, session: Session, job: Job) -> None:
        assert self._relay.result is not None
        succeed(session, job, self._fence, self._relay.result, self._relay.layers, self._relay.files)

    def _ending_failed(self, failed: JobFailedError) -> End:
        return lambda session, job: self._fail(session, job, failed)

    def _fail(self, session: Session, job: Job, failed: JobFailedError) -> None:
        """Give the job another attempt when that may help and one is left; else end it."""
        error = failed.to_error(self._relay.phase)
        if job.status == JobStatus.CANCELLING:
            finish_cancel(session, job, self._fence)
        elif failed.retryable and job.attempt < job.max_attempts:
            line = {"level": "warning", "message": f"attempt {job.attempt} failed ({error.code}): {error.message}"}
            record(session, job, "log", line, fence=self._fence)
            requeue(session, job, self._fence, reason=error.code)
        else:
            fail(session, job, self._fence, error)

    def _cancel(self, session: Session, job: Job) -> None:
        finish_cancel(session, job, self._fence)

    def _time_out(self, session: Session, job: Job) -> None:
        self._fail(session, job, timeout_failure(job.timeout_s))

    def _give_back(self, session: Session, job: Job) -> None:
        """Requeue without burning an attempt. This worker claims no more, so no older fence can fit again."""
        if job.status == JobStatus.CANCELLING:
            finish_cancel(session, job, self._fence)
            return
        requeue(session, job, self._fence, reason="worker_stopping")
        session.execute(update(Job).where(Job.id == job.id).values(attempt=Job.attempt - 1))

    def _leave(self, session: Session, job: Job) -> None:
        """Another worker holds the job: write nothing."""

    @property
    def _ends(self) -> dict[Stop, End]:
        return {
            Stop.LEASE_LOST: self._leave,
            Stop.CANCELLED: self._cancel,
            Stop.TIMEOUT: self._time_out,
            Stop.WORKER_STOPPING: self._give_back,
        }

    def _write(self, end: End) -> None:
        """Write the end in one transaction; wait for the database as long as the lease holds."""
        while not self._lease.lost:
            self._relay.write_points()
            try:
                with self._database.write() as session:
                    if job := session.get(Job, self._job_id):
                        end(session, job)
            except (StaleFenceError, IllegalTransitionError) as error:
                logger.warning("%s: the end was not written: %s", self._job_id, error)
            except DBAPIError as error:
                logger.warning("%s: the end is not written yet: %s", self._job_id, type(error).__name__)
                time.sleep(WRITE_PAUSE_S)
                continue
            return


def _tail(folder: JobFolder, size: int = 4000) -> str:
    """The last bytes of what the children printed, for the operator's log."""
    try:
        return folder.log.read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""
