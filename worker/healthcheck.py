"""`python -m worker.healthcheck`: exit code 0 while a slot of this host reports in (for container health checks)."""

from __future__ import annotations

import socket
import sys
from datetime import timedelta

from sqlalchemy import select

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Worker
from app.settings import Settings, get_settings

BEATS_MISSED = 5
"""As many heartbeats may be late; a busy machine is not a dead one."""


def healthy(settings: Settings) -> bool:
    """Whether a slot of this host wrote its row lately.

    Raises:
        sqlalchemy.exc.DBAPIError: the database does not answer.
    """
    since = now() - timedelta(seconds=BEATS_MISSED * settings.heartbeat_s)
    database = Database(settings.resolved_database_url)
    try:
        with database.read() as session:
            here = select(Worker.id).where(Worker.hostname == socket.gethostname()[:255], Worker.heartbeat_at >= since)
            return session.scalars(here.limit(1)).first() is not None
    finally:
        database.dispose()


if __name__ == "__main__":
    sys.exit(0 if healthy(get_settings()) else 1)
