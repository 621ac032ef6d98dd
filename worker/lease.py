"""Holding on: the lease is renewed in the background, and whoever does the work asks whether to go on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs.transitions import IllegalTransitionError, StaleFenceError
from app.settings import Settings
from worker.holding import Holding
from worker.shutdown import Shutdown
from worker.supervisor import Stop

logger = logging.getLogger(__name__)

ASK_S = 0.4
"""How often the database is asked whether the job was cancelled."""

WRITE_PAUSE_S = 0.5
"""Between tries to write the end while the database is away."""


class Lease:
    """Renews one lease until left; `lost` once somebody else may have taken it."""

    def __init__(self, database: Database, settings: Settings, holding: Holding) -> None:
        self._database = database
        self._settings = settings
        self.holding = holding
        self.lost = False
        self._renewed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{holding.name}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._over.set()

    def write_end(self, end: Callable[[Session], None], *, before: Callable[[], object] = lambda: None) -> None:
        """Write how the work ended in one transaction; wait for the database as long as the lease holds.

        Args:
            end: writes it, under the fence.
            before: called ahead of each try, outside the transaction.
        """
        while not self.lost:
            before()
            try:
                with self._database.write() as session:
                    end(session)
            except (StaleFenceError, IllegalTransitionError) as error:
                logger.warning("%s: the end was not written: %s", self.holding.name, error)
            except DBAPIError as error:
                logger.warning("%s: the end is not written yet: %s", self.holding.name, type(error).__name__)
                time.sleep(WRITE_PAUSE_S)
                continue
            return

    def _keep(self) -> None:
        while not self.lost and not self._over.wait(self._settings.lease_renew_s):
            self._renew()

    def _renew(self) -> None:
        asked = time.monotonic()
        try:
            with self._database.write() as session:
                held = self.holding.renew(session, self._settings.lease_s)
        except DBAPIError as error:
            logger.warning("lease of %s not renewed: %s", self.holding.name, type(error).__name__)
            self.lost = time.monotonic() - self._renewed > self._settings.lease_s
            return
        self._renewed = asked
        self.lost = not held and not self._over.is_set()


class Watch:
    """Answers, several times a second and cheaply, whether the work has to stop."""

    def __init__(self, lease: Lease, database: Database, shutdown: Shutdown, timeout_s: float = math.inf) -> None:
        self._lease = lease
        self._database = database
        self._shutdown = shutdown
        self._deadline = time.monotonic() + timeout_s
        self._ask_at = 0.0

    def __call__(self) -> Stop | None:
        """Return why to stop, or None."""
        if self._lease.lost:
            return Stop.LEASE_LOST
        if reason := self._asked():
            return reason
        if self._shutdown.overdue:
            return Stop.WORKER_STOPPING
        return Stop.TIMEOUT if time.monotonic() > self._deadline else None

    def _asked(self) -> Stop | None:
        """Return what the database says, when it is time to ask and it answers."""
        if time.monotonic() < self._ask_at:
            return None
        self._ask_at = time.monotonic() + ASK_S
        try:
            with self._database.read() as session:
                return self._lease.holding.reason_to_stop(session)
        except DBAPIError:
            return None
