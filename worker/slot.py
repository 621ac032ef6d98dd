"""A device slot: one pool process of Celery, which works on one job at a time and keeps house besides."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from app.db.session import Database
from app.queue.outbox import sweep
from app.settings import Settings
from worker.claims import claim_next
from worker.execution import Execution
from worker.heartbeat import beat, leave
from worker.identity import new_worker_id
from worker.reaper import forget_workers, reap, remove_folders

logger = logging.getLogger(__name__)

CLOSE_WAIT_S = 10.0


class Slot:
    """Works when woken by a message, and looks at the table itself every `poll_s` seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = Database(settings.resolved_database_url)
        self._working = threading.Lock()
        self._stopping = threading.Event()
        self._job_id: str | None = None
        self.id = new_worker_id()

    def start(self) -> None:
        """Start the threads. Each ends with the process."""
        jobs: dict[str, tuple[Callable[[], None], float]] = {
            "poll": (self.work, self._settings.poll_s),
            "heartbeat": (self._beat, self._settings.heartbeat_s),
            "janitor": (self._keep_house, self._settings.sweep_s),
        }
        for name, (do, every_s) in jobs.items():
            threading.Thread(target=self._repeat, args=(name, do, every_s), name=name, daemon=True).start()

    def work(self) -> None:
        """Do jobs until there are none; waits while another thread of this slot works."""
        with self._working:
            while not self._stopping.is_set() and self._work_once():
                continue

    def stop(self) -> None:
        """Take no more jobs and give back the one in hand. Returns at once; safe in a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """Wait until the job in hand is given back, and sign off."""
        self.stop()
        if self._working.acquire(timeout=CLOSE_WAIT_S):
            self._working.release()
        try:
            leave(self._database, self.id)
        except DBAPIError:
            logger.warning("%s could not sign off", self.id)
        self._database.dispose()

    def _work_once(self) -> bool:
        claimed = claim_next(self._database, self._settings, self.id)
        if claimed is None:
            return False
        logger.info("%s: attempt %d begins on %s", claimed.job_id, claimed.fence.attempt, self.id)
        self._job_id = claimed.job_id
        try:
            Execution(self._database, self._settings, claimed.job_id, claimed.fence, self._stopping).run()
        finally:
            self._job_id = None
        return True

    def _repeat(self, name: str, do: Callable[[], None], every_s: float) -> None:
        """Call `do` again and again. The database may be away for a while, and a defect must not end the thread."""
        while not self._stopping.is_set():
            try:
                do()
            except DBAPIError as error:
                logger.warning("%s: the database does not answer: %s", name, type(error).__name__)
            except Exception:
                logger.exception("%s failed", name)
            self._stopping.wait(every_s)

    def _beat(self) -> None:
        beat(self._database, self.id, self._settings.device_class, self._job_id)

    def _keep_house(self) -> None:
        reap(self._database)
        remove_folders(self._database, self._settings.work_dir)
        forget_workers(self._database)
        sweep(self._database, self._settings)
