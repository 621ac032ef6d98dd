"""The worker that holds a sharded job: takes part in the work on its files, and waits until all are done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from app.db.session import Database
from app.db.tables import Job, JobShard
from app.jobs import shards
from app.jobs.transitions import record
from app.queue.outbox import deliver
from nupes_client.schemas.jobs import JobError, JobPhase, ShardStatus
from worker.claims import claim_shard
from worker.failures import JobFailedError
from worker.relay import Relay
from worker.shardrunner import ShardRunner
from worker.shardwork import REPORT_S, Place, ShardWork
from worker.supervisor import Stop, StoppedError

logger = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often the database is asked whether the others are done."""


class FanOut:
    """Brings all files of one job to their end, with the help of whoever is idle."""

    def __init__(self, place: Place, job_id: str, relay: Relay, watch: Callable[[], Stop | None]) -> None:
        self._place = place
        self._job_id = job_id
        self._relay = relay
        self._job_watch = watch
        self._reported = 0.0

    @property
    def _database(self) -> Database:
        return self._place.database

    def run(self) -> None:
        """Return once every file is done.

        Raises:
            JobFailedError: one has failed for good.
            StoppedError: the job was cancelled, ran out of time, or this worker has to end.
        """
        self._relay.enter(JobPhase.QUANTIZING)
        self._open()
        with ShardRunner(self._place.settings, self._job_id) as runner:
            while not self._all_done():
                if reason := self._watch():
                    raise StoppedError(reason)
                if not self._work_once(runner):
                    time.sleep(LOOK_S)

    def _open(self) -> None:
        """Write and publish one wake-up for each file that waits; without a broker workers look all the same."""
        with self._database.write() as session:
            job = session.get_one(Job, self._job_id)
            waiting = shards.reopen(session, job)
            line = {"level": "info", "message": f"{waiting} files of the model wait for any worker"}
            record(session, job, "log", line, fence=self._relay.fence)
        deliver(self._database, self._place.settings, self._job_id)

    def _all_done(self) -> bool:
        with self._database.read() as session:
            rows = shards.of_job(session, self._job_id)
        _raise_failure(rows)
        return all(row.status == ShardStatus.DONE for row in rows)

    def _work_once(self, runner: ShardRunner) -> bool:
        fence = claim_shard(self._database, self._place.settings, self._place.owner, self._job_id)
        if fence is None:
            return False
        ShardWork(self._place, fence, runner, self._watch).run()
        return True

    def _watch(self) -> Stop | None:
        if time.monotonic() - self._reported > REPORT_S:
            self._reported = time.monotonic()
            self._report()
        return self._job_watch()

    def _report(self) -> None:
        with self._database.read() as session:
            done, total = shards.params_done(session, self._job_id)
        phase = JobPhase.QUANTIZING.value
        self._relay({"type": "progress", "phase": phase, "current": done, "total": total, "unit": "params"})


def _raise_failure(rows: Sequence[JobShard]) -> None:
    for row in rows:
        if row.status == ShardStatus.FAILED and row.error:
            error = JobError.model_validate(row.error)
            raise JobFailedError(error.code, f"{row.name}: {error.message}", hint=error.hint, retryable=error.retryable)
