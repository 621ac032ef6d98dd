"""Who does the jobs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String, false
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base


class Worker(Base):
    """A worker slot that reports in."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    device_class: Mapped[str] = mapped_column(String(20))
    hostname: Mapped[str] = mapped_column(String(255))
    memory_bytes: Mapped[int | None]
    isolation: Mapped[str | None] = mapped_column(String(20))
    """How its runners are kept from the network."""
    draining: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Finishes what it has and claims no more."""
    job_id: Mapped[str | None] = mapped_column(String(40))
    started_at: Mapped[datetime] = mapped_column(default=now)
    heartbeat_at: Mapped[datetime] = mapped_column(default=now)
