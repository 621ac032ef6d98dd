"""Files on their way in."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.db.tables.base import Base, id_column


class Upload(Base):
    """A file announced, and its blob (by sha256) once all bytes are there."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_tenant_id_id", "tenant_id", "id"),)
    id: Mapped[str] = id_column("upl")
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str] = mapped_column(String(255))
    size: Mapped[int]
    declared_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    tus_metadata: Mapped[str | None] = mapped_column(Text)
    """`Upload-Metadata` as a tus client sent it, to be told again."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
