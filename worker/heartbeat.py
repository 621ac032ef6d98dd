"""The row by which a worker slot reports in."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Worker


@dataclass(frozen=True)
class SlotFacts:
    """What a slot says of itself once."""

    id: str
    device_class: str
    memory_bytes: int
    isolation: str | None = None


def beat(database: Database, me: SlotFacts, job_id: str | None, *, draining: bool = False) -> bool:
    """Say that the slot lives and what it does; makes the row at the first beat.

    Returns:
        Whether it is to take no more jobs: it says so itself with `draining`, or an operator did.
    """
    values = {"heartbeat_at": now(), "job_id": job_id, **({"draining": True} if draining else {})}
    with database.write() as session:
        if session.connection().execute(update(Worker).where(Worker.id == me.id).values(**values)).rowcount == 0:
            session.add(Worker(**vars(me), hostname=socket.gethostname()[:255], job_id=job_id, draining=draining))
            return draining
        return bool(session.scalar(select(Worker.draining).where(Worker.id == me.id)))


def leave(database: Database, worker_id: str) -> None:
    """Remove the row: the slot stopped cleanly."""
    with database.write() as session:
        session.execute(delete(Worker).where(Worker.id == worker_id))
