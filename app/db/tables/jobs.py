"""Jobs and everything said about them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base, id_column
from app.db.types import JsonColumn
from nupes_client.schemas.specs import QUEUE_TIMEOUT_S

_NAMED, _JUDGED = text("name IS NOT NULL"), text("verdict IS NOT NULL")


class Job(Base):
    """A wish and its state. `status` is written by `app.jobs.transitions.transition` alone."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_tenant_id_id", "tenant_id", "id"),
        Index("ix_jobs_turn", "status", "device_class", "tenant_id", "priority", "id"),
        Index("ix_jobs_tenant_id_status", "tenant_id", "status", "id"),
        Index("ix_jobs_tenant_id_created_at", "tenant_id", "created_at"),
        Index("ix_jobs_lease", "status", "lease_until"),
        Index("ix_jobs_queue_until", "status", "queue_until"),
        Index("ix_jobs_cache", "tenant_id", "cache_key", "status", "id"),
        Index("ix_jobs_model_id", "model_id", "id"),
        Index("ix_jobs_name", "tenant_id", "name", "id", sqlite_where=_NAMED, postgresql_where=_NAMED),
        Index("ix_jobs_verdict", "tenant_id", "verdict", "id", sqlite_where=_JUDGED, postgresql_where=_JUDGED),
    )
    id: Mapped[str] = id_column("job")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    name: Mapped[str | None] = mapped_column(String(200))
    config: Mapped[dict[str, Any]]
    """A fully resolved `nupes_client.schemas.specs.JobSpec`."""
    config_hash: Mapped[str] = mapped_column(String(64), index=True)
    labels: Mapped[dict[str, Any]]
    """Also rows of `JobLabel`, by which lists find them."""
    priority: Mapped[int] = mapped_column(default=0)
    timeout_s: Mapped[int] = mapped_column(default=3600)
    device: Mapped[str] = mapped_column(String(20), default="auto", server_default="auto")
    """What the user asked for: `auto` or a device class."""
    queue_timeout_s: Mapped[int] = mapped_column(default=QUEUE_TIMEOUT_S)
    queue_until: Mapped[datetime | None]
    """A job that no worker has ever taken by then fails; written by `app.jobs.transitions.create`."""
    cache: Mapped[bool] = mapped_column(default=True)
    """Whether the result of an equal job may answer this one."""
    cache_key: Mapped[str | None] = mapped_column(String(64))
    """Equal for jobs that compute the same; see `app.jobs.cache`."""
    code_version: Mapped[str | None] = mapped_column(String(64))
    """Of the code that made the result."""
    retry_of: Mapped[str | None] = mapped_column(String(40))
    """The job whose wish this one repeats; that one may have been deleted since."""
    device_class: Mapped[str] = mapped_column(String(20), default="cpu")
    """The queue it is in."""
    memory_bytes: Mapped[int | None]
    """Planned peak: it is claimed only where that fits. NULL: not planned, fits anywhere."""
    waiting_reason: Mapped[str | None] = mapped_column(String(20))
    """A `nupes_client.schemas.jobs.WaitingReason` while it is queued and no live worker can take it."""
    waiting_largest_bytes: Mapped[int | None]
    """Memory of the largest live worker of its class at that time."""

    status: Mapped[str] = mapped_column(String(20))
    version: Mapped[int] = mapped_column(default=1)
    event_seq: Mapped[int] = mapped_column(default=0)
    phase: Mapped[str | None] = mapped_column(String(20))
    progress_fraction: Mapped[float] = mapped_column(default=0.0)
    progress_current: Mapped[int] = mapped_column(default=0)
    progress_total: Mapped[int] = mapped_column(default=0)
    progress_unit: Mapped[str] = mapped_column(String(20), default="steps")
    eta_seconds: Mapped[float | None]

    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=2)
    lease_owner: Mapped[str | None] = mapped_column(String(100))
    lease_until: Mapped[datetime | None]
    """Until when a worker holds it; of a queued job: when it may be taken, where that is to wait (decisions/016)."""
    worker_id: Mapped[str | None] = mapped_column(String(100))

    result: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    verdict: Mapped[str | None] = mapped_column(String(10))
    gates: Mapped[list[Any]] = mapped_column(default=list)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    cache_hit: Mapped[bool] = mapped_column(default=False)
    artifacts_expired_at: Mapped[datetime | None]
    pushed: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    """A `nupes_client.schemas.jobs.Pushed` once a hub has the result."""

    traceparent: Mapped[str | None] = mapped_column(String(55))
    """W3C Trace Context of the request that made the job; NULL when traces are off."""

    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    attempt_started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobLabel(Base):
    """One of a job's labels; the index leads through all jobs of a tenant that have it, in the order of a list."""

    __tablename__ = "job_labels"
    __table_args__ = (Index("ix_job_labels_list", "tenant_id", "key", "value", "job_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(40))
    value: Mapped[str] = mapped_column(String(255))


class JobEvent(Base):
    """What happened to a job, numbered from 1 without gaps."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(20))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class JobLayer(Base):
    """Per-layer numbers of a job, in checkpoint order."""

    __tablename__ = "job_layers"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]
    """A `nupes_client.schemas.jobs.Layer` without its histogram."""
    histogram: Mapped[list[Any] | None] = mapped_column(JsonColumn, deferred=True, deferred_raiseload=True)
    """Read where it is asked for: pages of layers stay small. NULL: nothing was counted."""


class JobMetric(Base):
    """A point of one of a job's curves."""

    __tablename__ = "job_metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    series: Mapped[str] = mapped_column(String(255), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float | None]
    """NULL: it was no finite number."""


class IdempotencyKey(Base):
    """What a request with an `Idempotency-Key` was answered, per tenant."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
