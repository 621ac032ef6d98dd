"""What has expired and what nobody needs, in the loop of every worker: one of them does it for all."""

from __future__ import annotations

import logging

from app.db.leases import take
from app.db.session import Database
from app.housekeeping.service import sweep_local, sweep_shared
from app.settings import Settings
from app.storage import StorageError, open_store

logger = logging.getLogger(__name__)

LEASE = "housekeeping"


class Housekeeping:
    """Rounds of housekeeping by one worker slot."""

    def __init__(self, database: Database, settings: Settings, owner: str) -> None:
        self._database = database
        self._settings = settings
        self._owner = owner

    def round(self) -> None:
        """Sweep this machine's disk; and for all machines, unless another worker has done so a moment ago."""
        try:
            store = open_store(self._settings)
            sweep_local(self._database, store, self._settings)
            if take(self._database, LEASE, self._owner, self._settings.housekeep_s):
                swept = sweep_shared(self._database, store, self._settings)
                logger.info("housekeeping: %s", swept)
        except StorageError as error:
            logger.warning("housekeeping: %s", error)
