"""One attempt at a job: its stages one after the other, each a child process, and the end of it in the database."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.tables import Job
from app.jobs import cache
from app.jobs.outcomes import conclude, fail, finish_cancel, publish, requeue, succeed
from app.jobs.transitions import Fence, record
from app.settings import Settings
from app.storage import open_store
from nupes_client.schemas.jobs import JobPhase, JobStatus
from nupes_client.schemas.problems import JobErrorCode
from worker.attempt import attempt_context
from worker.failures import JobFailedError, timeout_failure, unexpected_failure
from worker.fanout import FanOut
from worker.holding import HeldJob
from worker.lease import Lease, Watch
from worker.orders import read_orders
from worker.pushing import read_push
from worker.relay import Relay
from worker.shardwork import Place
from worker.shutdown import Shutdown
from worker.stages import Stages
from worker.supervisor import Stop, StoppedError
from worker.workfolder import JobFolder, job_folder

logger = logging.getLogger(__name__)

End = Callable[[Session, Job], None]


class Execution:
    """Runs a claimed job. Leaves the job ended, waiting for its next attempt, or in the hands of somebody else."""

    def __init__(self, database: Database, settings: Settings, job_id: str, fence: Fence, shutdown: Shutdown) -> None:
        self._database = database
        self._settings = settings
        self._job_id = job_id
        self._fence = fence
        self._shutdown = shutdown
        self._folder: JobFolder = job_folder(settings.work_dir, job_id, fence.attempt)
        self._relay = Relay(database, job_id, fence)
        self._lease = Lease(database, settings, HeldJob(job_id, fence))

    def run(self) -> None:
        """Work on the job until it is done, has failed or has to stop."""
        with attempt_context(self._database, self._job_id, self._fence.attempt), self._lease:
            try:
                end: End = self._leave if self._answered() else self._work()
            except StoppedError as stopped:
                end = self._ends[stopped.reason]
            except JobFailedError as failed:
                end = self._ending_failed(failed)
            except Exception as error:  # a defect of ours must end the job, not the worker
                logger.exception("%s: the worker failed", self._job_id)
                end = self._ending_failed(unexpected_failure(error))
            except SystemExit:  # TERM reached the pool process itself
                self._write(self._give_back)
                raise
            self._write(end)

    def _answered(self) -> bool:
        """Give the job the result of an equal one that ended while this one waited; True when it ended with that."""
        with self._database.read() as session:
            job = session.get_one(Job, self._job_id)
            if job.result is not None or not job.cache or cache.find(session, job) is None:
                return False
            if not cache.lasting(session, open_store(self._settings), job):  # opened for an answer alone: S3 is slow
                return False
        with self._database.write() as session:
            job = session.get_one(Job, self._job_id)
            answer = cache.find(session, job, lock=True)
            if answer is not None:
                cache.answer_from(session, job, answer, self._fence)
            return JobStatus(job.status).is_terminal

    def _work(self) -> End:
        with self._database.read() as session:
            orders = read_orders(session, self._settings, self._job_id)
        self._folder.prepare(orders.content)
        self._relay.timeline = orders.timeline
        watch = Watch(self._lease, self._database, self._shutdown, orders.timeout_s)
        stages = Stages(self._settings, self._folder, self._relay, watch)
        if not orders.published:
            self._compute(stages, watch, sharded=orders.sharded)
        if orders.pushes:
            self._push(stages, published=orders.published)
            return self._conclude
        return self._succeed

    def _compute(self, stages: Stages, watch: Watch, *, sharded: bool) -> None:
        stages.run("worker.fetcher", online=True)
        if sharded:
            self._share(watch)
            stages.run("worker.fetcher", online=True)
        stages.run("worker.runner")
        self._relay.enter(JobPhase.VERIFYING)
        stages.run("worker.runner_check")
        self._relay.enter(JobPhase.PUBLISHING)
        stages.run("worker.uploader", online=True)
        if self._relay.result is None:
            raise JobFailedError(JobErrorCode.INTERNAL, "the work ended without a result")

    def _push(self, stages: Stages, *, published: bool) -> None:
        """Take the result to the hub. Before that it is written: however the push ends, its files stay."""
        if not published:
            self._write(self._publish)
        self._relay.enter(JobPhase.PUSHING)
        with self._database.write() as session:
            push = read_push(session, self._settings, self._job_id, self._fence)
        self._folder.prepare(push.content)
        stages.run_pusher(push.token)
        if self._relay.pushed is None:
            raise JobFailedError(JobErrorCode.INTERNAL, "the push ended without a commit")

    def _share(self, watch: Watch) -> None:
        """Do the files of the model together with other workers; then what they left is fetched, too."""
        place = Place(self._database, self._settings, self._fence.owner, self._shutdown)
        FanOut(place, self._job_id, self._relay, watch).run()
        with self._database.read() as session:
            orders = read_orders(session, self._settings, self._job_id)
        self._folder.prepare(orders.content)

    def _publish(self, session: Session, job: Job) -> None:
        assert self._relay.result is not None
        publish(session, job, self._fence, self._relay.result, self._relay.layers, self._relay.files)

    def _conclude(self, session: Session, job: Job) -> None:
        assert self._relay.pushed is not None
        conclude(session, job, self._fence, self._relay.pushed)

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
            pause_s = failed.pause_s(self._settings.retry_pause_s, job.attempt)
            requeue(session, job, self._fence, reason=error.code, pause_s=pause_s)
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
        """Another worker holds the job, or it has ended: write nothing."""

    @property
    def _ends(self) -> dict[Stop, End]:
        return {
            Stop.LEASE_LOST: self._leave,
            Stop.CANCELLED: self._cancel,
            Stop.TIMEOUT: self._time_out,
            Stop.WORKER_STOPPING: self._give_back,
        }

    def _write(self, end: End) -> None:
        def write(session: Session) -> None:
            if job := session.get(Job, self._job_id):
                end(session, job)

        self._lease.write_end(write, before=self._relay.write_points)
