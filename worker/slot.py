"""A device slot: one pool process of Celery, which works on one job at a time and keeps house besides."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from sqlalchemy.exc import DBAPIError

from app.audit.retention import forget_old_records
from app.core import tracing
from app.db.session import Database
from app.jobs.expiry import expire_waiting
from app.jobs.routing import route
from app.jobs.shards import ShardFence
from app.queue.outbox import sweep
from app.settings import Settings
from app.webhooks.results import tidy
from app.workers.memory import usable_memory
from worker.claims import claim_next, claim_shard, job_waits
from worker.courier import Courier
from worker.execution import Execution
from worker.heartbeat import SlotFacts, beat, leave
from worker.housekeeping import Housekeeping
from worker.identity import new_worker_id
from worker.isolation import isolation
from worker.reaper import forget_workers, reap, reap_shards, remove_folders
from worker.shardrunner import ShardRunner
from worker.shardwork import Place, ShardWork
from worker.shutdown import Shutdown

logger = logging.getLogger(__name__)

CLOSE_WAIT_S = 10.0
RETENTION_S = 3600.0


class Slot:
    """Works when woken by a message, and looks at the table itself every `poll_s` seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.resolved_database_url)
        self._working = threading.Lock()
        self._shutdown = Shutdown(settings.drain_grace_s)
        self._closed = threading.Event()
        self._draining = self._seen = False
        self._courier = Courier(self._database, settings, self._closed)
        self._job_id: str | None = None
        self.id = new_worker_id()
        self._housekeeping = Housekeeping(self._database, settings, self.id)

    @cached_property
    def _facts(self) -> SlotFacts:
        return SlotFacts(self.id, self._settings.device_class, usable_memory(self._settings), isolation())

    def start(self) -> None:
        """Start the threads. Each ends with the process."""
        tracing.start(self._settings, "nupes-worker")
        jobs: dict[str, tuple[Callable[[], None], float]] = {
            "poll": (self.work, self._settings.poll_s),
            "heartbeat": (self._beat, self._settings.heartbeat_s),
            "courier": (self._courier.work, self._settings.poll_s),
            "janitor": (self._keep_house, self._settings.sweep_s),
            "retention": (self._forget, RETENTION_S),
            "housekeeping": (self._housekeeping.round, self._settings.housekeep_s),
        }
        for name, (do, every_s) in jobs.items():
            threading.Thread(target=self._repeat, args=(name, do, every_s), name=name, daemon=True).start()

    def work(self) -> None:
        """Do jobs until there are none; waits while another thread of this slot works."""
        with self._working:
            while not self._takes_nothing() and self._work_once():
                continue

    def stop(self, *, at_once: bool = False) -> None:
        """Take no more jobs; finish the one in hand in the grace time or give it back. Safe in a signal handler.

        `at_once`: give it back without grace.
        """
        self._shutdown.begin()
        if at_once:
            self._shutdown.hurry()

    def close(self, *, at_once: bool = False) -> None:
        """Wait until the job in hand is finished or given back, and sign off; `at_once`: given back, without grace."""
        self.stop(at_once=at_once)
        if self._working.acquire(timeout=self._settings.drain_grace_s + CLOSE_WAIT_S):
            self._working.release()
        self._closed.set()
        try:
            leave(self._database, self.id)
        except DBAPIError:
            logger.warning("%s could not sign off", self.id)
        self._database.dispose()
        tracing.stop()

    def _work_once(self) -> bool:
        """Do a job, or else files of a job that another worker holds: splitting uses what would be idle."""
        return self._do_job() or self._do_shards()

    def _do_job(self) -> bool:
        claimed = claim_next(self._database, self._settings, self.id)
        if claimed is None:
            return False
        logger.info("%s: attempt %d begins on %s", claimed.job_id, claimed.fence.attempt, self.id)
        with self._busy_with(claimed.job_id):
            Execution(self._database, self._settings, claimed.job_id, claimed.fence, self._shutdown).run()
        return True

    def _do_shards(self) -> bool:
        """Do files of one job as long as there are any and no job waits for this worker."""
        fence = claim_shard(self._database, self._settings, self.id)
        if fence is None:
            return False
        place = Place(self._database, self._settings, self.id, self._shutdown)
        with self._busy_with(fence.job_id), ShardRunner(self._settings, fence.job_id) as runner:
            while fence is not None:
                ShardWork(place, fence, runner).run()
                fence = self._next_shard(fence.job_id)
        return True

    def _next_shard(self, job_id: str) -> ShardFence | None:
        if self._takes_nothing() or job_waits(self._database, self._settings):
            return None
        return claim_shard(self._database, self._settings, self.id, job_id)

    @contextmanager
    def _busy_with(self, job_id: str) -> Iterator[None]:
        self._job_id = job_id
        try:
            yield
        finally:
            self._job_id = None

    def _repeat(self, name: str, do: Callable[[], None], every_s: float) -> None:
        """Call `do` again and again. The database may be away for a while, and a defect must not end the thread."""
        while not self._closed.is_set():
            try:
                do()
            except DBAPIError as error:
                logger.warning("%s: the database does not answer: %s", name, type(error).__name__)
            except Exception:
                logger.exception("%s failed", name)
            self._closed.wait(every_s)

    def _beat(self) -> None:
        self._draining = beat(self._database, self._facts, self._job_id, draining=self._shutdown.begun)
        self._seen = True

    def _takes_nothing(self) -> bool:
        return self._draining or self._shutdown.begun

    def _forget(self) -> None:
        forget_old_records(self._database, self._settings)

    def _keep_house(self) -> None:
        reap(self._database)
        reap_shards(self._database)
        if self._seen:  # who counts the workers must be among them
            route(self._database)
        expire_waiting(self._database)
        remove_folders(self._database, self._settings.work_dir)
        forget_workers(self._database)
        sweep(self._database, self._settings)
        tidy(self._database)
