"""When everything is up: the API answers, and every worker has shown itself in the database."""

from __future__ import annotations

from datetime import datetime
from http.client import HTTPConnection, HTTPException

from sqlalchemy import func, select

from app.db.session import Database
from app.db.tables import Worker

PROBE_S = 2.0


def api_answers(host: str, port: int) -> bool:
    """Whether `/readyz` answers with success."""
    connection = HTTPConnection(host, port, timeout=PROBE_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status < 400
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def workers_alive(database: Database, since: datetime) -> int:
    """How many workers have reported in after `since`."""
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Worker).where(Worker.heartbeat_at >= since)) or 0
