"""Delivers messages to webhooks, beside the jobs. Any number of workers may; leases keep them apart."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from app.core.secret_key import load_pepper
from app.db.session import Database
from app.settings import Settings
from app.webhooks.addresses import AddressPolicy
from app.webhooks.claims import claim
from app.webhooks.results import record
from app.webhooks.secrets import SecretBox
from app.webhooks.sending import Parcel, Sender

logger = logging.getLogger(__name__)

LANE_THREADS = 16
LOOK_S = 1.0
"""While something is on its way: how often new messages are looked for although no request has ended."""


class _Lane:
    """Threads for one kind of receiver."""

    def __init__(self, name: str) -> None:
        self.threads = ThreadPoolExecutor(LANE_THREADS, thread_name_prefix=f"courier-{name}")
        self.flying: set[Future[None]] = set()

    def free(self) -> int:
        self.flying = {each for each in self.flying if not each.done()}
        return LANE_THREADS - len(self.flying)


class Courier:
    """Sends what is due, several messages at a time.

    Receivers whose last attempt failed have threads of their own, so that those which hang hold nobody else up.

    Args:
        database: where the messages are.
        settings: time limit, permitted networks, and the secret key that opens the signing secrets.
        stopping: set when no more shall be sent. Requests under way end with the process.
    """

    def __init__(self, database: Database, settings: Settings, stopping: threading.Event) -> None:
        self._database = database
        self._stopping = stopping
        policy = AddressPolicy(settings.allowed_webhook_networks)
        self._sender = Sender(SecretBox(load_pepper(settings)), policy, settings.webhook_timeout_s)
        self._lanes = {False: _Lane("well"), True: _Lane("failing")}

    def work(self) -> None:
        """Send until nothing is due."""
        while not self._stopping.is_set():
            self._take()
            flying = set().union(*(lane.flying for lane in self._lanes.values()))
            if not flying:
                return
            wait(flying, LOOK_S, FIRST_COMPLETED)

    def _take(self) -> None:
        for failing, lane in self._lanes.items():
            if free := lane.free():
                for parcel in claim(self._database, failing=failing, limit=free):
                    lane.flying.add(lane.threads.submit(self._deliver, parcel))

    def _deliver(self, parcel: Parcel) -> None:
        """Send and record. What fails here leaves the message to its lease, after which it is sent again."""
        try:
            outcome = self._sender.send(parcel)
            with self._database.write() as session:
                kept = record(session, parcel, outcome)
        except Exception:
            logger.exception("%s to %s failed", parcel.delivery_id, parcel.webhook_id)
            return
        result = outcome.error.value if outcome.error else "taken"
        logger.info(
            "%s to %s: %s in %d ms%s",
            parcel.delivery_id,
            parcel.webhook_id,
            result,
            outcome.duration_ms,
            "" if kept else ", not recorded: the lease was lost",
        )
