"""Holding a job: the lease is renewed in the background, and whoever works on the job asks whether to go on."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from app.db.session import Database
from app.db.tables import Job
from app.jobs.transitions import Fence, renew
from app.settings import Settings
from nupes_client.schemas.jobs import JobStatus
from worker.supervisor import Stop

logger = logging.getLogger(__name__)

ASK_S = 0.4
"""How often the database is asked whether the job was cancelled."""


class Lease:
    """Renews the lease of one job until left; `lost` once somebody else may have taken it."""

    def __init__(self, database: Database, settings: Settings, job_id: str, fence: Fence) -> None:
        self._database = database
        self._settings = settings
        self.job_id = job_id
        self.fence = fence
        self.lost = False
        self._renewed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._over.set()

    def _keep(self) -> None:
        while not self.lost and not self._over.wait(self._settings.lease_renew_s):
            self._renew()

    def _renew(self) -> None:
        asked = time.monotonic()
        try:
            with self._database.write() as session:
                held = renew(session, self.job_id, self.fence, self._settings.lease_s)
        except DBAPIError as error:
            logger.warning("lease of %s not renewed: %s", self.job_id, type(error).__name__)
            self.lost = time.monotonic() - self._renewed > self._settings.lease_s
            return
        self._renewed = asked
        self.lost = not held and not self._over.is_set()


class Watch:
    """Answers, several times a second and cheaply, whether the work on a job has to stop."""

    def __init__(self, lease: Lease, database: Database, stopping: threading.Event, timeout_s: float) -> None:
        self._lease = lease
        self._database = database
        self._stopping = stopping
        self._deadline = time.monotonic() + timeout_s
        self._ask_at = 0.0

    def __call__(self) -> Stop | None:
        """Return why to stop, or None."""
        status = self._status()
        if self._lease.lost or status is JobStatus.QUEUED:
            return Stop.LEASE_LOST
        if status is JobStatus.CANCELLING:
            return Stop.CANCELLED
        if self._stopping.is_set():
            return Stop.WORKER_STOPPING
        return Stop.TIMEOUT if time.monotonic() > self._deadline else None

    def _status(self) -> JobStatus | None:
        """Return the status when it is time to ask and the database answers."""
        if time.monotonic() < self._ask_at:
            return None
        self._ask_at = time.monotonic() + ASK_S
        statement = select(Job.status).where(Job.id == self._lease.job_id, self._lease.fence.condition())
        try:
            with self._database.read() as session:
                status = session.scalar(statement)
        except DBAPIError:
            return None
        return JobStatus(status) if status else JobStatus.QUEUED  # no row: it is held by us no longer
