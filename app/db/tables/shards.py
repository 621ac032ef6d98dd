"""Parts of jobs that several workers do at once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.tables.base import Base
from app.db.types import JsonColumn


class JobShard(Base):
    """The work on one safetensors file of a job, with a claim, a lease and a fence of its own."""

    __tablename__ = "job_shards"
    __table_args__ = (
        Index("ix_job_shards_claim", "status", "job_id", "position"),
        Index("ix_job_shards_lease", "status", "lease_until"),
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(255))
    params: Mapped[int]
    memory_bytes: Mapped[int]
    """Planned peak of the work on this file alone."""

    status: Mapped[str] = mapped_column(String(20))
    """A `nupes_client.schemas.jobs.ShardStatus`."""
    attempt: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(100))
    lease_until: Mapped[datetime | None]
    worker_id: Mapped[str | None] = mapped_column(String(100))
    params_done: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobShardFile(Base):
    """A blob that the work on one file left for the assembly; the rows go when the job has ended."""

    __tablename__ = "job_shard_files"
    __table_args__ = (
        ForeignKeyConstraint(["job_id", "position"], ["job_shards.job_id", "job_shards.position"], ondelete="CASCADE"),
    )
    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(String(300), primary_key=True)
    """Inside the folder of the finished shard."""
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
