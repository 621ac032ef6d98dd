"""The row by which a worker slot reports in."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from sqlalchemy import delete, update

from app.core.clock import now
from app.db.session import Database
from app.db.tables import Worker

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def beat(database: Database, worker_id: str, device_class: str, job_id: str | None) -> None:
    """Say that the slot lives and what it does; makes the row at the first beat."""
    with database.write() as session:
        seen = update(Worker).where(Worker.id == worker_id).values(heartbeat_at=now(), job_id=job_id)
        if session.connection().execute(seen).rowcount == 0:
            session.add(
                Worker(
                    id=worker_id,
                    device_class=device_class,
                    hostname=socket.gethostname()[:255],
                    memory_bytes=memory_bytes(),
                    job_id=job_id,
                )
            )


def leave(database: Database, worker_id: str) -> None:
    """Remove the row: the slot stopped cleanly."""
    with database.write() as session:
        session.execute(delete(Worker).where(Worker.id == worker_id))


def memory_bytes() -> int:
    """Memory of the machine, or what the control group allows."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(machine, int(limit)) if limit.isdecimal() else machine
