"""The tables. The database is the truth; everything else (queue, work folder) can be lost."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.clock import now
from app.core.ids import new_id
from app.db.types import JsonColumn, UtcDateTime

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Root of the mapping; every constraint has a predictable name so that migrations can change it."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime(),
        dict[str, Any]: JsonColumn,
        list[Any]: JsonColumn,
        int: BigInteger(),
    }


def _id(prefix: str) -> Mapped[str]:
    return mapped_column(String(40), primary_key=True, default=lambda: new_id(prefix))


class Tenant(Base):
    """Who owns things. Every row a user can see belongs to one."""

    __tablename__ = "tenants"
    id: Mapped[str] = _id("ten")
    name: Mapped[str] = mapped_column(String(100), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class ApiKey(Base):
    """A credential; only a peppered HMAC of the secret is kept."""

    __tablename__ = "api_keys"
    id: Mapped[str] = _id("key")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(24))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Upload(Base):
    """A file announced, and its blob (by sha256) once all bytes are there."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_tenant_id_id", "tenant_id", "id"),)
    id: Mapped[str] = _id("upl")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str] = mapped_column(String(255))
    size: Mapped[int]
    declared_sha256: Mapped[str | None] = mapped_column(String(64))
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]


class Model(Base):
    """A manifest of files. `source` says where they come from; hub files have no blob before a worker fetches them."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_tenant_id_id", "tenant_id", "id"),)
    id: Mapped[str] = _id("mdl")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(200))
    source: Mapped[dict[str, Any]]
    config: Mapped[dict[str, Any]]
    headers: Mapped[dict[str, Any]]
    """Per safetensors file its parsed header, so that planning needs no download."""
    architecture: Mapped[str | None] = mapped_column(String(200))
    model_type: Mapped[str | None] = mapped_column(String(100))
    params: Mapped[int]
    bytes: Mapped[int]
    dtype: Mapped[str | None] = mapped_column(String(20))
    license: Mapped[str | None] = mapped_column(String(100))
    findings: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class ModelFile(Base):
    """One file of a model."""

    __tablename__ = "model_files"
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    size: Mapped[int]
    sha256: Mapped[str | None] = mapped_column(String(64))


class Job(Base):
    """A wish and its state. `status` is written by `app.jobs.transitions.transition` alone."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_tenant_id_id", "tenant_id", "id"),
        Index("ix_jobs_claim", "status", "device_class", "priority", "id"),
        Index("ix_jobs_lease", "status", "lease_until"),
        Index("ix_jobs_model_id", "model_id"),
    )
    id: Mapped[str] = _id("job")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    name: Mapped[str | None] = mapped_column(String(200))
    config: Mapped[dict[str, Any]]
    """A fully resolved `nupes_client.schemas.jobs.JobSpec`."""
    config_hash: Mapped[str] = mapped_column(String(64), index=True)
    labels: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(default=0)
    timeout_s: Mapped[int] = mapped_column(default=3600)
    device_class: Mapped[str] = mapped_column(String(20), default="cpu")

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
    worker_id: Mapped[str | None] = mapped_column(String(100))

    result: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    verdict: Mapped[str | None] = mapped_column(String(10))
    gates: Mapped[list[Any]] = mapped_column(default=list)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn)
    cache_hit: Mapped[bool] = mapped_column(default=False)

    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


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
    """A `nupes_client.schemas.jobs.Layer`."""


class JobMetric(Base):
    """A point of one of a job's curves."""

    __tablename__ = "job_metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    series: Mapped[str] = mapped_column(String(255), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float | None]
    """NULL: it was no finite number."""


class Artifact(Base):
    """One downloadable file of a succeeded job. The rows are written last: no row, no artifact."""

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("job_id", "format", "path"),
        Index("ix_artifacts_tenant_id_id", "tenant_id", "id"),
    )
    id: Mapped[str] = _id("art")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    format: Mapped[str] = mapped_column(String(40))
    path: Mapped[str] = mapped_column(String(255))
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(default=now)


class OutboxMessage(Base):
    """A wake-up to publish. Written with the job, deleted once the broker has it."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    queue: Mapped[str] = mapped_column(String(40))
    job_id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=now)


class IdempotencyKey(Base):
    """What a request with an `Idempotency-Key` was answered, per tenant."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


class Worker(Base):
    """A worker slot that reports in."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    device_class: Mapped[str] = mapped_column(String(20))
    hostname: Mapped[str] = mapped_column(String(255))
    memory_bytes: Mapped[int | None]
    job_id: Mapped[str | None] = mapped_column(String(40))
    started_at: Mapped[datetime] = mapped_column(default=now)
    heartbeat_at: Mapped[datetime] = mapped_column(default=now)
