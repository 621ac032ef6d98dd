"""Who did what, and how much of the service tenants used. Both are appended to, never changed."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base, id_column


class AuditEntry(Base):
    """One change that a user or an operator made. `key_id` and `address` are NULL for commands on the server."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_tenant_id_id", "tenant_id", "id"),
        Index("ix_audit_entries_tenant_id_resource_id", "tenant_id", "resource_id"),
        Index("ix_audit_entries_created_at", "created_at"),
    )
    id: Mapped[str] = id_column("aud")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    key_id: Mapped[str | None] = mapped_column(String(40))
    action: Mapped[str] = mapped_column(String(40))
    resource_id: Mapped[str] = mapped_column(String(100))
    address: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=now)


class UsageEntry(Base):
    """Something a quota counts. It outlives the job that caused it, so deleting jobs gives nothing back."""

    __tablename__ = "usage_entries"
    __table_args__ = (
        Index("ix_usage_entries_tenant_id_kind_created_at", "tenant_id", "kind", "created_at"),
        Index("ix_usage_entries_created_at", "created_at"),
    )
    id: Mapped[str] = id_column("use")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    kind: Mapped[str] = mapped_column(String(20))
    job_id: Mapped[str] = mapped_column(String(40))
    amount: Mapped[float]
    """1 for a job that was submitted; seconds of an attempt for `compute`."""
    created_at: Mapped[datetime] = mapped_column(default=now)
