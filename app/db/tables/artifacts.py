"""What jobs leave behind."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base, id_column


class Artifact(Base):
    """One downloadable file of a succeeded job. The rows are written last: no row, no artifact."""

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("job_id", "format", "path"),
        Index("ix_artifacts_tenant_id_id", "tenant_id", "id"),
    )
    id: Mapped[str] = id_column("art")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    format: Mapped[str] = mapped_column(String(40))
    path: Mapped[str] = mapped_column(String(255))
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    expired_at: Mapped[datetime | None]
    """When its bytes were given up; the row stays and says so."""
