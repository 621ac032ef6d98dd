"""One attempt at one file of a sharded job: fetched, quantized, and put into the blob store for the assembly."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs import shards
from app.jobs.shards import ShardFence, ShardFile
from app.settings import Settings
from nupes_client.schemas.jobs import JobPhase
from worker.attempt import shard_context
from worker.failures import JobFailedError, reported_failure, unexpected_failure
from worker.holding import HeldShard
from worker.lease import Lease, Watch
from worker.orders import read_shard_orders
from worker.shardrunner import ShardRunner
from worker.shutdown import Shutdown
from worker.stages import Stages
from worker.supervisor import Stop, StoppedError
from worker.workfolder import shard_folder

logger = logging.getLogger(__name__)

REPORT_S = 1.0

End = Callable[[Session], None]


@dataclass(frozen=True)
class Place:
    """Where work is done: which database, which settings, which slot, and whether that is about to end."""

    database: Database
    settings: Settings
    owner: str
    shutdown: Shutdown


class ShardWork:
    """Does a claimed file. Leaves it done, failed, waiting for another attempt, or in the hands of somebody else."""

    def __init__(
        self,
        place: Place,
        fence: ShardFence,
        runner: ShardRunner,
        job_watch: Callable[[], Stop | None] | None = None,
    ) -> None:
        """Prepare; `job_watch` is asked besides, by a worker that holds the job too."""
        self._runner = runner
        self._place = place
        self._fence = fence
        attempts = (fence.job_attempt, fence.attempt)
        self._folder = shard_folder(place.settings.work_dir, fence.job_id, fence.position, *attempts)
        self._lease = Lease(place.database, place.settings, HeldShard(fence))
        self._own_watch = Watch(self._lease, place.database, place.shutdown)
        self._job_watch = job_watch
        self._relay = _ShardRelay(place.database, fence)
        self._attempts = 1

    def run(self) -> None:
        """Work on the file until it is done, has failed or has to stop."""
        with shard_context(self._fence), self._lease:
            logger.info("%s: file begins on %s", self._lease.holding.name, self._fence.owner)
            try:
                self._stages()
                end: End = self._finish
            except StoppedError as stopped:
                end = self._leave if stopped.reason is Stop.LEASE_LOST else self._give_back
            except JobFailedError as failed:
                end = self._ending_failed(failed)
            except Exception as error:  # a defect of ours must end the attempt, not the worker
                logger.exception("%s: the worker failed", self._lease.holding.name)
                end = self._ending_failed(unexpected_failure(error))
            except SystemExit:  # TERM reached the pool process itself
                self._lease.write_end(self._give_back)
                raise
            self._lease.write_end(end)

    def _stages(self) -> None:
        with self._place.database.read() as session:
            orders = read_shard_orders(session, self._place.settings, self._fence.job_id, self._fence.position)
        self._attempts = orders.max_attempts
        self._folder.prepare(orders.content)
        stages = Stages(self._place.settings, self._folder, self._relay, self._watch)
        stages.run("worker.fetcher", online=True)
        stages.run_shard(self._runner)
        stages.run("worker.uploader", online=True)

    def _watch(self) -> Stop | None:
        return (self._job_watch and self._job_watch()) or self._own_watch()

    def _finish(self, session: Session) -> None:
        shards.finish(session, self._fence, self._relay.files)
        shutil.rmtree(self._folder.shared, ignore_errors=True)

    def _give_back(self, session: Session) -> None:
        shards.give_back(session, self._fence)

    def _leave(self, session: Session) -> None:
        """Another worker holds the file, or the job has ended: write nothing."""

    def _ending_failed(self, failed: JobFailedError) -> End:
        again = failed.retryable and self._fence.attempt < self._attempts
        error = failed.to_error(JobPhase.QUANTIZING)
        pause_s = failed.pause_s(self._place.settings.retry_pause_s, self._fence.attempt)
        return lambda session: shards.fail(session, self._fence, error, again=again, pause_s=pause_s)


class _ShardRelay:
    """Takes the events of the children: how far they are, the files they left, why they gave up."""

    def __init__(self, database: Database, fence: ShardFence) -> None:
        self._database = database
        self._fence = fence
        self._written = 0.0
        self.files: list[ShardFile] = []
        self.failure: JobFailedError | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "progress": self._on_progress,
            "artifact": lambda data: self.files.append(ShardFile(data["path"], data["size"], data["sha256"])),
            "error": self._on_error,
        }

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event; the job's own worker says what else there is to say."""
        if handler := self._handlers.get(event["type"]):
            handler(event)

    def _on_progress(self, data: dict[str, Any]) -> None:
        if data["phase"] != JobPhase.QUANTIZING or time.monotonic() - self._written < REPORT_S:
            return
        self._written = time.monotonic()
        try:
            with self._database.write() as session:
                shards.report(session, self._fence, int(data["current"]))
        except DBAPIError as error:
            logger.warning("%s: progress was not written: %s", self._fence.job_id, type(error).__name__)

    def _on_error(self, data: dict[str, Any]) -> None:
        self.failure = reported_failure(data)
